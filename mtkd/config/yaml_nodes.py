"""Composed YAML nodes -> plain values with their lines; what the dialect does not allow is collected as problems."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from mtkd.config.problems import KeyPath, OptionError, Problem, key_text

MAX_VALUES = 10_000
"""Most values in one file: no run takes as many, and aliases of aliases can name more than memory holds."""

MAX_DEPTH = 50

MAX_WHOLE = 2**64
"""Whole numbers are smaller than this. Python itself refuses to write, or to read, those of some thousand digits."""


@dataclass
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and the line on which each key or list item stands.

    `files` names the file of those lines that are not in `file`.
    """

    data: Any
    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    files: dict[KeyPath, str] = field(default_factory=dict)


_INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_WORDS = {"null": "null", "bool": "true or false", "int": "a whole number", "float": "a number"}
RESOLVERS = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT))


class NodeReader:
    """Values of composed nodes; problems are collected, not raised."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.count = 0
        self.open: set[int] = set()

    def problem(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.document.file, node.start_mark.line + 1, key_text(path), message))

    def stop(self, node: yaml.Node, path: KeyPath, message: str) -> NoReturn:
        raise OptionError([Problem(self.document.file, node.start_mark.line + 1, key_text(path), message)])

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            self.stop(node, path, f"more than {MAX_VALUES:,} values, aliases counted as often as they are used.")
        if len(self.open) >= MAX_DEPTH:
            self.stop(node, path[:1], "aliases nest values too deeply.")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if id(node) in self.open:
            self.problem(node, path, "an alias that contains itself.")
            return None
        self.open.add(id(node))
        expected = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"tag:yaml.org,2002:{expected}":
            self.bad_tag(node, path)
            result = None
        elif isinstance(node, yaml.MappingNode):
            result = self.mapping(node, path)
        else:
            result = []
            for index, item in enumerate(node.value):
                self.document.lines[(*path, index)] = item.start_mark.line + 1
                result.append(self.value(item, (*path, index)))
        self.open.discard(id(node))
        return result

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    values = self.value(source, path)
                    if isinstance(values, dict):
                        merged = {**values, **merged}
                    else:
                        self.problem(key_node, path, "`<<` takes a mapping, or a list of mappings.")
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and not is_text(key):
                self.problem(key_node, path, _NO_TEXT)
                continue
            if key is None or not key_node.tag.endswith(":str"):
                shown = "a list or mapping" if key is None else repr(key)
                self.problem(key_node, path, f"a key must be a name, found {shown}; put it in quotes if it is meant.")
                continue
            if key in first_line:
                self.problem(key_node, (*path, key), f"given twice; the first is on line {first_line[key]}.")
                continue
            first_line[key] = line
            own[key] = self.value(value_node, (*path, key))
            self.document.lines[(*path, key)] = line
        return {**merged, **own}

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, kind = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            if not is_text(text):
                self.problem(node, path, _NO_TEXT)
                return None
            return text
        if kind == "null" and _NULL.fullmatch(text):
            return None
        if kind == "bool" and _BOOL.fullmatch(text):
            return text.lower() == "true"
        if kind == "int" and _INT.fullmatch(text):
            digits = text.replace("_", "")
            # 64 binary digits are 20 decimal ones and 22 octal ones.
            significant = digits.lstrip("+-").removeprefix("0o").removeprefix("0x").lstrip("0")
            number = int(digits, {"0o": 8, "0x": 16}.get(digits[:2], 10)) if len(significant) < 25 else MAX_WHOLE
            if abs(number) >= MAX_WHOLE:
                shown = f"{text[:20]}... of {len(significant):,} digits" if len(text) > 40 else text
                self.problem(node, path, f"the whole number {shown} is too large.")
                return None
            return number
        if kind == "float" and (_FLOAT.fullmatch(text) or _INT.fullmatch(text)):
            return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        if kind in ("null", "bool", "int", "float"):
            self.problem(node, path, f"{text!r} is not {_WORDS[kind]}, as its tag says.")
        else:
            self.bad_tag(node, path)
        return None

    def bad_tag(self, node: yaml.Node, path: KeyPath) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.problem(
            node, path, f"the tag {tag} is not allowed here; values are text, numbers, true, false, ~, lists, maps."
        )


_NO_TEXT = "text with a NUL or half a character (a lone surrogate), which no name, path or file can hold."


def is_text(value: str) -> bool:
    """Whether `value` can be a name, a path and a line of a file: no NUL, no lone surrogate."""
    return "\0" not in value and not any("\ud800" <= sign <= "\udfff" for sign in value)
