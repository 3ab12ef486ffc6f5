"""The report of a grid: tables in Markdown, LaTeX and CSV, and the page."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtkd import build
from mtkd.bench import gather as gathering
from mtkd.bench import jobs, records
from mtkd.bench.gather import network_name
from mtkd.bench.jobs import Job, Plan
from mtkd.bench.pictures import pictures
from mtkd.contracts import MtkdError
from mtkd.data.images import write_bytes
from mtkd.metrics.latency import running_cost
from mtkd.report import tables
from mtkd.report.page import write_page
from mtkd.report.statistics import comparisons
from mtkd.runtime.device import choose_device
from mtkd.runtime.progress import Log
from mtkd.runtime.strict_json import dumps


def write_report(plan: Plan, *, command: str = "", log: Log = print) -> list[Path]:
    """Write OUT/report (or OUT/report_xSCALE where there are several) of what is there, and print its tables.

    Raises:
        MtkdError: nothing is measured yet.
    """
    folders: list[Path] = []
    nothing: list[MtkdError] = []
    for scale in plan.grid.scales:
        folder = plan.out / ("report" if len(plan.grid.scales) == 1 else f"report_x{scale}")
        try:
            report = gathering.gather(plan, scale, costs=_costs(plan, scale), command=command)
        except gathering.NothingThere as error:
            nothing.append(error)
            continue
        compared = comparisons(report)
        for name, text in (
            ("tables.md", tables.markdown(report, compared)),
            ("tables.tex", tables.latex(report, compared)),
            ("scores.csv", tables.csv_values(report)),
            ("comparisons.csv", tables.csv_comparisons(report, compared)),
        ):
            write_bytes(folder / name, text.encode())
        tables.show(report, compared)
        for line in report.missing:
            log(f"missing: {line}")
        try:
            report = replace(report, pictures=pictures(plan, report, log=log))
        except MtkdError as error:
            # Scores travel without the weights and images that pictures are made of.
            log(f"The page has no pictures: {error}")
        write_page(report, folder / "report.html", compared)
        log(f"Tables and page: {folder}")
        folders.append(folder)
    if not folders:
        raise nothing[0]
    for error in nothing:
        log(f"missing: {error}")
    return folders


def keep(plan: Plan, folder: Path, *, log: Log = print) -> None:
    """Copy to `folder` what a report is made of, and the tables: scores, costs, learning curves; no weights, no images.

    `mtkd bench GRID --out FOLDER --report_only` makes the tables of it again, on any machine.
    """
    of_runs = ("runs/*/metrics.jsonl", "runs/*/environment.json")
    patterns = ("scores/*.json", "jobs/*.json", "costs_x*.json", *of_runs, "report*/tables.*")
    kept = ((job, records.read_record(plan.out, job)) for job in plan.jobs)
    # Of a run that goes on, the checkpoint would be lacking.
    names = {job.file_name for job, record in kept if record is not None and record.done}
    copied = 0
    for pattern in patterns:
        for path in sorted(plan.out.glob(pattern)):
            place = path.relative_to(plan.out)
            # Runs that were set aside stay where they are too.
            if place.parts[0] in ("scores", "jobs", "runs") and not {path.stem, path.parent.name} & names:
                continue
            write_bytes(folder / place, path.read_bytes())
            copied += 1
    log(f"{copied} files kept in {folder}. `mtkd bench GRID --out {folder} --report_only` makes the report of them.")


def _costs(plan: Plan, scale: int) -> dict[str, dict[str, Any]]:
    """`network_name` -> latency and memory, measured once and kept, when all cells are there and nothing else runs."""
    path = plan.out / f"costs_x{scale}.json"
    found: dict[str, dict[str, Any]] = {}
    with suppress(OSError, ValueError, AttributeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        # A student may have been another network when it was measured.
        now = {network_name(plan, job.cell): _network(plan, job) for job in plan.cells if job.cell is not None}
        found = {name: facts for name, facts in kept.items() if name in now and facts.get("network") == now[name]}
    cells = [job for job in plan.cells if job.scale == scale]
    if not all(jobs.is_measured(plan.out, job) for job in cells):
        return found
    for job in cells:
        assert job.cell is not None
        if not jobs.is_done(plan.out, job):
            continue  # measured elsewhere, and perhaps all of its student
        name = network_name(plan, job.cell)
        if name not in found:
            options = jobs.options_of(job)
            net = build.build_network(options.network_g, options.scale)
            cost = running_cost(net, scale=scale, device=choose_device(options.num_gpu)).facts()
            found[name] = {"network": _network(plan, job), **cost}
            write_bytes(path, (dumps(found, indent=1) + "\n").encode())
    return found


def _network(plan: Plan, job: Job) -> Any:
    """The network of a cell as its grid says it."""
    assert job.cell is not None
    student = plan.grid.students[plan.grid.subjects()[job.cell.subject].student]
    changes = plan.grid.rows[job.cell.row].get("network_g")
    return student if changes is None else [student, changes]
