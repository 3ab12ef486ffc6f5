"""Make one thing of a grid: a store, a run, a cell with its scores. Killed, it goes on when called again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout

from mtkd.bench import jobs, records
from mtkd.bench.cells import weights_path
from mtkd.bench.jobs import Job, Plan
from mtkd.bench.records import Record
from mtkd.bench.scores import measure_run, plain_options, supervised
from mtkd.bench.teachers import measure_teachers
from mtkd.config import make_options, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.runtime.progress import Log
from mtkd.runtime.run_folder import RunFolder
from mtkd.targets.combine import combine
from mtkd.targets.make import teach
from mtkd.training.loop import train


class HeldElsewhere(Exception):
    """Another process makes this job."""


def execute(plan: Plan, job: Job, *, log: Log = print) -> None:
    """Make `job`, unless it is there; what it needs must be.

    What was made for another definition is renamed first, never deleted. An error is kept in the job's record.

    Raises:
        HeldElsewhere: another process, perhaps on another machine, is at it.
        MtkdError: it cannot be made.
    """
    try:
        with records.lock_of(plan.out, job):
            if not jobs.is_done(plan.out, job):
                _make(plan, job, log)
    except Timeout as error:
        raise HeldElsewhere(job.name) from error


def _make(plan: Plan, job: Job, log: Log) -> None:
    out, before = plan.out, records.read_record(plan.out, job)
    if why := _unusable(out, job, before):
        place = jobs.store_path(out, job) if job.kind == "target" else out / "runs" / job.name
        if (away := jobs.set_aside(place)) is not None:
            log(f"{job.name} {why}; that is now {away}.")
        before = None
    spent = before.seconds if before else 0.0
    # The digest stands there before anything is made: what a killed process leaves is known to be of this definition.
    records.write_record(out, job, Record(job.digest, seconds=spent))
    began = time.perf_counter()

    def passed() -> float:
        return spent + time.perf_counter() - began

    try:
        if job.kind == "target":
            _make_target(plan, job, log)
        elif job.kind == "teachers":
            measure_teachers(plan, job, log)
        else:
            _train(plan, job)
            if job.kind == "cell":
                measure_run(plan, job)
    except BaseException as error:
        text = str(error) if isinstance(error, MtkdError) else f"{type(error).__name__}: {error}"
        records.write_record(out, job, Record(job.digest, error=text, seconds=passed()))
        raise
    records.write_record(out, job, Record(job.digest, done=True, seconds=passed()))


def _unusable(out: Path, job: Job, before: Record | None) -> str:
    """Why what lies there cannot be gone on from, "" where it can."""
    if before is None:
        return f"has no record in {out / 'jobs'} of how it was made"
    if before.digest != job.digest:
        return "was made otherwise before"
    run = RunFolder(out / "runs" / job.name)
    if job.cell is not None and before.done and not any(run.models.glob("*")) and not any(run.states.glob("*")):
        # As results are that came without weights: training would refuse to write over their curve.
        return "ended before and is without its weights"
    return ""


def _make_target(plan: Plan, job: Job, log: Log) -> None:
    grid, path = plan.grid, jobs.store_path(plan.out, job)
    section = grid.targets.get(job.target)
    if section is not None and section.run is None:
        options = make_options(supervised(grid, job.scale, job.images))
        sources: list[str | Path] = [jobs.store_path(plan.out, plan[need]) for need in job.needs]
        combine(options, path, sources, weights=section.weights, gt=section.gt, progress=log)
        return
    plain = plain_options(grid, job.scale, job.images)
    loss = {"pixel_opt": None, "target_opt": {"type": "L1Loss"}}
    one = {**plain, "model_type": "OutputKD", "train": {**plain["train"], **loss}}
    if section is None:
        given = grid.teachers[job.target]
        one["teachers"] = {job.target: given}
    else:
        run = plan[f"{section.run}_x{job.scale}"]
        fusion = jobs.options_of(run)
        one["teachers"] = _teachers_of(run)
        network = fusion.network_g.model_dump()
        one["fusion"] = {"network": network, "pretrain": str(weights_path(plan.out, run.name))}
    teach(make_options(one, file=job.name), path, progress=log)


def _teachers_of(run: Job) -> Mapping[str, Any]:
    assert run.cell is not None
    return run.cell.options["teachers"]


def _train(plan: Plan, job: Job) -> None:
    options = jobs.options_of(job)
    text = resolved_yaml(options)
    assert job.cell is not None
    if not weights_path(plan.out, job.name).exists():
        train(options, auto_resume=True, option_text=text, command=f"mtkd bench, {plan.grid.name}")
