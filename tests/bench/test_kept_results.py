"""README's tables are those of the kept results, and these are of the grids as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[-+]?\d+\.\d+")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


@pytest.mark.slow
def test_readme_shows_the_kept_results() -> None:
    import readme_tables

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = readme_tables.written(text)
    assert len(readme_tables.PLACE.findall(text)) >= 2
    assert NUMBER.sub("#", made) == NUMBER.sub("#", text)
    # Other versions of numpy and scipy may round the last digit otherwise.
    numbers = [[float(number) for number in NUMBER.findall(one)] for one in (made, text)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.0021)
