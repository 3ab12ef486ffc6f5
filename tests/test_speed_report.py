"""What benchmarks/speed.py stores is what its reports, and the README, say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"device": "A machine", "versions": {"torch": "2.0"}, "commit": "abc"}


def load(name: str) -> ModuleType:
    # By file, because benchmarks are scripts and no package that tests could import.
    spec = importlib.util.spec_from_file_location(f"speed_{name}", ROOT / f"benchmarks/measures/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


report, timing = load("report"), load("timing")


def record(**changes: Any) -> dict[str, Any]:
    section = timing.Section(
        title="A question",
        setting="What was done.",
        rows=[
            {"case": "slow", "seconds": 1234.5, "times": 1, "busy": None},
            {"case": "fast", "seconds": 0.12345, "times": 10000, "busy": 0.5},
        ],
        aims=[
            timing.Aim("slow / fast", 2.0, 10000.0),
            timing.Aim("fast / slow", 1.05, 1.2, at_least=False),
        ],
        notes=["Mind this."],
    )
    stored = json.loads(json.dumps(section.record()))
    return {**stored, "environment": ENVIRONMENT, "threads": 2, "command": "python speed.py", "seconds": 3, **changes}


def test_a_section_becomes_a_table_with_its_setting_verdicts_notes_and_machine() -> None:
    assert report.table(record()).splitlines() == [
        "## A question",
        "",
        "What was done.",
        "",
        "| case | seconds | times | busy |",
        "|---|---:|---:|---:|",
        "| slow | 1,234 | 1 | - |",
        "| fast | 0.123 | 10,000 | 0.5 |",
        "",
        "- slow / fast: 10,000, aim at least 2: met.",
        "- fast / slow: 1.2, aim at most 1.05: **missed**.",
        "- Mind this.",
        "",
        "Measured on A machine (2 CPU threads), torch 2.0, commit abc, with `python speed.py`.",
    ]


def test_the_summary_has_a_row_per_aim_and_says_what_was_never_measured() -> None:
    assert report.summary({"CPU": {"one": record(), "two": record(aims=[])}, "CUDA": {}}).splitlines() == [
        "| ratio | aim | CPU | CUDA |",
        "|---|---:|---:|---:|",
        "| slow / fast | >= 2 | 10,000 | not measured |",
        "| fast / slow | <= 1.05 | 1.2 (missed) | not measured |",
        "",
        "Measured on A machine (2 CPU threads), torch 2.0, commit abc, with `python speed.py`.",
    ]
    assert report.summary({"CPU": {}, "CUDA": {}}) == "Not measured yet."


def test_devices_with_different_aims_show_both() -> None:
    higher = [{"about": "slow / fast", "wanted": 3.0, "measured": 2.5, "at_least": True, "met": False}]
    lines = report.summary({"CPU": {"one": record()}, "CUDA": {"one": record(aims=higher)}}).splitlines()
    assert lines[2] == "| slow / fast | >= 2 / >= 3 | 10,000 | 2.5 (missed) |"


def test_sections_of_several_commits_name_them_all() -> None:
    later = record(environment={**ENVIRONMENT, "commit": "def"})
    assert "commit abc, def, with" in report.measured_on([record(), later])


def test_both_pages_are_written_and_text_around_the_marks_stays(tmp_path: Path) -> None:
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    results = {"CPU": {"one": record()}, "CUDA": {}}
    report.write(tmp_path, ["one", "two"], results)
    assert readme.read_text() == f"before\n{report.BEGIN}\n{report.summary(results)}\n{report.END}\nafter\n"
    page = (tmp_path / "benchmarks/results/speed.md").read_text()
    assert report.table(record()) in page
    assert "## two\n\nNot measured." in page and "# CUDA\n\nNot measured." in page


def test_the_readme_says_what_the_stored_results_say() -> None:
    results = report.stored(ROOT / "benchmarks/results")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{report.BEGIN}\n{report.summary(results)}\n{report.END}" in text
    if any(results.values()):
        page = (ROOT / "benchmarks/results/speed.md").read_text(encoding="utf-8")
        for sections in results.values():
            for stored in sections.values():
                assert report.table(stored) in page


def test_the_frames_a_second_of_the_page_are_those_that_were_measured() -> None:
    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("| \n").split("|")]

    section = (ROOT / "benchmarks/results/speed.md").read_text(encoding="utf-8").partition("## Deployed: frames")[2]
    measured = {}
    for line in section.splitlines():
        if line.startswith("| ") and line.count("|") == 10 and "---" not in line:
            network, params, _, form, *_, frames, _ = cells(line)
            measured[network, form] = params, frames
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8").partition("| network | parameters | torch |")
    head = cells(page[1] + page[2].partition("\n")[0])
    rows = [cells(line) for line in page[2].splitlines()[2:] if line.startswith("| ")]
    assert len(rows) == 6
    for network, params, *frames in rows:
        for form, shown in zip(head[2:], frames, strict=True):
            assert (params, shown) == (measured[network, form][0], f"{float(measured[network, form][1]):.0f}")


def test_cases_are_timed_in_turn_and_ratios_are_taken_round_by_round() -> None:
    calls: list[str] = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = timing.side_by_side(cases, "cpu", rounds=3, seconds=0.0, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert timing.ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]
    assert timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


@pytest.mark.parametrize(("at_least", "met"), [(True, False), (False, True)])
def test_an_aim_is_a_bound_from_below_or_from_above(at_least: bool, met: bool) -> None:
    assert timing.Aim("x", 2.0, 1.0, at_least=at_least).met is met
