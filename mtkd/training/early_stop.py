"""`train.early_stop`: a run ends when its validations have stopped getting better.

It counts in validations and lives in the training state, so that a resumed run ends at the same iteration.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mtkd.training.best import judge

if TYPE_CHECKING:
    from mtkd.training.run import Run


def count_validation(run: Run, value: float, done: int) -> None:
    """Note `value` of the metric that decides, measured at iteration `done`.

    It is progress when it is better than the last progress by more than `min_delta`; the first value always is. NaN
    never is.
    """
    settings, key = run.options.training.early_stop, judge(run.options)
    if settings is None or key is None:
        return
    before = run.state.progress
    gain = value - before["val"] if before else math.inf
    if run.options.val.metrics[key[1]]["better"] == "lower":
        gain = -gain if before else gain
    if not math.isnan(value) and (not before or math.isnan(before["val"]) or gain > settings.min_delta):
        run.state.progress = {"val": value, "iter": done, "since": 0}
    elif before:
        run.state.progress = {**before, "since": before["since"] + 1}
    else:
        run.state.progress = {"val": value, "iter": done, "since": 1}


def is_over(run: Run) -> bool:
    """Whether the run has had its `patience` of validations without progress."""
    settings = run.options.training.early_stop
    return settings is not None and run.state.progress.get("since", 0) >= settings.patience


def why(run: Run) -> str:
    """A line for the log of a run that is over."""
    settings, key, progress = run.options.training.early_stop, judge(run.options), run.state.progress
    assert settings is not None and key is not None
    beyond = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
    return (
        f"Stopped early at iteration {run.state.done:,d} of {run.options.training.total_iter:,d}: {key[1]} on {key[0]} "
        f"has not become better{beyond} in {progress['since']} validations, since {progress['val']:.4f} at iteration "
        f"{progress['iter']:,d} (train.early_stop). The run is finished."
    )
