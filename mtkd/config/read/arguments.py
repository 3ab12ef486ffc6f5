"""Entries of the catalog and their arguments, checked against signature and annotations."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mtkd import catalog
from mtkd.config.problems import KeyPath, format_value, of_pydantic
from mtkd.config.read.reader import Reader
from mtkd.config.signatures import annotations_of, hint_text, plain_hint, whole_inside
from mtkd.contracts import MtkdError
from mtkd.runtime.given import errors_of


def lookup(reader: Reader, kind: catalog.Kind, name: str, path: KeyPath) -> Any:
    """The catalog's entry; None when names are not checked, or after reporting that there is none."""
    if not reader.check:
        return None
    try:
        with errors_of(f"{name!r} cannot be imported"):
            return catalog.get(kind, name)
    except MtkdError as error:
        reader.problem(path, str(error))
        return None


def typed(reader: Reader, data: Any, path: KeyPath) -> tuple[str, dict[str, Any]] | None:
    """`type` and the rest of a mapping; None after reporting that there is no such thing."""
    if data is None:
        reader.problem(path, "required, and missing.")
    elif not isinstance(data, dict):
        reader.problem(path, f"must be a mapping with a `type`, found {format_value(data)}.")
    elif not isinstance(data.get("type"), str):
        named = f"must be a name, found {format_value(data['type'])}." if "type" in data else "required, and missing."
        reader.problem((*path, "type"), named)
    else:
        return data["type"], {key: value for key, value in data.items() if key != "type"}
    return None


def check_arguments(
    reader: Reader,
    target: Callable[..., Any],
    given: dict[str, Any],
    path: KeyPath,
    kind: str,
    *,
    skip: Iterable[str] = (),
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """`given`, checked against the signature of `target` and converted to its annotations (a list to a tuple).

    `skip` are parameters that the file does not set, `more` further keys that are valid beside the signature's.
    """
    parameters = [p for p in parameters_of(target).values() if p.name not in skip]
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    hints = annotations_of(target)
    result = {}
    for key, value in given.items():
        if key in names:
            result[key] = converted(reader, hints.get(key, Any), value, (*path, key))
        elif is_open and key not in skip:
            result[key] = value
        else:
            reader.unknown((*path, key), [*names, *more], f"not {kind}")
    for p in parameters:
        if p.name in names and p.default is p.empty and p.name not in given:
            reader.problem((*path, p.name), "required, and missing.")
    return result


def converted(reader: Reader, hint: Any, value: Any, path: KeyPath) -> Any:
    """`value` as the annotation `hint` has it; unchanged after reporting that it does not fit."""
    hint = plain_hint(hint)
    if hint is None:
        return value
    adapter = _adapter(hint)
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        try:
            # `!!float 5e3` where a whole number is wanted.
            return adapter.validate_json(json.dumps(whole_inside(value)), strict=True)
        except ValidationError:
            pass
        details = error.errors(include_url=False)
        if len(details) == 1:
            inner = tuple(part for part in details[0]["loc"] if isinstance(part, int))
            reader.problem((*path, *inner), of_pydantic(details[0]))
        else:
            reader.problem(path, f"must be {hint_text(hint)}, found {format_value(value)}.")
        return value


_ADAPTERS: dict[str, TypeAdapter[Any]] = {}
"""By the text of the annotation: equal annotations may list their choices in another order, which messages show."""


def _adapter(hint: Any) -> TypeAdapter[Any]:
    text = repr(hint)
    if text not in _ADAPTERS:
        _ADAPTERS[text] = TypeAdapter(hint)
    return _ADAPTERS[text]


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class's constructor or of a function; any, where C code has no signature."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
