"""Suggestions for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """At most `most` of the `known` names that are spelled like `name`, the nearest first."""
    return difflib.get_close_matches(name, list(dict.fromkeys(known)), n=most, cutoff=0.5)
