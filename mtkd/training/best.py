"""The best weights of a run, by one metric on one validation set: `models/net_g_best.pth`.

The training state knows the best value of every metric, so that a resumed run goes on comparing. The weights of the
best are a file of their own, because their checkpoint may be gone, or never was: validations and checkpoints have
frequencies of their own.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.runtime.files import atomic
from mtkd.runtime.run_folder import BEST, RunFolder
from mtkd.training.checkpoint import damage
from mtkd.training.saving import save_weights

if TYPE_CHECKING:
    from mtkd.config import Options
    from mtkd.training.run import Run


class Score(NamedTuple):
    """A value of the metric that decides.

    Attributes:
        dataset: key of the validation set.
        metric: its column.
        value: the mean over the images of the set.
        step: iteration of the weights.
    """

    dataset: str
    metric: str
    value: float
    step: int


def judge(options: Options) -> tuple[str, str] | None:
    """The validation set and the metric that decide which weights are the best: `val.best_set` and `val.best_metric`,
    else the first of each; None where nothing is measured.
    """
    sets, metrics = options.val_sets, options.val.metrics
    if not sets or not metrics:
        return None
    return options.val.best_set or next(iter(sets)), options.val.best_metric or next(iter(metrics))


def best_score(run: Run) -> Score | None:
    """The best value so far of the metric that decides; None before the first validation."""
    if (key := judge(run.options)) is None:
        return None
    found = run.state.best.get(key[0], {}).get(key[1])
    return None if found is None else Score(*key, found["val"], found["iter"])


def is_better(options: Options, metric: str, value: float, than: float) -> bool:
    """Whether `value` of `metric` is at least as good as `than`: the later of equals counts. NaN is never good."""
    if math.isnan(value) or math.isnan(than):
        return not math.isnan(value)
    return value >= than if options.val.metrics[metric]["better"] == "higher" else value <= than


def note_best(run: Run, name: str, means: Mapping[str, float], done: int) -> dict[str, Any]:
    """The best values so far of the set `name`, those of iteration `done` among them."""
    for metric, value in means.items():
        best = run.state.best.setdefault(name, {})
        if metric not in best or is_better(run.options, metric, value, best[metric]["val"]):
            best[metric] = {"val": value, "iter": done}
    return run.state.best[name] if means else {}


def save_best(run: Run, done: int) -> None:
    """Write `net_g_best.pth` when iteration `done`, just validated, is the best so far; rank 0 only.

    A run that is killed after it and before the state is written validates again when it is resumed.
    """
    best = best_score(run)
    if run.options.logger.save_best and best is not None and best.step == done and not math.isnan(best.value):
        save_weights(run, done, name=BEST)


def restore_best(run: Run, source: RunFolder) -> list[str]:
    """Make `net_g_best.pth` fit the state that the run goes on from; lines for the log. Rank 0 only.

    The file is of a later iteration where the run was killed after a validation between two checkpoints, and missing
    where the run began without `save_best` or in another folder. The checkpoint of the best iteration brings it back.

    Args:
        source: the folder that the state is read from.
    """
    best, target = best_score(run), run.folder.model(BEST)
    if not run.options.logger.save_best or best is None or _iteration(target) == best.step:
        return []
    for path in (source.model(best.step), source.model(BEST)):
        if damage(path) is None and _iteration(path) == best.step:
            with atomic(target) as temporary:
                shutil.copyfile(path, temporary)
            return []
    there = "is of another iteration" if target.exists() else "is missing"
    return [
        f"{target} {there}, and the weights of the best so far ({text(best)}) are not kept elsewhere. The next "
        "validation that is as good writes it."
    ]


def is_kept(run: Run) -> bool:
    """Whether `net_g_best.pth` holds the best weights so far."""
    best = best_score(run)
    return best is not None and _iteration(run.folder.model(BEST)) == best.step


def _iteration(path: Path) -> int | None:
    """Of the weights in a file; None where it is missing, or cannot be read."""
    if not path.is_file():
        return None
    try:
        found = zoo.read_checkpoint(path).facts.get("iteration")
    except MtkdError:
        return None
    return found if isinstance(found, int) else None


def text(score: Score) -> str:
    """`score` for a reader."""
    return f"{score.metric} {score.value:.4f} on {score.dataset} at iteration {score.step:,d}"
