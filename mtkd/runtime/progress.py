"""Progress of long jobs: images done, speed and the time that is left."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Log = Callable[[str], None]
T = TypeVar("T")

_SAY_EVERY = 30.0
"""Seconds between two lines of progress."""


def clock(seconds: float) -> str:
    """Whole seconds as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))


def on_terminal() -> bool:
    """Whether a bar can be drawn on the standard output: somebody watches it, and its lines can be drawn over.

    Not in a pipe or file, in a terminal that calls itself dumb, or in the log of a CI job, which may have a terminal
    that nobody sees.
    """
    if os.environ.get("TERM", "") in ("dumb", "unknown") or os.environ.get("CI", "") not in ("", "0", "false"):
        return False
    return sys.stdout.isatty()


class Progress:
    """Progress of a long job: a bar on a terminal, else a line after the first image, then every 30 seconds.

    Args:
        bar: draw the bar on a terminal.
        short: the job may be short: no line before 30 seconds, and none at the end, where the bar disappears.
    """

    def __init__(self, about: str, log: Log, *, bar: bool = True, short: bool = False) -> None:
        self.about, self.log, self._short = about, log, short
        self._began = time.perf_counter()
        self._said = self._began if short else 0.0
        self._bar = None
        if bar and on_terminal():
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(), transient=short)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, share: float | None = None) -> None:
        """`done` of `total` images are made, which is the `share` of the work."""
        share = done / total if share is None else share
        now = time.perf_counter()
        seconds = now - self._began
        left = f"{clock(seconds / share * (1 - share))} left" if done < total else f"in {clock(seconds)}"
        text = f"{self.about}: {done} of {total} images, {done / seconds:.3g} images/s, {left}"
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task(text, total=1.0)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=share, description=text)
        elif (done in (1, total) and not self._short) or now - self._said >= _SAY_EVERY:
            self._said = now
            self.log(text)


def tracked(items: Iterable[T], about: str) -> Iterable[T]:
    """`items`, with a bar on a terminal that disappears at the end."""
    if not on_terminal():
        return items
    from rich.markup import escape
    from rich.progress import track

    return track(items, description=escape(about), transient=True)
