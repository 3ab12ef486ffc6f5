"""Hand shares of a grid to a scheduler through submitit. The scheduler is slurm's; nothing here schedules."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mtkd.bench import jobs
from mtkd.bench.control import Slots, cuda_devices, python_command
from mtkd.bench.jobs import Job, Plan
from mtkd.contracts import MtkdError
from mtkd.runtime.progress import Log


def submit(
    launcher: Literal["slurm", "local"],
    arguments: Sequence[str],
    count: int,
    only: Sequence[str],
    parameters: Sequence[str],
    *,
    folder: Path | None = None,
) -> list[Any]:
    """Submit `count` shares of `mtkd ARGUMENTS`, one task each, and return submitit's jobs.

    The tasks need the same disk. A job that several shares need is made by one of them, and the others wait.

    Args:
        launcher: "slurm", or "local" for processes of this machine.
        only: patterns of cells.
        parameters: `key=value` of submitit's executor: `partition=gpu`, `gpus_per_node=1`, `time=600` (minutes).
        folder: of submitit's logs; OUT/slurm by default.

    Raises:
        MtkdError: submitit is missing, there is no slurm here, or it refuses the parameters.
    """
    try:
        import submitit
    except ImportError as error:
        raise MtkdError(f"--launcher {launcher} needs submitit. Install it: `pip install mtkd[slurm]`.") from error
    from submitit.helpers import CommandFunction

    folder = folder or Path(arguments[arguments.index("--out") + 1]) / "slurm"
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=launcher)
        settings = {key: _value(value) for key, _, value in (text.partition("=") for text in parameters)}
        executor.update_parameters(**{"name": "mtkd_bench", **({"timeout_min": 60 * 24} | settings)})
        patterns = ["--only", *only] if only else []
        # slurm deals out devices and cores itself; submitit's local executor hides all GPUs from its tasks.
        slots = Slots(count, cuda_devices()) if launcher == "local" else None

        def share(number: int) -> list[str]:
            own = ["env", *(f"{key}={value}" for key, value in slots.variables(number - 1).items())] if slots else []
            return [*own, *python_command([*arguments, *patterns, "--shard", f"{number}/{count}"])]

        with executor.batch():
            return [executor.submit(CommandFunction(share(number))) for number in range(1, count + 1)]
    except (RuntimeError, TypeError, ValueError, NameError, OSError) as error:
        raise MtkdError(f"submitit cannot use {launcher} so: {str(error).strip() or type(error).__name__}") from error


def _value(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() else text


def wait(shares: Sequence[Any], plan: Plan, wanted: Sequence[Job], *, log: Log = print, every: float = 60.0) -> bool:
    """Wait for all shares, with a line each `every` seconds; True where something failed.

    Ctrl-C stops the waiting; the shares go on, and the next call picks up what they made.
    """
    log(f"{len(shares)} shares submitted: {', '.join(str(share.job_id) for share in shares)}.")
    said = 0.0
    while not all(share.done() for share in shares):
        if time.monotonic() - said > every:
            said = time.monotonic()
            log(f"{sum(jobs.is_measured(plan.out, job) for job in wanted)} of {len(wanted)} done")
        time.sleep(min(every, 2.0))
    missing = [job.name for job in wanted if not jobs.is_measured(plan.out, job)]
    for share in shares:
        if (error := share.exception()) is not None:
            log(f"share {share.job_id}: {str(error).strip().splitlines()[-1][:300]} See {share.paths.stderr}.")
    if missing:
        log(f"{len(missing)} of {len(wanted)} are missing: {', '.join(missing[:8])}. Call it again to go on.")
    return bool(missing)
