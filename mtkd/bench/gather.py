"""From the folders of a grid to its `Report`: scores, learning curves, costs, option files, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mtkd.bench import records
from mtkd.bench.cells import Cell, validation_sets
from mtkd.bench.jobs import Job, Plan
from mtkd.bench.scores import read_scores
from mtkd.config import yaml_loader
from mtkd.contracts import MtkdError
from mtkd.report.content import Curve, Published, Report, Row

Images = dict[str, tuple[str, ...]]


class NothingThere(MtkdError):
    """Nothing is measured yet."""


def group_name(title: str, scale: int, iterations: int) -> str:
    """What readers call the rows of one subject, by its title, scale and length."""
    return f"{title}, x{scale}, {iterations:,d} iterations"


def gather(
    plan: Plan, scale: int, *, costs: Mapping[str, Mapping[str, Any]] | None = None, command: str = ""
) -> Report:
    """The report of all that is there at `scale`; what is not is in its `missing`.

    Args:
        costs: `network_name` -> latency and memory, see `mtkd.metrics.latency.running_cost`.

    Raises:
        NothingThere: nothing is measured yet.
        MtkdError: cells were measured on different images.
    """
    grid = plan.grid
    images: Images = {}
    read: dict[str, dict[str, Any]] = {}
    for job in plan.jobs:
        if job.scale != scale or job.kind not in ("cell", "teachers"):
            continue
        # Scores alone are enough: weights may have stayed on another machine.
        if (content := read_scores(plan.out, job)) is not None:
            read[job.name] = content
            _note_images(images, content, job.name)
    if not images:
        raise NothingThere(f"No cell of {grid.name} at x{scale} is finished yet, so there is nothing to report.")
    metrics = tuple(grid.test.metrics)
    rows = [*_measured_only(plan, read, images, metrics, scale)]
    missing: list[str] = []
    for iterations in grid.iterations:
        for name, subject in grid.subjects().items():
            absent: dict[str, str] = {}
            for row in grid.rows:
                found = [job for job in plan.cells if _key(job) == (row, name, scale, iterations)]
                there = [job for job in found if job.name in read]
                group = group_name(subject.title, scale, iterations)
                if len(there) < len(found):
                    absent[row] = f"{grid.title_of('rows', row)} ({len(there)} of {len(found)} seeds)"
                if there:
                    rows.append(_row(plan, there, read, images, metrics, group, costs or {}))
            if absent:
                group = group_name(subject.title, scale, iterations)
                nothing = not any(row.group == group for row in rows)
                missing.append(f"{group}: {'no cell is finished' if nothing else ', '.join(absent.values())}")
    measured = directions(grid.test.metrics)
    validated = {name for job in plan.cells if job.cell for name in validation_sets(job.cell).values()}
    if grid.teachers and f"teachers_x{scale}" not in read:
        missing.append("the teachers, their mean and bicubic, which are not measured yet")
    return Report(
        title=grid.title or grid.name,
        scale=scale,
        rows=rows,
        images=images,
        metrics=measured,
        pooled=[name for name in grid.pooled if name in images],
        validation=[name for name in images if name in validated],
        baselines=[grid.title_of("rows", name) for name in grid.baselines],
        published=[
            Published(**one.model_dump(exclude={"scale"})) for one in grid.published if one.scale in (None, scale)
        ],
        files=dict(_files(plan, scale)),
        facts=_facts(plan, read, command),
        missing=missing,
    )


def network_name(plan: Plan, cell: Cell) -> str:
    """What the network of `cell` is called: the student, and the row where that changes it."""
    student = plan.grid.subjects()[cell.subject].student
    return student if plan.grid.rows[cell.row].get("network_g") is None else f"{student}, {cell.row}"


def directions(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Metric -> which value is better, as the catalog's metrics declare it."""
    from mtkd import catalog

    return {
        name: given.get("better") or getattr(catalog.get("metric", given["type"]), "better", "higher")
        for name, given in metrics.items()
    }


def _key(job: Job) -> tuple[str, str, int, int]:
    assert job.cell is not None
    return job.cell.row, job.cell.subject, job.cell.scale, job.cell.iterations


def _note_images(images: Images, content: Mapping[str, Any], name: str) -> None:
    for row in content["rows"].values():
        for dataset, values in row["sets"].items():
            names = tuple(values["images"])
            if images.setdefault(dataset, names) != names:
                raise MtkdError(
                    f"{name} was measured on other images of {dataset} than the cells before it. Delete its file in "
                    "scores/ to have it measured again."
                )


def _scores(
    runs: Sequence[Mapping[str, Any]], images: Images, metrics: Sequence[str]
) -> dict[str, dict[str, np.ndarray[Any, np.dtype[np.float64]]]]:
    """Data set -> metric -> (runs, images), NaN where a run was not measured on a set."""
    found: dict[str, dict[str, Any]] = {}
    for dataset, names in images.items():
        if not any(dataset in run["sets"] for run in runs):
            continue
        blank = [float("nan")] * len(names)
        found[dataset] = {
            metric: np.array([run["sets"].get(dataset, {}).get(metric, blank) for run in runs], np.float64)
            for metric in metrics
        }
    return found


def _measured_only(
    plan: Plan, read: Mapping[str, Any], images: Images, metrics: Sequence[str], scale: int
) -> Iterator[Row]:
    content = read.get(f"teachers_x{scale}")
    for name, row in content["rows"].items() if content else ():
        yield Row(
            name=name,
            kind=row["kind"],
            scores=_scores([row], images, metrics),
            parameters=row.get("parameters"),
            gmacs=row.get("gmacs"),
        )


def _row(
    plan: Plan,
    found: Sequence[Job],
    read: Mapping[str, Any],
    images: Images,
    metrics: Sequence[str],
    group: str,
    costs: Mapping[str, Mapping[str, Any]],
) -> Row:
    first = found[0].cell
    assert first is not None
    given, own = plan.grid.rows[first.row], [read[job.name]["rows"][job.name] for job in found]
    teachers = sum(_seconds(plan, need) for need in _below(plan, found[0]))
    curves = [curve for job in found if (curve := _curve(plan, job, teachers)) is not None]
    cost = costs.get(network_name(plan, first), {})
    return Row(
        name=plan.grid.title_of("rows", first.row),
        group=group,
        seeds=[job.cell.seed for job in found if job.cell is not None],
        scores=_scores(own, images, metrics),
        parameters=own[0]["parameters"],
        gmacs=own[0]["gmacs"],
        latency=cost.get("latency_ms"),
        memory=cost.get("memory_mib"),
        curves=curves,
        training_seconds=float(np.mean([curve.seconds[-1] - teachers for curve in curves])) if curves else None,
        teacher_seconds=teachers,
        note=str(given.get("note", "")),
        protocol=f"{first.row}, {first.subject}, {first.iterations}",
    )


def _below(plan: Plan, job: Job) -> list[Job]:
    """Everything that `job` needs, directly or not."""
    return [other for other in plan.needed_by([job]) if other.name != job.name]


def _seconds(plan: Plan, job: Job) -> float:
    record = records.read_record(plan.out, job)
    return record.seconds if record is not None else 0.0


def _curve(plan: Plan, job: Job, teachers: float) -> Curve | None:
    """Validation of a run against iterations and seconds; None where it was never validated."""
    assert job.cell is not None
    iterations: list[int] = []
    seconds: list[float] = []
    values: list[float] = []
    passed, step, each, metric = teachers, 0, 0.0, ""
    key, dataset = next(iter(validation_sets(job.cell).items()), ("", "validation"))
    for row in _logged(plan.out / "runs" / job.name / "metrics.jsonl"):
        if "seconds_per_step" in row:
            each = row["seconds_per_step"] if isinstance(row["seconds_per_step"], float) else each
            passed += (row["step"] - step) * each
            step = row["step"]
        elif row.get("metrics") and row.get("validation", key) in (key, dataset):
            metric = next(iter(row["metrics"]))
            iterations.append(row["step"])
            # A validation may lie between two lines of losses.
            seconds.append(passed + (row["step"] - step) * each)
            values.append(float(row["metrics"][metric]))
    if not values:
        return None
    return Curve(
        seed=job.cell.seed, iterations=iterations, seconds=seconds, values=values, dataset=dataset, metric=metric
    )


def _logged(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _files(plan: Plan, scale: int) -> Iterator[tuple[str, str]]:
    """The grid, and the option file of the first seed of each row, student and length."""
    yield "grid", yaml_loader.dump(plan.grid.model_dump(by_alias=True, exclude_defaults=True))
    seen: set[tuple[str, str, int, int]] = set()
    for job in plan.cells:
        if job.scale == scale and _key(job) not in seen:
            seen.add(_key(job))
            assert job.cell is not None
            text = yaml_loader.dump(job.cell.options).replace(str(plan.out), "OUT")
            yield f"{job.cell.row}, {job.cell.subject}, {job.cell.iterations}", text


def _facts(plan: Plan, read: Mapping[str, Mapping[str, Any]], command: str) -> dict[str, str]:
    """Where the numbers come from, every machine and commit that took part."""
    found: dict[str, dict[str, None]] = {}
    trained: Counter[str] = Counter()
    for job in plan.cells:
        file = plan.out / "runs" / job.name / "environment.json"
        if job.name not in read:
            continue
        # A file that is cut short says nothing, and takes nothing else away.
        with suppress(OSError, ValueError, KeyError, TypeError):
            trained[json.loads(file.read_text(encoding="utf-8"))["device"]] += 1
    if trained:
        found["trained on"] = {f"{device} ({count} runs)": None for device, count in trained.most_common()}
    for content in read.values():
        here = content["environment"]
        versions = here["versions"]
        for key, value in (
            ("device", here["device"]),
            ("threads of a run", content["threads"] or here["cpu_threads"]),
            ("platform", here["platform"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("commit", here["commit"]),
        ):
            if value:
                found.setdefault(key, {})[str(value)] = None
    facts = {key: "; ".join(values) for key, values in found.items()}
    return {**facts, **({"command": command} if command else {})}
