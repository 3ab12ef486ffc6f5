"""Run what a grid lacks, several jobs side by side, each in a process of its own.

A process that is killed, fails or is lost with its machine costs what it had not saved yet, and nothing of the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtkd.bench import jobs, records
from mtkd.bench.jobs import Job, Plan
from mtkd.contracts import MtkdError, Stopped

HELD = 75
"""Exit code of a job's process when another process makes this job (EX_TEMPFAIL of sysexits.h)."""
CHANGED = 76
"""Exit code of a job's process that finds another definition of the job than the grid had when the call began."""
_STOPPING = 60.0
"""Seconds in which a training that is asked to stop saves and ends."""
_POLL = 0.25
_ELSEWHERE = 5.0
"""Seconds until a job that another process holds is looked at again."""


@dataclass
class Board:
    """How far all jobs are, for whoever shows it.

    Attributes:
        plan: of the grid.
        wanted: the jobs of this call, what they need included.
        done: names of those that are there.
        failed: name -> why, in this call.
        running: name -> when it was started.
        elsewhere: names of those that another process makes.
    """

    plan: Plan
    wanted: list[Job]
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    elsewhere: dict[str, float] = field(default_factory=dict)

    @property
    def blocked(self) -> dict[str, str]:
        """Name -> the failed job that it needs, directly or not."""
        found: dict[str, str] = {}
        # The jobs of the plan, each after what it needs; those wanted stand in the order in which they shall begin.
        wanted = {job.name for job in self.wanted}
        for job in self.plan.jobs:
            if job.name not in wanted or job.name in self.done:
                continue
            for need in job.needs:
                if need in self.failed or need in found:
                    found[job.name] = found.get(need, need)
        return found

    def next(self) -> Job | None:
        """A job that can be started now."""
        blocked, now = self.blocked, time.monotonic()
        for job in self.wanted:
            if job.name in self.done or job.name in self.running or job.name in self.failed or job.name in blocked:
                continue
            if not self.done.issuperset(job.needs) or not self._is_free(job, now):
                continue
            return job
        return None

    def _is_free(self, job: Job, now: float) -> bool:
        """Whether no other process is known to be at `job`. A look at its lock costs less than a process that tries."""
        looked = self.elsewhere.get(job.name)
        if looked is not None and now - looked < _ELSEWHERE:
            return False
        if looked is None or not records.is_held(self.plan.out, job):
            return True
        self.elsewhere[job.name] = now
        return False

    def finished(self) -> bool:
        """Nothing more will happen."""
        return len(self.done) + len(self.failed) + len(self.blocked) >= len(self.wanted)


@dataclass(frozen=True)
class Slots:
    """What jobs run on: `count` side by side, CUDA devices dealt out among them, CPU cores shared."""

    count: int
    devices: Sequence[str] = ()

    def variables(self, slot: int) -> dict[str, str]:
        """What the process in `slot` has otherwise than this one in its environment."""
        own: dict[str, str] = {}
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            own["OMP_NUM_THREADS"] = str(max(1, cores // self.count))
        if self.devices:
            own["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return own


def run(
    plan: Plan,
    wanted: Sequence[Job],
    slots: Slots,
    *,
    command: Callable[[Job], list[str]],
    show: Callable[[Board], None] = lambda board: None,
    log: Callable[[str], None] = print,
    until: float | None = None,
    patience: float = _STOPPING,
) -> Board:
    """Make `wanted` and what it needs; what is there already is left alone, and a failed job stops no other.

    Args:
        wanted: cells are begun in this order, what they need before them.
        command: the command line that makes one job; it exits with `HELD` where another process does.
        show: called several times a second.
        until: a time of `time.time()` at which running jobs are asked to save and end, and nothing more is begun; those
            that did not finish are neither among the board's `done` nor its `failed`.
        patience: seconds in which they save; after them they are killed, and go on from their last checkpoint.

    Raises:
        Stopped: Ctrl-C or SIGTERM ended it; running jobs were asked to save and end, and were waited for.
    """
    order = {job.name: number for number, job in enumerate(wanted) if job.kind == "cell"}
    needed, done = plan.to_make(wanted)
    board = Board(plan, sorted(needed, key=lambda job: order.get(job.name, -1)), done)
    processes: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    try:
        with _listening() as signals:
            while not signals and not board.finished() and (until is None or time.time() < until):
                for slot, (job, process) in list(processes.items()):
                    if (code := process.poll()) is not None:
                        del processes[slot]
                        _ended(board, job, code, log)
                while len(processes) < slots.count and (job := board.next()) is not None:
                    slot = next(number for number in range(slots.count) if number not in processes)
                    processes[slot] = job, _start(plan, job, command(job), {**os.environ, **slots.variables(slot)})
                    board.running[job.name] = time.monotonic()
                show(board)
                time.sleep(_POLL)
        if signals and processes:
            log(f"Stopping; {', '.join(board.running)} may take {patience:.0f} s to save.")
    finally:
        _stop([process for _, process in processes.values()], patience)
    for job, _ in processes.values():
        del board.running[job.name]
        if jobs.is_done(plan.out, job):
            board.done.add(job.name)
    show(board)
    if signals:
        raise Stopped(signals[0], _kept(board, [job for job, _ in processes.values()]))
    return board


def _kept(board: Board, stopped: Sequence[Job]) -> str:
    """What is there after a stop, and how to go on."""
    cut = [job.name for job in stopped if job.name not in board.done]
    text = f"the grid was stopped with {len(board.done)} of {len(board.wanted)} jobs done, which are kept in "
    text += f"{board.plan.out}."
    if cut:
        text += f" {', '.join(cut)} will go on from what {'it has' if len(cut) == 1 else 'they have'} saved."
    return f"{text} The same command goes on."


def _start(plan: Plan, job: Job, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    log = log_path(plan.out, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        # In a group of its own: Ctrl-C reaches the controller alone, which asks all to save.
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def log_path(out: Path, job: Job) -> Path:
    """What the processes of `job` printed."""
    return out / "logs" / f"{job.file_name}.log"


def _ended(board: Board, job: Job, code: int, log: Callable[[str], None]) -> None:
    board.running.pop(job.name, None)
    board.elsewhere.pop(job.name, None)
    if code == HELD:
        board.elsewhere[job.name] = time.monotonic()
        if jobs.is_done(board.plan.out, job):
            board.done.add(job.name)
    elif code == 0 and jobs.is_done(board.plan.out, job):
        board.done.add(job.name)
    else:
        record = records.read_record(board.plan.out, job)
        why = record.error if record is not None and record.error else _signal(code)
        if code == CHANGED:
            why = "the grid, or a file that it stands on, was changed meanwhile. Call the same command again."
        board.failed[job.name] = why
        log(f"{job.name} failed: {why} See {log_path(board.plan.out, job)}.")


def _signal(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}."
    with suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}; out of memory, perhaps."
    return f"its process was ended by signal {-code}."


def _stop(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Within the block Ctrl-C and SIGTERM are numbers in a list: an exception in the midst of starting a process would
    leave that one alone. A second one, after it, ends the process at once.
    """
    before: dict[int, Any] = {}
    signals: list[int] = []

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread
                # Shells start what runs in the background with SIGINT ignored, and it should stay so.
                if signal.getsignal(number) != signal.SIG_IGN:
                    before[number] = signal.signal(number, lambda number, _: signals.append(number))
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shard(cells: Sequence[Job], text: str) -> list[Job]:
    """The k-th of n shares of `cells`, by `text` "k/n", in the order of `cells`.

    Every n-th of each row's, where the seeds are neighbours, so that every share has cells of every row.

    Raises:
        MtkdError: `text` is no such thing.
    """
    number, _, count = text.partition("/")
    whole = all(part.isascii() and part.isdecimal() for part in (number, count))
    if not (whole and 1 <= int(number) <= int(count)):
        raise MtkdError(f"--shard {text}: must be k/n with k from 1 to n, such as 2/8.")
    by_row = sorted(cells, key=lambda job: job.cell.row if job.cell else "")
    share = {job.name for job in by_row[int(number) - 1 :: int(count)]}
    return [job for job in cells if job.name in share]


def python_command(arguments: Sequence[str]) -> list[str]:
    """`mtkd ARGUMENTS` run by this interpreter."""
    return [sys.executable, "-m", "mtkd", *arguments]


def cuda_devices() -> list[str]:
    """Devices to deal out: those of CUDA_VISIBLE_DEVICES, else all that are there."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
