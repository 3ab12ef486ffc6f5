"""What a grid has to make, in which order, and what of it is there already.

A job makes one thing: a store of targets, a run that others need, or a cell with its scores. What determines its
result is hashed, its needs' hashes included; `mtkd.bench.records` keeps what was begun, with which hash.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from mtkd.bench.cells import Cell, cells, runs, target_job, target_path, validation_sets, weights_path, with_own_images
from mtkd.bench.grid import Grid
from mtkd.bench.records import read_record
from mtkd.bench.scores import plain_options, read_scores, test_options
from mtkd.config import OptionError, Options, Problem, make_options
from mtkd.contracts import MtkdError

Kind = Literal["target", "run", "cell", "teachers"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One thing to make.

    Attributes:
        name: unique; the key in `needs` of others.
        kind: what it makes.
        scale: of its networks.
        needs: names of the jobs that come first.
        cell: the training run of a cell or run.
        target: name of the store under `targets` or `teachers`.
        images: the setting whose training images the store is of, "" for the protocol's.
        digest: of all that determines its result.
        measured: of all that determines its scores.
    """

    name: str
    kind: Kind
    scale: int
    needs: tuple[str, ...] = ()
    cell: Cell | None = None
    target: str = ""
    images: str = ""
    digest: str = ""
    measured: str = ""

    @property
    def file_name(self) -> str:
        """`name` as part of a path."""
        return self.name.replace(":", "_")


@dataclass(frozen=True)
class Plan:
    """The jobs of a grid, each after what it needs."""

    grid: Grid
    out: Path
    jobs: tuple[Job, ...]

    def __getitem__(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)

    @property
    def cells(self) -> list[Job]:
        """The jobs that are cells."""
        return [job for job in self.jobs if job.kind == "cell"]

    def on(self, machine: Mapping[str, Any]) -> Plan:
        """The same jobs, of the same digests, with the keys of `machine` in their option files."""

        def there(job: Job) -> Job:
            cell = job.cell and replace(job.cell, options={**job.cell.options, **machine})
            return replace(job, cell=cell)

        grid = self.grid.model_copy(update={"protocol": {**self.grid.protocol, **machine}})
        return Plan(grid, self.out, tuple(map(there, self.jobs)))

    def needed_by(self, wanted: Sequence[Job]) -> list[Job]:
        """`wanted` and everything below them, in order."""
        return self._below(wanted, lambda job, needed: False)[0]

    def to_make(self, wanted: Sequence[Job]) -> tuple[list[Job], set[str]]:
        """`wanted` and what those of them that are not there need, directly or not, in order; names of what is there.

        What only finished jobs needed may be gone, and is not made again. Nor are cells whose scores are there, unless
        another job needs their weights.
        """
        return self._below(wanted, lambda job, needed: (is_done if needed else is_measured)(self.out, job))

    def _below(self, wanted: Sequence[Job], is_there: Callable[[Job, bool], bool]) -> tuple[list[Job], set[str]]:
        """Args: is_there: of a job, and whether another needs it; what is there needs nothing."""
        names, needed, there = {job.name for job in wanted}, set[str](), set[str]()
        for job in reversed(self.jobs):
            if job.name not in names:
                continue
            if is_there(job, job.name in needed):
                there.add(job.name)
            else:
                names.update(job.needs)
                needed.update(job.needs)
        return [job for job in self.jobs if job.name in names], there


def plan(grid: Grid, out: Path, *, check: bool = True) -> Plan:
    """Every job of `grid`, its option files read and checked, unless the caller knows that they are.

    Raises:
        OptionError: option files of cells are wrong; every problem is named, once for cells that share it.
        MtkdError: targets and runs need each other in a circle, or two jobs would have one name.
    """
    # Paths in it could not be told from other words.
    out = Path.cwd() if out == Path() else out
    shared, own = runs(grid, out), list(cells(grid, out))
    if check:
        _check([*shared, *own])
        # The validation of a shared run is a line of its log, unless it ends the run.
        _check_tests(grid, [*(run for run in shared if (run.options.get("train") or {}).get("early_stop")), *own])
    made = [*_targets(grid), *(Job(name=c.name, kind="run", scale=c.scale, needs=c.needs, cell=c) for c in shared)]
    made += [Job(name=c.name, kind="cell", scale=c.scale, needs=c.needs, cell=c) for c in own]
    if grid.teachers:
        fusions = [c for c in shared if c.options.get("model_type") == "MTKDFusion"]
        for scale in grid.scales:
            needs = tuple(c.name for c in fusions if c.scale == scale)
            made.append(Job(name=f"teachers_x{scale}", kind="teachers", scale=scale, needs=needs))
    by_name = {job.name: job for job in made}
    by_file = {job.file_name: job for job in made}
    if len(by_file) < len(made):
        twice = next(job for job in made if by_file[job.file_name] is not job)
        raise MtkdError(
            f"{grid.name}: two of its {twice.kind}s would be called {twice.name}, in one folder. Names are joined by "
            "_: rename a row, a student, a setting or a run."
        )
    for job in made:
        if lacking := [need for need in job.needs if need not in by_name]:
            raise MtkdError(
                f"{job.name} needs {lacking[0]}, which the grid does not make: `students`, `settings` or `iterations` "
                "of that row leave it out. Let them name it, or leave this cell out too."
            )
    try:
        order = list(TopologicalSorter({job.name: job.needs for job in made}).static_order())
    except CycleError as error:
        raise MtkdError(f"These need each other: {' -> '.join(error.args[1])}. Break the circle.") from error
    # What cells need comes first; the cells in the order of the grid, so that neighbours finish together.
    ordered = [by_name[name] for name in order if by_name[name].kind != "cell"]
    waiting = [job for job in made if job.kind == "cell"]
    while waiting:
        known = {job.name for job in ordered}
        ready = [job for job in waiting if known.issuperset(job.needs)]
        ordered += ready
        waiting = [job for job in waiting if job not in ready]
    done: dict[str, Job] = {}
    for job in ordered:
        done[job.name] = _with_digests(job, grid, out, done)
    # A store that no cell imitates is not made.
    used = _with_needs({job.name for job in done.values() if job.kind != "target"}, done)
    return Plan(grid, out, tuple(job for job in done.values() if job.name in used))


def _with_needs(names: set[str], jobs: Mapping[str, Job]) -> set[str]:
    found = set(names)
    for name in names:
        found |= _with_needs(set(jobs[name].needs), jobs)
    return found


def _check(found: Sequence[Cell]) -> None:
    """Read every option file; the same message of several cells counts once."""
    problems: dict[tuple[str, str], Problem] = {}
    for cell in found:
        try:
            make_options(cell.options, file=cell.name)
        except OptionError as error:
            for problem in error.problems:
                problems.setdefault((cell.row, f"{problem.key} {problem.message}"), problem)
    if problems:
        raise OptionError(list(problems.values()))


def _check_tests(grid: Grid, found: Sequence[Cell]) -> None:
    """Read what all are measured with, as it will be read after the training, and refuse cells that are validated on
    what is pooled.
    """
    pooled: dict[int, dict[str, Any]] = {}
    for scale in grid.scales if found else ():
        sets = test_options(grid, scale).datasets.evaluation.values()
        pooled[scale] = {given.name: getattr(given, "dataroot_gt", None) for given in sets if given.name in grid.pooled}
    for cell in found:
        for key, own in validation_sets(cell).items():
            folder = cell.options["datasets"][key].get("dataroot_gt")
            same = [name for name, place in pooled[cell.scale].items() if name == own or (place and place == folder)]
            if same:
                raise MtkdError(
                    f"pooled: {same[0]} is what {cell.name} is validated on, and no claim should rest on it. Leave it "
                    "out of `pooled`, validate on other images, or on none: `protocol: {datasets: {val: ~}, val: ~}`."
                )


def _targets(grid: Grid) -> Iterator[Job]:
    for scale in grid.scales:
        for images in ("", *with_own_images(grid)):
            own = partial(Job, kind="target", scale=scale, images=images)
            for name in grid.teachers:
                yield own(name=target_job(name, scale, images), target=name)
            for name, target in grid.targets.items():
                needs = [target_job(member, scale, images) for member in target.members]
                if target.run is not None:
                    needs = [f"{target.run}_x{scale}"]
                yield own(name=target_job(name, scale, images), target=name, needs=tuple(needs))


def _with_digests(job: Job, grid: Grid, out: Path, done: Mapping[str, Job]) -> Job:
    below = {name: done[name].digest for name in job.needs}
    test: dict[str, Any] = {"test": grid.test.model_dump()}
    if job.kind == "teachers":
        given: dict[str, Any] = {"teachers": grid.teachers}
        # Its rows are kept under them.
        if titles := {name: grid.title_of("runs", name) for name in grid.runs if f"{name}_x{job.scale}" in job.needs}:
            test["titles"] = titles
    elif job.kind == "target":
        section = grid.targets.get(job.target)
        about = grid.teachers[job.target] if section is None else section.model_dump()
        made_of = plain_options(grid, job.scale, job.images)
        given = {"target": about, "images": made_of["datasets"]["train"], "scale": job.scale}
        if (precision := made_of.get("precision", "fp32")) != "fp32":
            given["precision"] = precision
    else:
        assert job.cell is not None
        given = {key: value for key, value in job.cell.options.items() if key not in ("name", "path", "logger")}
        path = {**job.cell.options.get("path", {})}
        given["path"] = {key: value for key, value in path.items() if not key.endswith("_root")}
    digest = _digest({**given, "needs": below}, grid, out)
    return replace(job, digest=digest, measured=_digest({"of": digest, **test}, grid, out))


def _digest(tree: Any, grid: Grid, out: Path) -> str:
    """Of all values, wherever the grid's data and results lie."""
    # The longer one first, because one may lie in the other.
    places = sorted([(str(out), "{out}"), (grid.data.rstrip("/"), "{data}")], key=lambda pair: -len(pair[0]))

    def moved(item: Any) -> Any:
        if isinstance(item, dict):
            # A data set may be called as the folder is.
            return {key: value if key == "name" else moved(value) for key, value in item.items()}
        if isinstance(item, list | tuple):
            return [moved(value) for value in item]
        if isinstance(item, str):
            for place, word in places:
                if place and (item == place or item.startswith(f"{place}/")):
                    return word + item[len(place) :]
        return item

    text = json.dumps(moved(tree), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store_path(out: Path, job: Job) -> Path:
    """Where the store that `job` makes lies."""
    return target_path(out, job.target, job.scale, job.images)


def is_done(out: Path, job: Job) -> bool:
    """Whether the result of `job` is there, made as the grid says now, and measured as it says."""
    return is_measured(out, job) and (job.kind != "cell" or weights_path(out, job.name).exists())


def is_measured(out: Path, job: Job) -> bool:
    """Whether the tables lack nothing of `job`: it is there, or it is a cell with scores, whose weights were deleted or
    stayed on another machine.
    """
    record = read_record(out, job)
    if record is None or not record.done or record.digest != job.digest:
        return False
    if job.kind == "target":
        return store_path(out, job).exists()
    return weights_path(out, job.name).exists() if job.kind == "run" else read_scores(out, job) is not None


def set_aside(path: Path) -> Path | None:
    """Rename what lies at `path`, because it was made otherwise; nothing is deleted."""
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%d_%H%M%S")
    number, away = 1, path.with_name(f"{path.name}_archived_{stamp}")
    while away.exists():
        number += 1
        away = path.with_name(f"{path.name}_archived_{stamp}_{number}")
    path.rename(away)
    return away


def options_of(job: Job) -> Options:
    """The option file of a cell or run, read again, because weights of what it needs are there now."""
    assert job.cell is not None
    return make_options(job.cell.options, file=job.name)
