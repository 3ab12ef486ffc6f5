"""The words of option problems."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


def near(name: str, valid: Sequence[str]) -> str | None:
    """The nearest of the valid names, None when none is near."""
    lowered = {key.lower(): key for key in valid}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None


def choice(name: str, valid: Sequence[str]) -> str:
    """What to say of a name that is none of the valid ones."""
    found = near(name, valid)
    return f"{name!r} is unknown.{f' Did you mean {found}?' if found else ''} It is one of {', '.join(valid)}."


def shown(value: Any) -> str:
    """A found value, short."""
    if value is None:
        return "nothing (~)"
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


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


def of_pydantic(detail: Mapping[str, Any]) -> str:
    """A pydantic error, in the words of an option file."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "required, and missing."
    if kind == "value_error":
        return str(context["error"])
    if kind in _MESSAGES:
        return f"{_MESSAGES[kind].format(**context)}, found {shown(detail['input'])}."
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, found {shown(detail['input'])}."
