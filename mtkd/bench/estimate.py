"""What a grid will cost: its cells, what they need, hours from a timed minute, and disk."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mtkd.bench.cells import weights_path
from mtkd.bench.jobs import Job, Plan, options_of
from mtkd.bench.scores import supervised, test_options
from mtkd.build import build_image_set
from mtkd.config import Options, make_options
from mtkd.contracts import MtkdError
from mtkd.inference.evaluate import build_metrics, evaluate
from mtkd.runtime.progress import clock
from mtkd.runtime.run_folder import LATEST, RunFolder
from mtkd.targets.combine import combine
from mtkd.targets.store_check import size_text
from mtkd.training.loop import train_step
from mtkd.training.prepare import prepare
from mtkd.training.run import Run
from mtkd.training.saving import save_weights

MINUTE = 60.0
"""Seconds that the steps of all kinds of cells are timed in, together."""


@dataclass(frozen=True)
class Cost:
    """Of one cell or shared run, whatever its length.

    Attributes:
        step: seconds of an iteration.
        validation: seconds of one.
        test: seconds of the test of a cell, 0 for a shared run.
        weights: bytes of a file of weights.
        state: bytes of a training state.
    """

    step: float
    validation: float
    test: float
    weights: int
    state: int

    def of(self, options: Options) -> tuple[float, int]:
        """Seconds and bytes of a run of `options`."""
        total, logger = options.training.total_iter, options.logger
        validations = max(total // (options.val.val_freq or total), 1)
        checkpoints = -(-total // logger.save_checkpoint_freq)
        if logger.keep_last is not None:
            checkpoints = min(checkpoints, logger.keep_last)
        # The latest and the best weights are written once more.
        nbytes = (self.weights + self.state) * checkpoints + 2 * self.weights
        return self.step * total + self.validation * validations + self.test, nbytes


@dataclass(frozen=True)
class _Timed:
    """What timing one kind of jobs gave.

    Attributes:
        cost: None where neither the job nor its student alone can be prepared.
        why: what keeps the job itself from being prepared; `cost` is that of its student trained on the ground truth.
    """

    cost: Cost | None
    why: str = ""


def describe(plan: Plan, wanted: Sequence[Job], *, jobs: int) -> str:
    """A text: each row with each student, how many of its seeds are done, what it needs, hours; then the sums.

    Steps are timed here, on this machine as busy as it is. Weights and stores that are not there yet have stand-ins.
    What cannot be prepared for another reason says it, and is timed as a supervised run of its student where that can
    be.
    """
    needed, done = plan.to_make(wanted)
    left = [job for job in needed if job.name not in done]
    lines = [f"{plan.grid.name}: {len(needed)} jobs, {len(needed) - len(left)} done, {len(left)} to do; in {plan.out}"]
    for job in needed:
        if job.kind != "cell":
            needs = f", needs {', '.join(job.needs)}" if job.needs else ""
            lines.append(f"  {job.name} ({job.kind}){needs}: {'done' if job.name in done else 'to do'}")
    kinds: dict[tuple[str, str, int], list[Job]] = {}
    for job in left:
        if job.cell is not None:
            kinds.setdefault((job.cell.row or job.name, job.cell.subject, job.scale), []).append(job)
    costs = _timed(plan, {key: found[0] for key, found in kinds.items()})
    seconds, nbytes, unknown = 0.0, 0, 0
    groups: dict[tuple[str, str, int, int], list[Job]] = {}
    for job in needed:
        if job.cell is not None:
            key = (job.cell.row or job.name, job.cell.subject, job.scale, job.cell.iterations)
            groups.setdefault(key, []).append(job)
    for (row, student, scale, iterations), found in groups.items():
        missing = [job for job in found if job in left]
        head = (
            f"  {f'{row} {student}'.strip()} x{scale}, {iterations:,d} iterations: "
            f"{len(found) - len(missing)} of {len(found)} done"
        )
        if missing:
            timed = costs[row, student, scale]
            if (cost := timed.cost) is not None:
                each, size = cost.of(options_of(missing[0]))
                seconds += each * len(missing)
                nbytes += size * len(missing)
                alone = ", its student alone" if timed.why else ""
                head += f", {clock(each)} each ({1000 * cost.step:.1f} ms a step{alone})"
            else:
                unknown += len(missing)
                head += ", not timed"
            head += f", needs {', '.join(missing[0].needs)}" if missing[0].needs else ""
            head += f"\n    as it is it cannot be prepared: {timed.why}" if timed.why else ""
        lines.append(head)
    stores = [job for job in left if job.kind == "target"]
    if stores:
        images = _training_bytes(plan, stores[0].scale)
        nbytes += images * len(stores)
        lines.append(f"  {len(stores)} stores of {size_text(images)} each; `mtkd teach --dry_run` times live teachers")
    lines.append(
        f"together {clock(seconds)} of work, {clock(seconds / jobs)} with --jobs {jobs} where that many cores or GPUs "
        f"are free; {size_text(nbytes)} of disk"
        + (f"; without {unknown} jobs that could not be timed" if unknown else "")
    )
    return "\n".join(lines)


def _training_bytes(plan: Plan, scale: int) -> int:
    from mtkd.build import training_files

    files = training_files(make_options(supervised(plan.grid, scale)))
    return sum(height * width * 3 for height, width in files.sizes)


def _timed(plan: Plan, kinds: dict[Any, Job]) -> dict[Any, _Timed]:
    """The cost of one job of each kind."""
    found: dict[Any, _Timed] = {}
    with TemporaryDirectory() as name:
        for key, job in kinds.items():
            budget = MINUTE / len(kinds) / 2
            try:
                found[key] = _Timed(_cost(plan, job, _stand_in(plan, job, Path(name)), budget))
            except MtkdError as error:
                found[key] = _Timed(_alone(plan, job, Path(name), budget), str(error))
    return found


def _alone(plan: Plan, job: Job, folder: Path, budget: float) -> Cost | None:
    """The cost of the student of `job` trained on the ground truth; None for one that takes no lq, as a fusion
    network.
    """
    assert job.cell is not None
    plain = supervised(plan.grid, job.scale, job.cell.images)
    plain |= {"network_g": job.cell.options["network_g"], "path": {"experiments_root": str(folder)}}
    try:
        return _cost(plan, job, make_options(plain), budget)
    except MtkdError:
        return None


def _stand_in(plan: Plan, job: Job, folder: Path) -> Options:
    """The options of `job`, its run in `folder`, and stand-ins for what is not there yet: gt for stores, weights at
    their start for those of other runs.
    """
    assert job.cell is not None
    options: dict[str, Any] = {**job.cell.options, "path": {**job.cell.options["path"]}}
    options["path"]["experiments_root"] = str(folder)
    for need in (plan[name] for name in job.needs):
        weights = weights_path(plan.out, need.name)
        if need.cell is not None and not weights.exists():
            options = _replaced(options, str(weights), str(_weights_at_start(plan, need, folder / "needed")))
    store = options.get("target_store")
    if store is not None and not Path(store).exists():
        images = job.cell.images
        options["target_store"] = str(folder / f"gt{images}_x{job.scale}.safetensors")
        with contextlib.redirect_stdout(io.StringIO()):
            combine(make_options(supervised(plan.grid, job.scale, images)), Path(options["target_store"]), [], gt=1.0)
    return make_options(options, file=job.name)


def _replaced(tree: Any, old: str, new: str) -> Any:
    """`tree` with the text `new` wherever a value is `old`."""
    if isinstance(tree, dict):
        return {key: _replaced(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replaced(value, old, new) for value in tree]
    return new if tree == old else tree


def _weights_at_start(plan: Plan, job: Job, folder: Path) -> Path:
    """A weights file of `job` as its run writes it, before the first iteration."""
    path = RunFolder(folder / job.name).model(LATEST)
    if not path.exists():
        with contextlib.redirect_stdout(io.StringIO()):
            run = prepare(_stand_in(plan, job, folder))
            save_weights(run, 0, name=LATEST)
            run.close()
    return path


def _cost(plan: Plan, job: Job, options: Options, budget: float) -> Cost:
    with contextlib.redirect_stdout(io.StringIO()):
        run = prepare(options)
    try:
        step = _seconds_of_a_step(run, budget)
        parameters = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
        validation = sum(_of_a_set(run, images) for images in run.val_sets.values())
        testing = 0.0
        # A shared run is not tested; its teachers may have answered the training images alone.
        if job.kind == "cell":
            test = test_options(plan.grid, options.scale)
            metrics = build_metrics(test.val.metrics)
            for section in test.datasets.evaluation.values():
                testing += _of_a_set(run, build_image_set(section, options.scale), metrics)
        # With its average (EMA); the state has Adam's two moments.
        weights = 4 * parameters * (1 + bool(options.training.ema_decay))
        return Cost(step, validation, testing, weights, 4 * parameters * 2)
    finally:
        run.close()
        for path in sorted(run.folder.root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def _seconds_of_a_step(run: Run, budget: float) -> float:
    """Median of as many steps as fit into `budget` seconds, after two that warm up."""
    batch = next(iter(run.batches()))
    batches = repeat(batch)
    run.method.train()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 or (time.perf_counter() - began < budget and len(times) < 200):
        start = time.perf_counter()
        values = train_step(run, len(times), batches)
        float(values["l_total"])  # waits for the device
        times.append(time.perf_counter() - start)
    kept = sorted(times[2:])
    return kept[len(kept) // 2]


def _of_a_set(run: Run, images: Any, metrics: Any = None) -> float:
    """Seconds of measuring a set, from its first image."""
    first = [images[0]]
    net = run.method.predictor(run.method.student).eval()
    start = time.perf_counter()
    evaluate(net, first, metrics or run.metrics, dataset="", device=run.fabric.device)
    return (time.perf_counter() - start) * len(images)
