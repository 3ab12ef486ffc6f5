"""The bar of a run: what it shows, how seldom it is drawn, and where there is none."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from mtkd.runtime.progress import on_terminal
from mtkd.training import bar as bar_module
from mtkd.training.bar import EVERY, TrainingBar
from mtkd.training.log import RunLog


class Screen:
    """A terminal of `width` columns, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int = 120) -> None:
        self.now = 100.0
        self.console = Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False)
        monkeypatch.setattr(bar_module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    @property
    def lines(self) -> list[str]:
        """All that was ever drawn, without colours and movements."""
        assert isinstance(self.console.file, io.StringIO)
        text = self.console.file.getvalue().replace("\r", "\n")
        plain = [Text.from_ansi(line).plain.strip() for line in text.split("\n")]
        return [line for line in plain if line]


def test_it_shows_iterations_pace_loss_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    bar = TrainingBar("edsr", 4000, 1000, console=screen.console)
    for done in range(1001, 1041):
        screen.now += 0.05
        bar.step(done)
    bar.loss(0.01234567)
    bar.score("psnr", 30.2)
    bar.score("psnr", 30.2, 30.125)
    bar.close()
    assert any("/4000 20.0 it/s" in line for line in screen.lines), screen.lines
    assert any(line.endswith("psnr 30.20") for line in screen.lines)
    last = screen.lines[-1]
    assert last.startswith("edsr ") and "1040/4000" in last
    assert "loss 0.0123" in last and last.endswith("psnr 30.12 (best 30.20)")


def test_a_pause_is_no_slower_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    bar = TrainingBar("edsr", 4000, console=screen.console)
    for done in (1, 2, 3):
        screen.now += 0.5
        bar.step(done)
    bar.pause("validating")
    assert "3/4000 validating" in screen.lines[-1]
    screen.now += 600.0
    bar.step(4)
    screen.now += 0.5
    bar.step(5)
    bar.step(6)  # at the same moment: drawn at the next one
    assert "5/4000 2.0 it/s" in screen.lines[-1]
    bar.close()
    assert "6/4000" in screen.lines[-1]


def test_it_is_drawn_a_few_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, drawn = Screen(monkeypatch), []
    bar = TrainingBar("edsr", 100_000, console=screen.console)
    monkeypatch.setattr(bar._progress, "refresh", lambda: drawn.append(screen.now))
    for done in range(1, 10_001):
        screen.now += 0.001
        bar.step(done)
    assert 10 / EVERY * 0.9 <= len(drawn) <= 10 / EVERY
    bar.close()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_stand_above_it_as_they_are(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Not broken at the width, not coloured, no [markup] and no :smile: read into them; numbers are never cut."""
    screen = Screen(monkeypatch, width)
    bar = TrainingBar("a_run_with_a_rather_long_name_x4", 250_000, console=screen.console)
    line = "[a_run..][epoch:  1, iter: 100, lr:(1.000e-03,)] [red]:smile: " + "pixel: 1.8542e-01 " * 8
    bar.print(line)
    screen.now += 1
    bar.step(249_000)
    bar.loss(0.0123)
    bar.score("psnr", 30.25, 30.11)
    bar.close()
    assert line.strip() in screen.lines
    assert "249000/250000" in screen.lines[-1] and screen.lines[-1].endswith("psnr 30.11 (best 30.25)")
    assert all(len(drawn) <= width for drawn in screen.lines if "/250000" in drawn)


@pytest.mark.parametrize(
    ("variables", "there"),
    [
        ({}, True),
        ({"TERM": "dumb"}, False),
        ({"CI": "true"}, False),
        ({"CI": "false"}, True),
        ({"NO_COLOR": "1"}, True),
    ],
)
def test_where_there_is_a_bar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    there: bool,
) -> None:
    made: list[str] = []
    monkeypatch.setattr(bar_module, "TrainingBar", lambda name, *_: made.append(name) or SimpleNamespace(close=list))
    for name in ("CI", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def log(rank: int = 0) -> list[str]:
        made.clear()
        RunLog(tmp_path, name="tiny", total_steps=8, rank=rank).close()
        return list(made)

    assert log() == []  # a pipe
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert on_terminal() is there
    assert log() == (["tiny"] if there else [])
    assert log(rank=1) == []


def test_without_a_bar_the_log_is_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(None, name="tiny", total_steps=8)
    log.start_clock(0)
    log.step(1)
    log.pause("validating")
    log.score("psnr", 30.0)
    log.info("[red] a line")
    assert capsys.readouterr().out == "[red] a line\n"
