"""Problems of an option file: their place, their wording, and one error for all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtkd.contracts import MtkdError

FORCE = "--force_yml"
"""Stands where a problem names its file, when the value comes from the command line."""

PROBLEMS_SHOWN = 100
"""Most problems that the text of an `OptionError` lists."""

KeyPath = tuple[str | int, ...]
"""Where a value stands: ("train", "scheduler", "milestones", 0)."""


def key_text(path: KeyPath) -> str:
    """`train.scheduler.milestones[0]`.

    Example:
        >>> key_text(("train", "scheduler", "milestones", 0))
        'train.scheduler.milestones[0]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an option file. `line` counts from 1; None when the value does not come from the file."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class OptionError(MtkdError):
    """An option file cannot be used. `problems` holds everything that is wrong with it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        lines = [str(problem) for problem in self.problems[:PROBLEMS_SHOWN]]
        if (number := len(self.problems)) > 1:
            lines.insert(0, f"{number:,} problems in the options:")
        if number > PROBLEMS_SHOWN:
            lines.append(f"and {number - PROBLEMS_SHOWN:,} more")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[OptionError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


@dataclass(frozen=True)
class Origin:
    """Where each value was written: a line of the file or of its base (`files`), or the command line."""

    file: str
    lines: dict[KeyPath, int]
    forced: frozenset[KeyPath] = frozenset()
    files: Mapping[KeyPath, str] = field(default_factory=dict)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """`message` about the value at `path`, with the nearest line that is known."""
        prefixes = [path[:end] for end in range(len(path), 0, -1)]
        if not any(prefix in self.forced for prefix in prefixes):
            for prefix in prefixes:
                if prefix in self.lines:
                    return Problem(self.files.get(prefix, self.file), self.lines[prefix], key_text(path), message)
                if any(forced[: len(prefix)] == prefix for forced in self.forced):
                    break
            else:
                return Problem(self.file, None, key_text(path), message)
        return Problem(FORCE, None, key_text(path), message)


def in_order_of_the_file(problems: Sequence[Problem], file: str) -> list[Problem]:
    """`problems` as a reader of `file` meets them: its own lines first, then its base's, the command line last."""
    return sorted(problems, key=lambda p: (p.file == FORCE, p.file != file, p.line is None, p.line or 0))


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that is nearest to `name`; None when none is near."""
    lowered = {key.lower(): key for key in valid}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None


def unknown_choice(name: str, valid: Sequence[str]) -> str:
    """The message for a name that is not valid."""
    found = closest(name, valid)
    return f"{name!r} is unknown.{f' Did you mean {found}?' if found else ''} It is one of {', '.join(valid)}."


def format_value(value: Any) -> str:
    """A value as one short word of a message.

    Example:
        >>> format_value(None), format_value(True), format_value("x4")
        ('nothing (~)', 'true', "'x4'")
    """
    if value is None:
        return "nothing (~)"
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


def no_mapping(value: Any) -> str:
    """The message for a value where a mapping belongs."""
    return f"must be a mapping (`key: value` lines), found {format_value(value)}."


_MESSAGES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping (`key: value` lines)",
    "model_type": "must be a mapping (`key: value` lines)",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}
"""pydantic's type of an error -> the words of an option file."""


def of_pydantic(detail: Mapping[str, Any]) -> str:
    """The message for one entry of pydantic's `ValidationError.errors()`."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "required, and missing."
    if kind == "value_error":
        return str(context["error"])
    if kind in _MESSAGES:
        return f"{_MESSAGES[kind].format(**context)}, found {format_value(detail['input'])}."
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, found {format_value(detail['input'])}."
