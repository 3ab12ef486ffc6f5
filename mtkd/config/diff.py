"""What differs between two option files, with every default written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtkd import catalog
from mtkd.config.read.methods import defaults_of
from mtkd.config.schema import Options

_ABSENT = object()


def diff(first: Options, second: Options) -> list[str]:
    """One line per key whose value differs: `- KEY: VALUE` of the first, `+ KEY: VALUE` of the second.

    Both are compared as they run, defaults filled in; the order of keys does not count, the order of teachers does.
    """
    one, two = flat(first), flat(second)
    lines = []
    for key in [*one, *(key for key in two if key not in one)]:
        before, after = one.get(key, _ABSENT), two.get(key, _ABSENT)
        if before != after or type(before) is not type(after):
            lines += [f"- {key}: {_text(before)}"] if before is not _ABSENT else []
            lines += [f"+ {key}: {_text(after)}"] if after is not _ABSENT else []
    return lines


def flat(options: Options) -> dict[str, Any]:
    """Every value of `options` that is not None, defaults included, by its dotted key."""
    values: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        elif value is not None and value != {}:
            values[key] = list(value) if isinstance(value, tuple) else value

    walk(options.model_dump(exclude={"network_g"} if options.network_g.is_none else None), "")
    if len(options.teachers) > 1:
        values["teachers (in order)"] = list(options.teachers)
    return values


_FORMER_DEFAULTS = {"OnlineTeacher": {"method.margin": 0.01}}
"""model_type -> options of the method that had another default then."""
_CACHE, _RESIDENCE = "datasets.train.cache", "datasets.train.residence"


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` made of an older version's option file, under today's keys and with the method's defaults of then."""
    renamed = dict(values)
    if _RESIDENCE in renamed:
        old = renamed.pop(_RESIDENCE)
        renamed[_CACHE] = "gpu" if old == "device" else old
    name = str(values.get("model_type"))
    if name in catalog.METHODS:
        # States recorded only what a file said of its method.
        defaults = defaults_of(catalog.get("method", name).Config)
        former = {f"method.{key}": list(v) if isinstance(v, tuple) else v for key, v in defaults.items()}
        renamed = former | _FORMER_DEFAULTS.get(name, {}) | renamed
    return renamed


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
