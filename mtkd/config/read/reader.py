"""The state that all parts of reading share: the file's values, facts of the run so far, and the list of problems."""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from mtkd.config.basicsr_keys import IGNORED_KEYS, IGNORED_OUTSIDE_DATASETS, UNSUPPORTED_KEYS
from mtkd.config.problems import (
    PROBLEMS_SHOWN,
    KeyPath,
    Origin,
    Problem,
    closest,
    format_value,
    key_text,
    no_mapping,
    of_pydantic,
)
from mtkd.config.schema import (
    LoggerOptions,
    Options,
    PathOptions,
    Section,
    TileOptions,
    TrainOptions,
    TrainSetOptions,
    ValOptions,
)
from mtkd.contracts import MtkdError
from mtkd.runtime.given import check_readable
from mtkd.runtime.given import path as given_path

Model = TypeVar("Model", bound=Section)


class Reader:
    """Handed down through the sections. Problems are collected here, and raised together at the end.

    Attributes:
        data: the values of the file, changed by `--force_yml`, `{scale}` and `--debug`.
        check: names are looked up in the catalog and arguments checked against signatures.
        is_train: it is a training file.
        sets: the section `datasets`, {} where it is no mapping.
        num_teachers: teachers as written, so that one with a typo is not reported as missing as well.
        scale: None as long as none is read, or where it is wrong.
        model_type: as written, so that it may be no text.
        method: class of the method; None where there is none, or names are not looked up.
        problems: what is wrong so far.
        notices: what has no effect, or departs from a convention.
    """

    def __init__(self, data: dict[str, Any], origin: Origin, problems: Iterable[Problem], *, check: bool) -> None:
        self.data, self.origin, self.check = data, origin, check
        self.problems = list(problems)
        self.notices: list[str] = []
        self._ignored: dict[str, list[str]] = {}
        sets, teachers = data.get("datasets"), data.get("teachers")
        self.sets: dict[str, Any] = sets if isinstance(sets, dict) else {}
        self.is_train = is_training_file(data)
        self.num_teachers = len(teachers) if isinstance(teachers, dict) else 0
        self.scale: int | None = None
        self.model_type: Any = None
        self.method: Any = None

    def problem(self, path: KeyPath, message: str) -> None:
        """Report `message` about the value at `path`."""
        self.problems.append(self.origin.problem(path, message))

    def unknown(self, path: KeyPath, valid: Sequence[str], kind: str = "unknown key") -> None:
        """Report that the key at `path` is none of `valid`, with the nearest of them, or where it belongs."""
        name = str(path[-1])
        if len(path) == 1 and name in UNSUPPORTED_KEYS:
            self.problem(path, f"not supported: {UNSUPPORTED_KEYS[name]}.")
            return
        if len(self.problems) >= PROBLEMS_SHOWN:
            self.problem(path, f"{kind}.")  # not shown, and the search for near names takes time
            return
        ignored = IGNORED_KEYS if path[0] == "datasets" else IGNORED_OUTSIDE_DATASETS
        if near := closest(name, [*valid, *ignored]):
            message = f"{kind}. Did you mean {near}?"
        elif (homes := _HOMES.get(name)) and key_text(path) not in homes:
            message = f"{kind} here; it belongs at {' or '.join(homes)}."
        else:
            message = f"{kind}; valid here: {', '.join(valid) or 'none'}."
        self.problem(path, message)

    def ignore(self, path: KeyPath, why: str) -> None:
        """Note a key that has no effect in this kind of file."""
        self.notices.append(f"{key_text(path)} ignored: {why}.")

    def ignore_basicsr_key(self, path: KeyPath) -> None:
        """Note one of `IGNORED_KEYS`; the same key of several sections makes one notice."""
        self._ignored.setdefault(str(path[-1]), []).append(key_text(path))

    def all_notices(self) -> list[str]:
        """The lines for `Options.notices`, BasicSR's keys first."""
        ignored = [f"{', '.join(keys)} ignored: {IGNORED_KEYS[name]}." for name, keys in self._ignored.items()]
        return ignored + self.notices

    def section(self, model: type[Model], data: Any, path: KeyPath) -> Model | None:
        """`data` as `model`; None after reporting every problem in it."""
        if not isinstance(data, dict):
            self.problem(path, no_mapping(data))
            return None
        internal = [key for key in data if key in model.internal]
        for key in internal:
            self.unknown((*path, key), keys_of(model))
        try:
            return model.model_validate({key: value for key, value in data.items() if key not in internal})
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                where = (*path, *detail["loc"])
                if detail["type"] == "extra_forbidden":
                    self.unknown(where, keys_of(section_inside(model, detail["loc"][:-1])))
                else:
                    self.problem(where, of_pydantic(typing.cast(Mapping[str, Any], detail)))
            return None

    def mapping(self, data: Any, path: KeyPath) -> dict[str, Any]:
        """`data` when it is a mapping; {} when it is absent, or after reporting that it is something else."""
        if data is None:
            return {}
        if not isinstance(data, dict):
            self.problem(path, no_mapping(data))
            return {}
        return data

    def file_path(self, data: Any, path: KeyPath) -> str | None:
        """`data` as the path of a file or folder, `~` expanded; None when absent, or after reporting what is wrong."""
        if data is None:
            return None
        if not isinstance(data, str):
            self.problem(path, f"must be text, found {format_value(data)}.")
            return None
        try:
            check_readable(given_path(data))
        except MtkdError as error:
            self.problem(path, str(error))
            return None
        return os.path.expanduser(data)


def is_training_file(data: Mapping[str, Any]) -> bool:
    """Whether these values describe a training: `datasets.train`, or `train` without test sets."""
    sets = data.get("datasets")
    names = sets if isinstance(sets, dict) else {}
    return "train" in names or ("train" in data and not any(key.startswith("test") for key in names))


def keys_of(model: type[Section] | None) -> list[str]:
    """The keys that a file may write into a section."""
    return [key for key in model.model_fields if key not in model.internal] if model else []


def section_inside(model: type[Section], loc: Sequence[Any]) -> type[Section] | None:
    """The section inside `model` that a pydantic location points at."""
    found: type[Section] | None = model
    for part in loc:
        hint = found.model_fields[part].annotation if found and part in found.model_fields else None
        kinds = [hint, *typing.get_args(hint)]
        found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
    return found


def _homes() -> dict[str, list[str]]:
    """Key -> where in a file it is valid."""
    homes: dict[str, list[str]] = {}
    sections: dict[str, type[Section]] = {
        "": Options,
        "datasets.train.": TrainSetOptions,
        "path.": PathOptions,
        "train.": TrainOptions,
        "val.": ValOptions,
        "val.tile.": TileOptions,
        "logger.": LoggerOptions,
    }
    for prefix, model in sections.items():
        for key in keys_of(model):
            if key not in ("name", "type"):
                homes.setdefault(key, []).append(prefix + key)
    # BasicSR's older files have the first at the top, and ignore it there.
    return homes | {key: [f"val.metrics.NAME.{key}"] for key in ("crop_border", "test_y_channel")}


_HOMES = _homes()
