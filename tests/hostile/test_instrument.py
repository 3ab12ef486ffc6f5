"""The instrument sees what it is there for: each kind of failure is staged once, in a child of this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile import sandbox, soak
from tests.hostile.cases import Case, Outcome, judge, keep, load
from tests.hostile.kills import compare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, pidfds and /proc")]


def misbehave(facts: Mapping[str, Any]) -> None:
    exec(facts["do"], {"os": os, "subprocess": subprocess, "time": time, "sys": sys, "Path": Path, "np": np})


@pytest.fixture(autouse=True)
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sandbox.BEFORE, "misbehave", misbehave)


def ended(folder: Path, do: str = "pass", *commands: tuple[str, ...], seconds: float = 20.0) -> tuple[Case, Outcome]:
    case = Case("staged", commands or (("--version",),), before="misbehave", facts={"do": do})
    return case, sandbox.run(case, folder, folder / "case", seconds=seconds)


@pytest.mark.parametrize(
    ("do", "verdict"),
    [
        ("pass", "accepted"),
        ("os.system('true')", "execution"),
        ("subprocess.run(['touch', 'x'])", "execution"),
        ("os.posix_spawn('/bin/true', ['true'], {})", "execution"),
        ("open('PWNED', 'w').close()", "execution"),
        ("os.makedirs('a/b'); open('a/b/PWNED_x', 'w').close()", "execution"),
        ("subprocess.run(['git', '--version'])", "accepted"),
        ("raise ValueError('x')", "traceback"),
        ("print('Traceback (most recent call last):', file=sys.stderr)", "traceback"),
        ("import mtkd.cli; mtkd.cli._run = lambda argv: 1 // 0", "traceback"),
        ("os.kill(os.getpid(), 11)", "crash"),
        ("os.abort()", "crash"),
        ("time.sleep(60)", "hang"),
    ],
)
def test_a_failure_is_called_by_its_name(tmp_path: Path, do: str, verdict: str) -> None:
    case, outcome = ended(tmp_path, do, seconds=1.5 if verdict == "hang" else 20.0)
    assert judge(case, outcome) == verdict, outcome


def test_a_refusal_is_no_failure_and_exit_1_is_one(tmp_path: Path) -> None:
    case, outcome = ended(tmp_path, "pass", ("train",))
    assert (outcome.codes, judge(case, outcome)) == ((2,), "refused")
    case, outcome = ended(tmp_path, "pass", ("config", "diff", "missing.yml", "missing.yml"))
    assert judge(case, outcome) == "refused"
    case, outcome = ended(tmp_path, "import mtkd.cli; mtkd.cli._run = lambda argv: 1", ("zoo", "info", "x"))
    assert judge(case, outcome) == "traceback"


def test_memory_files_and_the_network_are_bounded(tmp_path: Path) -> None:
    do = """
try:
    np.ones(1 << 33, np.uint8)
    raise SystemExit('memory')
except MemoryError:
    pass
try:
    with open('large', 'wb') as file:
        file.truncate(1 << 40)
    raise SystemExit('file')
except OSError:
    pass
import socket
try:
    socket.create_connection(('192.0.2.1', 80), 1)
    raise SystemExit('network')
except OSError as error:
    assert error.errno == 101, error
"""
    case, outcome = ended(tmp_path, do)
    assert judge(case, outcome) == "accepted", outcome


def test_an_oracle_runs_whatever_came_before_and_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sandbox.CHECKS, "@says", lambda code, arguments, facts: f"{code} {arguments[0]}")
    case, outcome = ended(tmp_path, "pass", ("nothing",), ("@says", "x"))
    assert (outcome.wrong, judge(case, outcome)) == ("2 x", "wrong")


def test_what_check_accepts_and_the_run_refuses_is_found_late() -> None:
    case = Case("staged", (("check", "x.yml"), ("train", "-opt", "x.yml")))
    outcome = Outcome(Path(), (0, 2), 0, False, (), "", "mtkd: no.", "", 0.1)
    assert judge(case, outcome) == "late"


def test_a_process_ends_itself_at_the_file_event_that_was_asked_for(tmp_path: Path) -> None:
    do = "[open(f'{k}', 'w').close() for k in range(9)]"
    for k in (1, 4):
        folder = tmp_path / str(k)
        folder.mkdir()
        child = sandbox.start(
            (("--version",),), folder, before="misbehave", facts={"do": do}, kill=sandbox.Kill(event=k)
        )
        assert child.wait().signal == 9
        assert len(list(folder.iterdir())) == k - 1
    child = sandbox.start((("--version",),), folder, before="misbehave", facts={"do": do})
    assert (child.wait().code, child.events) == (0, 9)


def test_a_kept_case_is_the_case_again(tmp_path: Path) -> None:
    ground, root = tmp_path / "ground", tmp_path / "kept"
    case = Case(
        "images",
        (("upscale", f"{ground}/x.png", "o"),),
        {"a/b.yml": f"root: {ground}".encode(), "z": b"\0\xff"},
        (("x", "y"),),
        "",
        {"n": 1},
    )
    outcome = Outcome(tmp_path, (99,), 0, False, (), "", "", "", 0.1)
    folder = keep(case, outcome, "traceback", ground, root)
    again = load(folder, tmp_path / "elsewhere")
    assert again.commands[0][1] == f"{tmp_path}/elsewhere/x.png"
    assert again.files == {"a/b.yml": f"root: {tmp_path}/elsewhere".encode(), "z": b"\0\xff"}
    assert (again.kind, again.trees, dict(again.facts)) == (case.kind, case.trees, case.facts)
    assert f"--repeat {folder.name}" in (folder / "said.txt").read_text()


def test_differences_of_results_are_named() -> None:
    wanted = {"w": {"a": "1", "b": float("nan")}, "m": [1, 2]}
    assert list(compare(wanted, {"w": {"a": "1", "b": float("nan")}, "m": [1, 2]})) == []
    found = list(compare(wanted, {"w": {"a": "2"}, "m": [1, 3], "x": 0}))
    assert [line.split(" ")[0] for line in found] == ["w/a/", "w/b", "m/1/", "x"]


def test_the_page_takes_the_figures_between_its_markers() -> None:
    result = {
        "minutes": 1, "seed": 2, "workers": 2, "environment": {"device": "d", "versions": {"torch": "t",
            "python": "p"}, "commit": "c", "date": "2026-01-01T"},
        "counts": {"images": {"refused": 3, "wrong": 1}, "kills": {"runs": 2, "kills": 5, "code": 1}},
    }  # fmt: skip
    page = soak.with_figures(f"a\n{soak.BEGIN}\nold\n{soak.END}\nb\n", result)
    assert "old" not in page and page.startswith("a\n") and page.endswith(f"{soak.END}\nb\n")
    assert "| images | 4 | 3 | 0 | 0 | 0 | 0 | 0 | 1 | 0 |" in page
    assert "| 2 | 5 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 0 |" in page


def test_the_page_holds_the_figures_of_the_stored_result() -> None:
    page = soak.PAGE.read_text(encoding="utf-8")
    assert soak.with_figures(page, json.loads(soak.RESULT.read_text(encoding="utf-8"))) == page
