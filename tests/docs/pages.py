"""What the pages of the repository hold: headings, links, blocks of code, commands. All tests of pages read it here."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "datasets/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES = [str(file.relative_to(ROOT)) for file in FILES]
"""Every page, by its path in the repository."""

NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
"""Stands on the line before a block that the tests leave alone, and says why."""

SHELLS = ("sh", "bash", "shell", "console")


def module_of_the_site(name: str) -> ModuleType:
    """A module of docs/site, which no package holds."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / f"docs/site/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Block(NamedTuple):
    """A block of code."""

    page: str
    line: int
    """Of its first line, from 1."""
    language: str
    """As the fence says; empty without one."""
    text: str
    not_run: str | None
    """Why the tests leave it alone."""

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """One command of a block, in words, without redirections."""

    where: str
    words: list[str]


@functools.cache
def tokens(page: str) -> list[Token]:
    """The page as CommonMark with tables, as repository hosts read it."""
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def inline(page: str) -> Iterator[Token]:
    """Links, images, pieces of code and text of the running text."""
    for token in tokens(page):
        yield from token.children or ()


def anchors(page: str) -> set[str]:
    """Names of its headings as repository hosts make them: lower case, without punctuation, hyphens for spaces."""
    found: set[str] = set()
    every = tokens(page)
    for token, following in zip(every, every[1:], strict=False):
        if token.type == "heading_open":
            text = "".join(child.content for child in following.children or ())
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = next(n for n in range(len(every)) if (name if n == 0 else f"{name}-{n}") not in found)
            found.add(name if number == 0 else f"{name}-{number}")
    return found


def links(page: str) -> Iterator[str]:
    """Targets of its links and images."""
    for token in inline(page):
        target = token.attrGet({"link_open": "href", "image": "src"}.get(token.type, ""))
        if target is not None:
            yield str(target)


def spans(page: str) -> Iterator[str]:
    """Code in running text."""
    return (token.content for token in inline(page) if token.type == "code_inline")


def blocks(page: str) -> Iterator[Block]:
    """Its blocks of code, fenced and indented."""
    before: Token | None = None
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            said = NOT_RUN.fullmatch(before.content.strip()) if before and before.type == "html_block" else None
            line = token.map[0] + (2 if token.type == "fence" else 1)
            yield Block(page, line, token.info.strip(), token.content, said[1] if said else None)
        before = token


def commands(page: str) -> Iterator[Command]:
    """Every command of its blocks."""
    for block in blocks(page):
        yield from commands_of(block)


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block of shell, or those of mtkd, make and python in one without a language."""
    if block.language not in (*SHELLS, ""):
        return
    for number, line in enumerate(_joined(block.text)):
        if not block.language:
            if not re.match(r"(\.venv/bin/)?mtkd |make |(\.venv/bin/)?python -m ", line):
                continue
            line = re.split(r"  +", line.replace("[", "").replace("]", ""))[0]
        for program, *words in _commands_of(line):
            yield Command(f"{block.page}:{block.line + number}", [program.removeprefix(".venv/bin/"), *words])


def _joined(text: str) -> list[str]:
    r"""Lines, with those that end in \ as one (and empty ones after it, so that numbers stay)."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1] + line.strip()
        else:
            lines.append(line)
    return lines


def _commands_of(line: str) -> Iterator[list[str]]:
    """The commands that a line of shell joins by &&, ; or |."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    to_file = False
    for word in lexer:
        if to_file:
            to_file = False
        elif word in (">", ">>", "<"):
            to_file = True
        elif set(word) <= set(";&|"):
            if words:
                yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words
