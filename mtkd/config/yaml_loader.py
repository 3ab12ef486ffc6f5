"""YAML as option files need it: every key knows its line, numbers are numbers, nothing is executed.

The dialect is YAML 1.2's core schema, plus `1_000` as BasicSR's files may write it: `2e-4` is a number (PyYAML alone
reads it as a string), `~` is null, only `true` and `false` are booleans (`yes`, `no`, `on` and `off` are strings).
Duplicate keys, tabs in the indentation, tags other than the core ones (`!!float 1e-4` is fine, `!!python/...` is not)
and files above 1 MB are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mtkd.contracts import MtkdError
from mtkd.runtime.given import check_readable

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
"""Most values in one file: no run takes as many, and aliases of aliases can name more than memory holds."""

MAX_DEPTH = 50

MAX_WHOLE = 2**64
"""Whole numbers are smaller than this. Python itself refuses to write, or to read, those of some thousand digits."""

PROBLEMS_SHOWN = 100
"""Most problems that the text of an `OptionError` lists."""

KeyPath = tuple[str | int, ...]
"""Where a value stands: ("train", "scheduler", "milestones", 0)."""


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


@dataclass
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and the line on which each key or list item stands.

    `files` names the file of those lines that are not in `file`.
    """

    data: Any
    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    files: dict[KeyPath, str] = field(default_factory=dict)


def load(path: str | Path) -> Document:
    """The one YAML document in the file at `path`.

    Raises:
        OptionError: the file cannot be read or is no YAML of the dialect above; all duplicate keys, bad tags and bad
            values are listed, a syntax error alone.
    """
    file = str(path)

    def fail(message: str) -> OptionError:
        return OptionError([Problem(file, None, "", message)])

    try:
        check_readable(Path(path))
        with open(path, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise fail("no such file.") from None
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror}.") from None
    except MtkdError as error:
        raise fail(str(error)) from None
    if len(raw) > MAX_BYTES:
        raise fail(f"larger than {MAX_BYTES // 1_000_000} MB; this is not an option file.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fail(f"not UTF-8 text (byte {error.start}); this is not an option file.") from None
    document = parse(text, file)
    if document.data is None:
        raise fail("empty.")
    return document


def parse(text: str, file: str = "<text>") -> Document:
    """`load` for YAML already in memory; an empty text gives `data` None."""
    document = Document(None, file)
    try:
        node = yaml.compose(text, _Dialect)
        if node is not None:
            reader = _NodeReader(document)
            document.data = reader.value(node, ())
            if reader.problems:
                raise OptionError(reader.problems)
    except yaml.MarkedYAMLError as error:
        raise OptionError([_syntax_problem(error, text, file)]) from None
    except yaml.YAMLError as error:
        raise OptionError([Problem(file, None, "", f"not YAML: {' '.join(str(error).split())}.")]) from None
    return document


def dump(data: Any) -> str:
    """`data` as YAML of this dialect: what `parse` reads back equal, in the given order of keys."""
    return yaml.dump(
        data, Dumper=_DialectDumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120
    )


_INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_RESOLVERS = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT))


class _Dialect(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}
    depth = count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=self.peek_event().start_mark)
        if self.count > 2 * MAX_VALUES:  # keys and values
            problem = f"more than {MAX_VALUES:,} values, this is not an option file"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _DialectDumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[Any, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Dialect, _DialectDumper):
    for _name, _pattern in _RESOLVERS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern.pattern})$"), None)
    _class.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])


class _NodeReader:
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
            self.problem(node, path, f"{text!r} is no {kind}.")
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


def key_text(path: KeyPath) -> str:
    """`train.scheduler.milestones[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    message = f"not YAML: {error.problem or error.context}."
    if line is not None and (lines := text.splitlines()) and line <= len(lines):
        source = lines[line - 1]
        if "\t" in source[: len(source) - len(source.lstrip())] or "'\\t'" in message:
            message = "a tab; YAML takes spaces only."
    if "another document" in message:
        message = "a second document starts here (`---`); an option file is one document."
    return Problem(file, line, "", message)
