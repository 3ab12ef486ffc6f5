"""Texts of a grid file that stand for something: words and parts of a run in braces, links to what is made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mtkd.contracts import MtkdError

_PART = re.compile(r"\{(\d+)/(\d+)(?:\+(\d+))?\}")
LINK = re.compile(r"(target|run|row):([\w.-]+)")
_NEARLY = re.compile(r"(targets|runs|rows):([\w.-]+)")


def fill(tree: Any, values: Mapping[str, Any]) -> Any:
    """`tree` with {word} replaced in its texts, and {a/b+c} by that part of `iterations`; a text that is one word alone
    becomes the value itself.
    """
    if isinstance(tree, dict):
        return {key: fill(item, values) for key, item in tree.items()}
    if isinstance(tree, list):
        return [fill(item, values) for item in tree]
    if not isinstance(tree, str) or "{" not in tree:
        return tree
    for word, value in values.items():
        if tree == f"{{{word}}}":
            return value
        tree = tree.replace(f"{{{word}}}", str(value))
    if "iterations" in values:

        def part(found: re.Match[str]) -> str:
            above, below, more = int(found[1]), int(found[2]), int(found[3] or 0)
            if below == 0:
                raise MtkdError(f"{found[0]}: a part of a run is {{a/b}} with b above 0.")
            return str(round(values["iterations"] * above / below) + more)

        whole = _PART.fullmatch(tree)
        return int(part(whole)) if whole else _PART.sub(part, tree)
    return tree


def links(tree: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of every `target:`, `run:` and `row:` in a tree of plain values; `targets:` and the like too."""
    if isinstance(tree, dict | list):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from links(item)
    elif isinstance(tree, str) and (found := LINK.fullmatch(tree) or _NEARLY.fullmatch(tree)):
        yield found[1], found[2]
