"""What long jobs say of themselves."""

from __future__ import annotations

import pytest

from mtkd.runtime import progress
from mtkd.runtime.progress import Progress


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    return clock


def lines_of(clock: Clock, *, short: bool, seconds: float, images: int) -> list[str]:
    said: list[str] = []
    with Progress("upscaling", said.append, short=short) as work:
        for done in range(1, images + 1):
            clock.now += seconds
            work(done, images)
    return said


def test_a_job_says_how_far_it_is_and_how_long_it_takes(clock: Clock) -> None:
    assert lines_of(clock, short=False, seconds=10, images=6) == [
        "upscaling: 1 of 6 images, 0.1 images/s, 0:00:50 left",
        "upscaling: 4 of 6 images, 0.1 images/s, 0:00:20 left",
        "upscaling: 6 of 6 images, 0.1 images/s, in 0:01:00",
    ]


def test_a_job_that_may_be_short_says_nothing_unless_it_is_long(clock: Clock) -> None:
    assert lines_of(clock, short=True, seconds=0.5, images=40) == []
    assert lines_of(clock, short=True, seconds=10, images=7) == [
        "upscaling: 3 of 7 images, 0.1 images/s, 0:00:40 left",
        "upscaling: 6 of 7 images, 0.1 images/s, 0:00:10 left",
    ]


def test_a_terminal_has_a_bar_that_shows_the_share_of_the_work(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    said: list[str] = []
    with Progress("upscaling", said.append, short=True) as work:
        clock.now += 10
        work(1, 4, 0.5)
        bar = work._bar
        assert bar is not None
        (task,) = bar.tasks
        assert task.completed == 0.5 and "1 of 4 images" in task.description and "0:00:10 left" in task.description
        assert bar.live.transient
    assert said == []
