"""How far a grid is: a live table on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtkd.bench import records
from mtkd.bench.control import Board
from mtkd.bench.jobs import Job
from mtkd.runtime.progress import clock, on_terminal

_EVERY = 60.0
"""Seconds between two lines where there is no terminal."""


class Live:
    """Shows a `Board`; a context manager around `control.run`."""

    def __init__(self, log: Callable[[str], None] = print) -> None:
        self.log = log
        self._said = self._drawn = 0.0
        self._live: Any = None

    def __enter__(self) -> Live:
        if on_terminal():
            from rich.live import Live as RichLive

            self._live = RichLive(auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, board: Board) -> None:
        """Show how far it is, if it is time to."""
        now = time.monotonic()
        if self._live is not None and (now - self._drawn > 1 or board.finished()):
            self._drawn = now
            self._live.update(table(board), refresh=True)
        elif self._live is None and now - self._said > _EVERY:
            self._said = now
            self.log(line(board))


def line(board: Board) -> str:
    """One line of text: what is done, what runs and how far it is."""
    left = len(board.wanted) - len(board.done) - len(board.failed) - len(board.blocked) - len(board.running)
    running = ", ".join(f"{name} {_progress(board, name)}" for name in board.running)
    return (
        f"{len(board.done)} of {len(board.wanted)} done, {left} waiting, {len(board.failed)} failed, "
        f"{len(board.blocked)} blocked{f'; running: {running}' if running else ''}"
    )


def table(board: Board) -> Any:
    """A rich table: rows x columns of cells, then what runs."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    plan, grid = board.plan, board.plan.grid
    overview = Table(title=line(board), title_justify="left")
    columns = [
        (scale, student, iterations)
        for scale in grid.scales
        for iterations in grid.iterations
        for student in grid.subjects()
    ]
    overview.add_column("row", no_wrap=True)
    for scale, student, iterations in columns:
        overview.add_column(f"{student}\nx{scale}, {iterations:,d}", justify="center")
    blocked = board.blocked
    wanted = {job.name for job in board.wanted}
    for row in grid.rows:
        cells = []
        for scale, student, iterations in columns:
            own = [job for job in plan.cells if _is(job, row, student, scale, iterations) and job.name in wanted]
            cells.append(" ".join(_mark(board, job, blocked) for job in own))
        overview.add_row(row, *(Text(cell) for cell in cells))
    shared = [job for job in board.wanted if job.kind != "cell"]
    if shared:
        overview.add_section()
        for job in shared:
            overview.add_row(job.name, Text(_mark(board, job, blocked)))
    running = Table(show_header=False, box=None)
    for name, since in board.running.items():
        running.add_row(name, _progress(board, name), clock(time.monotonic() - since))
    failures = [Text(f"{name}: {why}", style="red") for name, why in board.failed.items()]
    return Group(overview, running, *failures)


def _is(job: Job, row: str, student: str, scale: int, iterations: int) -> bool:
    cell = job.cell
    assert cell is not None
    return (cell.row, cell.subject, cell.scale, cell.iterations) == (row, student, scale, iterations)


def _mark(board: Board, job: Job, blocked: dict[str, str]) -> str:
    """One sign a seed: done, failed, blocked, running (its share), waiting."""
    if job.name in board.done:
        return "+"
    if job.name in board.failed:
        return "X"
    if job.name in blocked:
        return "-"
    if job.name in board.running or job.name in board.elsewhere:
        step, total = _step(board, job)
        return f"{100 * step // total}%" if total else "..."
    return "."


def _step(board: Board, job: Job) -> tuple[int, int]:
    if job.cell is None:
        return 0, 0
    row = _last_row(board.plan.out / "runs" / job.name / "metrics.jsonl")
    return int(row.get("step", 0)), job.cell.iterations


def _progress(board: Board, name: str) -> str:
    job = board.plan[name]
    if job.cell is None:
        return ""
    row = _last_row(board.plan.out / "runs" / name / "metrics.jsonl")
    step, each = int(row.get("step", 0)), row.get("seconds_per_step")
    left = f", {clock(each * (job.cell.iterations - step))} left" if isinstance(each, float) else ""
    return f"{step:,d}/{job.cell.iterations:,d}{left}"


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a run's `metrics.jsonl`."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - 4096, 0))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for text in reversed(lines):
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}


def summary(board: Board) -> str:
    """What is left to say at the end: failures with their reasons, and what they block."""
    lines = [line(board)]
    lines += [f"failed: {name}: {why}" for name, why in board.failed.items()]
    blocked = board.blocked
    for need in dict.fromkeys(blocked.values()):
        names = [name for name, by in blocked.items() if by == need]
        lines.append(
            f"waiting for {need}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
        )
    known = [records.read_record(board.plan.out, job) for job in board.wanted]
    lines.append(f"{clock(sum(record.seconds for record in known if record is not None))} of work are in it.")
    return "\n".join(lines)
