"""The networks that come with the package: `NAME.safetensors` here, described by `index.json`.

`benchmarks/ship_students.py` writes both, and a card of each, from runs of the grids `benchmarks/students_x*.yml`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@cache
def index() -> dict[str, dict[str, Any]]:
    """Name -> what `mtkd.zoo.table.Entry` says of it, `sha256` and `size` of its file, and its scores."""
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def file_of(name: str) -> Path:
    """Where the weights of the student `name` lie in the package."""
    return FOLDER / f"{name}.safetensors"


def card_of(name: str) -> Path:
    """Where the card of the student `name` lies in the package."""
    return FOLDER / f"{name}.md"
