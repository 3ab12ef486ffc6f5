"""The bar of a run on a terminal: iteration, loss, iterations a second, time left, last and best score.

It is drawn from the training's own thread, a few times a second, from numbers that the host has: it starts no thread
and never waits for the device. Lines of the log go through its console, so that they stand above it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 0.25
"""Seconds between two drawings."""
_SMOOTH = 12
"""Drawings over which the pace is taken."""
_FOR_THE_NAME, _FOR_THE_LOSS = 100, 75
"""Columns of a terminal from which on the bar shows them."""
_LONGEST = 24
"""Letters of a run's name that are shown."""


class TrainingBar:
    """A bar of `total` iterations, which this process begins at `start`.

    Args:
        console: where it is drawn; the terminal by default.
    """

    def __init__(self, name: str, total: int, start: int = 0, *, console: Console | None = None) -> None:
        # Where not all has room, numbers come before the name, which the lines above the bar tell.
        width = (console := console or get_console()).width
        self._progress = Progress(
            *([TextColumn("{task.description}", markup=False)] if width >= _FOR_THE_NAME else []),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            TimeRemainingColumn(),
            *([TextColumn("{task.fields[loss]}", markup=False)] if width >= _FOR_THE_LOSS else []),
            TextColumn("{task.fields[score]}", markup=False),
            console=console,
            auto_refresh=False,
            expand=True,
            # The speed of the last minutes: validations are part of the time that is left.
            speed_estimate_period=300.0,
        )
        shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        self._task = self._progress.add_task(shown, total=total, completed=start, pace="", loss="", score="")
        self._done, self._drawn = start, float("-inf")
        self._recent: deque[tuple[float, int]] = deque(maxlen=_SMOOTH)
        self._progress.start()

    def step(self, done: int) -> None:
        """Iteration `done` is complete, as far as the host knows."""
        self._done, now = done, time.perf_counter()
        if now - self._drawn < EVERY:
            return
        self._drawn = now
        fields: dict[str, Any] = {}
        if self._recent and done > self._recent[0][1]:
            since, before = self._recent[0]
            fields["pace"] = pace(done - before, now - since)
        self._recent.append((now, done))
        self._progress.update(self._task, completed=done, refresh=True, **fields)

    def loss(self, value: float) -> None:
        """The weighted sum of the terms, averaged as in the log's last line."""
        self._progress.update(self._task, loss=f"loss {value:.3g}")

    def score(self, metric: str, best: float, last: float | None = None) -> None:
        """The best value of the metric that decides, and that of the last validation."""
        shown = f"{metric} {best:.2f}" if last is None else f"{metric} {last:.2f} (best {best:.2f})"
        self._progress.update(self._task, score=shown, refresh=True)

    def pause(self, what: str) -> None:
        """Training stands still for `what`, which counts for no pace."""
        self._recent.clear()
        self._progress.update(self._task, completed=self._done, pace=what, refresh=True)

    def print(self, text: str) -> None:
        """Print `text` as it is above the bar."""
        self._progress.console.out(text, highlight=False)

    def close(self) -> None:
        """Leave the bar as it stands, and give the terminal back."""
        self._progress.update(self._task, completed=self._done, pace="")
        self._progress.stop()


def pace(iterations: int, seconds: float) -> str:
    """Iterations a second, or seconds an iteration where that is more than one.

    Example:
        >>> pace(50, 2.0), pace(1, 4.0)
        ('25.0 it/s', '4.0 s/it')
    """
    rate = iterations / max(seconds, 1e-9)
    return f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"
