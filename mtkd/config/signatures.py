"""Arguments in an option file against the signatures and annotations of what they are for."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from mtkd.config.yaml_nodes import MAX_WHOLE


def annotations_of(target: Any) -> dict[str, Any]:
    """Parameter -> annotation of a class's constructor or of a function; empty where they cannot be evaluated."""
    target = inspect.unwrap(target)
    function = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # foreign annotations may name anything; without them only the names are checked
        return {}


def plain_hint(hint: Any) -> Any:
    """The part of an annotation that YAML can express; None where there is none, or it allows anything."""
    if hint in (int, float, str, bool, type(None)):
        return hint
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return hint
    if origin is Annotated:
        return plain_hint(args[0])
    if origin in (typing.Union, types.UnionType):
        if Any in args:
            return None
        plain = [found for arg in args if (found := plain_hint(arg)) is not None]
        opaque = [arg for arg in args if plain_hint(arg) is None and arg is not Tensor]
        return typing.Union[tuple(plain)] if plain and not opaque else None  # noqa: UP007
    if origin in (tuple, list, dict) or (inspect.isclass(origin) and issubclass(origin, Sequence | Mapping)):
        plain = [arg if arg is ... else plain_hint(arg) for arg in args]
        generic: Any = origin
        return None if None in plain or not plain else generic[tuple(plain)]
    return None


def hint_of_default(default: Any) -> Any:
    """The annotation that a default value implies."""
    return {bool: bool, int: int | float, float: float, str: str}.get(type(default), Any)


def hint_text(hint: Any) -> str:
    """An annotation in the words of YAML."""
    return (hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint)).replace("typing.", "")


def whole(value: Any) -> Any:
    """5000.0 as 5000: BasicSR's files write `!!float 5e3` for counts."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < MAX_WHOLE else value


def whole_inside(value: Any) -> Any:
    """`whole` for every item of nested lists."""
    return [whole_inside(item) for item in value] if isinstance(value, list) else whole(value)


def is_number(value: Any) -> bool:
    """A finite int or float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
