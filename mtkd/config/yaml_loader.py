"""YAML as option files need it: every key with its line, numbers are numbers, nothing is executed.

The dialect is YAML 1.2's core schema, plus `1_000` with underscores: `2e-4` is a number (PyYAML alone
reads it as a string), `~` is null, only `true` and `false` are booleans (`yes`, `no`, `on` and `off` are strings).
Duplicate keys, tabs in the indentation, tags other than the core ones (`!!float 1e-4` is fine, `!!python/...` is not)
and files above 1 MB are errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mtkd.config.problems import OptionError, Problem
from mtkd.config.yaml_nodes import MAX_DEPTH, MAX_VALUES, RESOLVERS, Document, NodeReader
from mtkd.contracts import MtkdError
from mtkd.runtime.given import check_readable

MAX_BYTES = 1_000_000


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
            reader = NodeReader(document)
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
    for _name, _pattern in RESOLVERS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern.pattern})$"), None)
    _class.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])


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
