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

from mtkd.bench import jobs
from mtkd.bench.jobs import Job, Plan
from mtkd.bench.scores import supervised, test_options
from mtkd.build import build_image_set
from mtkd.config import Options, make_options
from mtkd.contracts import MtkdError
from mtkd.inference.evaluate import build_metrics, evaluate
from mtkd.runtime.progress import clock
from mtkd.targets.combine import combine
from mtkd.targets.store_check import size_text
from mtkd.training.loop import train_step
from mtkd.training.prepare import prepare
from mtkd.training.run import Run

MINUTE = 60.0
"""Seconds that the steps of all kinds of cells are timed in, together."""


@dataclass(frozen=True)
class Cost:
    """Of one cell.

    Attributes:
        step: seconds of an iteration.
        measuring: seconds of all its validations and of its test.
        nbytes: of its checkpoints and states.
    """

    step: float
    measuring: float
    nbytes: int


def describe(plan: Plan, wanted: Sequence[Job], *, jobs: int) -> str:
    """A text: each row with each student, how many of its seeds are done, what it needs, hours; then the sums.

    Steps are timed here, on this machine as busy as it is; what needs weights that are not there yet is timed as a
    supervised run, and marked.
    """
    needed = plan.needed_by(wanted)
    left = [job for job in needed if not _done(plan, job)]
    lines = [f"{plan.grid.name}: {len(needed)} jobs, {len(needed) - len(left)} done, {len(left)} to do; in {plan.out}"]
    for job in needed:
        if job.kind != "cell":
            needs = f", needs {', '.join(job.needs)}" if job.needs else ""
            lines.append(f"  {job.name} ({job.kind}){needs}: {'done' if _done(plan, job) else 'to do'}")
    kinds: dict[tuple[str, str, int], list[Job]] = {}
    for job in left:
        if job.cell is not None:
            kinds.setdefault((job.cell.row or job.name, job.cell.subject, job.scale), []).append(job)
    costs = _timed(plan, {key: found[0] for key, found in kinds.items()})
    seconds, nbytes = 0.0, 0
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
            cost, sure = costs[row, student, scale]
            each = cost.step * iterations + cost.measuring
            seconds += each * len(missing)
            nbytes += cost.nbytes * len(missing)
            needs = f", needs {', '.join(missing[0].needs)}" if missing[0].needs else ""
            alone = "" if sure else ", timed without its teachers"
            head += f", {clock(each)} each ({1000 * cost.step:.1f} ms a step{alone}){needs}"
        lines.append(head)
    stores = [job for job in left if job.kind == "target"]
    if stores:
        images = _training_bytes(plan, stores[0].scale)
        nbytes += images * len(stores)
        lines.append(f"  {len(stores)} stores of {size_text(images)} each; `mtkd teach --dry_run` times live teachers")
    lines.append(
        f"together {clock(seconds)} of work, {clock(seconds / jobs)} with --jobs {jobs} where that many cores or GPUs "
        f"are free; {size_text(nbytes)} of disk"
    )
    return "\n".join(lines)


def _done(plan: Plan, job: Job) -> bool:
    return jobs.is_done(plan.out, job)


def _training_bytes(plan: Plan, scale: int) -> int:
    from mtkd.build import training_files

    files = training_files(make_options(supervised(plan.grid, scale)))
    return sum(height * width * 3 for height, width in files.sizes)


def _timed(plan: Plan, kinds: dict[Any, Job]) -> dict[Any, tuple[Cost, bool]]:
    """The cost of one job of each kind, and whether it could be timed as it is."""
    found: dict[Any, tuple[Cost, bool]] = {}
    with TemporaryDirectory() as name:
        for key, job in kinds.items():
            budget = MINUTE / len(kinds) / 2
            try:
                found[key] = _cost(plan, _stand_in(plan, job, Path(name)), budget), True
            except MtkdError:
                assert job.cell is not None
                plain = supervised(plan.grid, job.scale)
                plain |= {"network_g": job.cell.options["network_g"], "path": {"experiments_root": name}}
                found[key] = _cost(plan, make_options(plain), budget), False
    return found


def _stand_in(plan: Plan, job: Job, folder: Path) -> Options:
    """The options of `job`, its run in `folder`, and gt in place of stores that are not there yet."""
    assert job.cell is not None
    options: dict[str, Any] = {**job.cell.options, "path": {**job.cell.options["path"]}}
    options["path"]["experiments_root"] = str(folder)
    store = options.get("target_store")
    if store is not None and not Path(store).exists():
        options["target_store"] = str(folder / f"gt_x{job.scale}.safetensors")
        with contextlib.redirect_stdout(io.StringIO()):
            plain = supervised(plan.grid, job.scale)
            gt = plain["datasets"]["train"]["dataroot_gt"]
            combine(make_options(plain), Path(options["target_store"]), [gt])
    return make_options(options, file=job.name)


def _cost(plan: Plan, options: Options, budget: float) -> Cost:
    with contextlib.redirect_stdout(io.StringIO()):
        run = prepare(options)
    try:
        step = _seconds_of_a_step(run, budget)
        settings, total = options.training, options.training.total_iter
        saves = total // options.logger.save_checkpoint_freq + 1
        parameters = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
        validations = max(total // (options.val.val_freq or total), 1)
        measuring = validations * sum(_of_a_set(run, images) for images in run.val_sets.values())
        test = test_options(plan.grid, options.scale)
        metrics = build_metrics(test.val.metrics)
        for section in test.datasets.evaluation.values():
            measuring += _of_a_set(run, build_image_set(section, options.scale), metrics)
        # Weights, and a state with weights and Adam's two moments; the average (EMA) once more.
        copies = 4 + 2 * bool(settings.ema_decay)
        return Cost(step, measuring, 4 * parameters * copies * saves)
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
