"""What the JSON schema is put together from: a section of the schema, and the small kinds of values."""

from __future__ import annotations

from typing import Any

from mtkd import catalog
from mtkd.config.basicsr_keys import IGNORED_KEYS
from mtkd.config.schema import Section


def section_schema(model: type[Section], ignored: tuple[str, ...] = (), *, about: str) -> dict[str, Any]:
    """Schema of one section, which is described by `about`; keys that the reader fills are left out, keys without
    effect are added.
    """
    made = _in_json_words(model.model_json_schema())
    properties = {key: value for key, value in made["properties"].items() if key not in model.internal}
    for value in properties.values():
        value.pop("title", None)
    return {
        "type": "object",
        "description": about,
        "properties": properties | ignored_keys(*(key for key in ignored if key not in properties)),
        "required": [key for key in made.get("required", []) if key in properties],
        "additionalProperties": False,
    }


_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _in_json_words(schema: Any) -> Any:
    """Standard names for limits that pydantic writes under its own names behind a validator."""
    if isinstance(schema, list):
        return [_in_json_words(item) for item in schema]
    if isinstance(schema, dict):
        return {_LIMITS.get(key, key): _in_json_words(value) for key, value in schema.items()}
    return schema


def ignored_keys(*keys: str) -> dict[str, Any]:
    """Keys of BasicSR that may stand in a section, whatever their value."""
    return {key: {"description": f"ignored: {IGNORED_KEYS[key]}"} for key in keys}


def text(about: str) -> dict[str, Any]:
    """A text, described by `about`."""
    return {"type": "string", "description": about}


def nullable(about: str) -> dict[str, Any]:
    """A text or `~`, described by `about`."""
    return {"type": ["string", "null"], "description": about}


def named(kind: catalog.Kind, about: str) -> dict[str, Any]:
    """A mapping with a `type`, which is a name of the catalog or a path."""
    known: dict[str, Any] = {
        "type": "string",
        "description": f"its name: see `mtkd list {kind}s`; a class or function of your own is `my.module:NAME`",
        "anyOf": [{"enum": catalog.names(kind)}, {"type": "string"}],
    }
    return {"type": "object", "description": about, "properties": {"type": known}, "required": ["type"]}
