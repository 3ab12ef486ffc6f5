"""The tables of the pages are those of the kept results, and these are of the grids as they stand."""

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
def test_the_figure_shows_the_kept_results(tmp_path: Path) -> None:
    import readme_figure

    drawn = readme_figure.kept(readme_figure.FIGURE.read_text(encoding="utf-8"))
    made = readme_figure.gains()
    assert [row["label"] for row in drawn] == [row["label"] for row in made]
    for key in ("gain", "low", "high"):
        assert [row[key] for row in drawn] == pytest.approx([row[key] for row in made], abs=0.0021)
    for name in ("one.svg", "two.svg"):
        readme_figure.draw(made, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert readme_figure.kept((tmp_path / "one.svg").read_text()) == made


@pytest.mark.slow
@pytest.mark.parametrize(("page", "tables"), [("README.md", 3), ("docs/results.md", 6)])
def test_the_pages_show_the_kept_results(page: str, tables: int) -> None:
    import readme_tables

    assert ROOT / page in readme_tables.PAGES
    text = (ROOT / page).read_text(encoding="utf-8")
    made = readme_tables.written(text)
    assert len(readme_tables.PLACE.findall(text)) >= tables
    assert NUMBER.sub("#", made) == NUMBER.sub("#", text)
    # Other versions of numpy and scipy may round the last digit otherwise.
    numbers = [[float(number) for number in NUMBER.findall(one)] for one in (made, text)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.0021)


@pytest.mark.slow
def test_what_the_text_says_of_all_pairs_is_that_of_the_kept_results() -> None:
    import readme_tables

    found = {(one.row, one.baseline): one for one in readme_tables.pairs("cpu_x4", "edsr_32x4, x4, 24,000")}
    text = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    best = "MTKD, our recipe, mean"
    for below, told in (
        ("MTKD, paper's loss, mean", "The paper's loss on the same mean is (.*?) below the recipe"),
        ("the recipe's loss on gt", "The recipe's loss on ground truth is (.*?) below the recipe"),
    ):
        (said,) = re.findall(told, text)
        one = found[best, below]
        assert [float(number) for number in NUMBER.findall(said)] == pytest.approx(
            [one.gain, *one.interval], abs=0.0021
        )
    assert found[best, "L1(T), mean"].verdict == "better"
    for alike in (
        (best, "MTKD, our recipe, HiT-SR"),
        ("MTKD, our recipe, fused", best),
        (best, "L1(gt) + L1(T), HiT-SR"),
        (best, "L1(gt) + L1(T), mean"),
        ("L1(T), HiT-SR", "L1(gt) + L1(T), HiT-SR"),
        ("L1(T), mean", "L1(gt) + L1(T), mean"),
    ):
        assert found[alike].interval[0] < 0 < found[alike].interval[1]
