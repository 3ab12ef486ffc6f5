"""A grid file: what its cells share, and in what they differ.

    name: cpu_x4
    base: shared.yml             # what several grids share: it lies under this file as the base of an option file does
    protocol: {...}              # what all runs share: sections of an option file, or `base: FILE` and changes
    iterations: [4000, 24000]    # the lengths; {iterations}, {1/4} and {5/8+1} in texts are parts of the run's own
    scales: [4]
    seeds: [10, 20, 30]
    students: {small: {type: EDSR, num_feat: 16, num_block: 4}}
    settings: {few: {title: 20 photographs, datasets: {train: {meta_info_file: FILE}}}}   # a table for each
    teachers: {a: {images: FOLDER}, b: zoo:NAME}
    runs: {fusion: {model_type: MTKDFusion, teachers: [a, b], network_g: dctswin, iterations: 8000, ...}}
    targets: {mean: {from: [a, b]}, fused: {run: fusion}}
    rows:
      scratch: {title: from scratch, model_type: SRModel, train: {pixel_opt: {type: L1Loss}}}
      best: {base: 'recipe:MTKD/stage2_best', target_store: 'target:fused', teachers: ~, fusion: ~}
    test: {datasets: {test_1: {...}}, metrics: {...}}
    baselines: [scratch]
    pooled: [Set5, Set14]

A cell is a row, a student (in a setting), a scale, a length and a seed, and an ordinary training run. Its option file
is, from below: the row's base, the protocol, the setting, the row, and what the cell says. A text `target:NAME`,
`run:NAME` or `row:NAME` stands for a store, for the weights of a run, or for those of another row's cell with the same
student, setting, scale, length and seed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from mtkd.bench.texts import fill, links
from mtkd.config import OptionError, Problem, layers
from mtkd.config.problems import KeyPath, key_text, of_pydantic
from mtkd.config.schema.fields import Count, FileName, Int, Section

_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
BICUBIC, MEAN = "bicubic", "mean of the teachers"
MEASURED = (BICUBIC, MEAN)
"""Rows of every table that no grid names."""


class Part(BaseModel):
    """A mapping of a grid file, as strict as those of option files."""

    model_config = Section.model_config


class Target(Part):
    """A store of images to imitate: of teachers and other targets together, or of what a run's network makes.

    Attributes:
        members: names under `teachers` or `targets`, whose images are averaged.
        weights: of the members, equal where none are given.
        gt: share of the ground truth in the image.
        run: a run of model_type MTKDFusion, whose fused images are kept.
    """

    members: list[str] = Field(default=[], alias="from")
    weights: list[float] | None = None
    gt: Annotated[float, Field(ge=0, le=1)] = 0.0
    run: str | None = None


class Test(Part):
    """What every trained network is measured on: `datasets` and `metrics` as in a test file.

    `teacher_sets` are the names of the sets that teachers are measured on too, all where none is named.
    """

    datasets: dict[str, Any]
    teacher_sets: list[str] = []
    metrics: dict[str, dict[str, Any]]


class Figure(Part):
    """A figure from a paper, for a setting that matches; see `mtkd.report.content.Published`."""

    name: str
    dataset: str
    metric: str
    value: float
    source: str


class OfARow(BaseModel):
    """The keys of a row, run or setting that belong to the grid, not to an option file."""

    model_config = {**Section.model_config, "extra": "ignore"}

    title: str = ""
    note: str = ""
    students: list[str] = []
    settings: list[str] = []
    iterations: list[Count] = []


class OfARun(OfARow):
    """As `OfARow`; a run has one length."""

    iterations: Count = 1  # pyright: ignore[reportIncompatibleVariableOverride]


OF_A_ROW = ("title", "note", "students", "settings", "iterations")
"""Keys of a row, run or setting that belong to the grid, not to an option file."""


class Subject(NamedTuple):
    """What a table is about: a student in a setting.

    Attributes:
        student: key under `students`.
        setting: key under `settings`; "" where there are none.
        network: of the student.
        options: of the setting, which lie over the protocol.
        title: for readers.
        iterations: the lengths that the setting has.
    """

    student: str
    setting: str
    network: Any
    options: dict[str, Any]
    title: str
    iterations: list[int]


class Grid(Part):
    """A grid file, checked for its shape; `cells` and `runs` make option files of it."""

    name: FileName
    title: str = ""
    data: str = ""
    protocol: dict[str, Any]
    iterations: list[Count] = Field(min_length=1)
    scales: list[Count] = Field(min_length=1)
    seeds: list[Int] = Field(min_length=1)
    students: dict[str, Any] = Field(min_length=1)
    teachers: dict[str, Any] = {}
    runs: dict[str, dict[str, Any]] = {}
    targets: dict[str, Target] = {}
    settings: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = Field(min_length=1)
    test: Test
    baselines: list[str] = []
    pooled: list[str] = []
    pictures: dict[str, list[str]] = {}
    published: list[Figure] = []

    def subjects(self) -> dict[str, Subject]:
        """What tables are about, by name: every student, in every setting where there are some."""
        found = {}
        for student, network in self.students.items():
            if not self.settings:
                found[student] = Subject(student, "", network, {}, student, self.iterations)
            for setting, given in self.settings.items():
                own = {key: value for key, value in given.items() if key not in OF_A_ROW}
                title = f"{student}, {given.get('title', setting)}"
                lengths = given.get("iterations", self.iterations)
                found[f"{student}_{setting}"] = Subject(student, setting, network, own, title, lengths)
        return found

    def title_of(self, section: Literal["rows", "runs"], name: str) -> str:
        """What readers call the row or run."""
        return str(getattr(self, section)[name].get("title", name))


def load_grid(path: Path, *, data: Path | None = None) -> Grid:
    """The grid in the file at `path`, over its base if it names one.

    `data` takes the place of its own `data`, where {data} is written.

    Raises:
        OptionError: the file is no grid; every problem is named.
    """
    document = layers.load(path)

    def fail(messages: Iterable[tuple[KeyPath, str]]) -> OptionError:
        problems = []
        for where, message in messages:
            prefixes = (where[:end] for end in range(len(where), 0, -1))
            known = next((prefix for prefix in prefixes if prefix in document.lines), ())
            file, line = document.files.get(known, document.file), document.lines.get(known)
            problems.append(Problem(file, line, key_text(where), message))
        return OptionError(problems)

    if not isinstance(document.data, dict) or "rows" not in document.data:
        raise fail([((), "is no grid: it has no `rows`. `mtkd bench --help` shows one.")])
    try:
        grid = Grid.model_validate(document.data)
    except ValidationError as error:
        raise fail((tuple(e["loc"]), of_pydantic(e)) for e in error.errors()) from error
    if problems := [*_problems(grid)]:
        raise fail(problems)
    grid = grid.model_copy(update={"data": str(data) if data is not None else grid.data})
    return Grid.model_validate(fill(grid.model_dump(by_alias=True), {"data": grid.data}))


def _problems(grid: Grid) -> Iterator[tuple[KeyPath, str]]:
    if shapes := [*_shapes(grid)]:
        yield from shapes
        return
    yield from _twice(grid)
    yield from _names_of_sets(grid)
    for section in ("students", "settings", "teachers", "runs", "targets", "rows"):
        for name in getattr(grid, section):
            if not _NAME.fullmatch(name):
                yield (section, name), "a name is made of letters, digits, _ and -; `title` is for readers."
    for name in grid.baselines:
        if name not in grid.rows:
            yield ("baselines",), f"{name} is no row. There are {', '.join(grid.rows)}."
    for name, target in grid.targets.items():
        if target.run is not None and (target.members or target.weights or target.gt):
            yield ("targets", name), "is either `run: NAME` or made of others (`from`, `weights`, `gt`), not both."
        if target.run is None and not target.members and target.gt != 1:
            yield ("targets", name), "says neither `from: [NAME, ...]` nor `run: NAME`, nor `gt: 1`."
        if target.run is not None and target.run not in grid.runs:
            yield ("targets", name, "run"), f"{target.run} is not among `runs`: {', '.join(grid.runs) or 'none'}."
        if target.weights is not None and len(target.weights) != len(target.members):
            message = f"has {len(target.weights)} numbers for the {len(target.members)} images of `from`."
            yield ("targets", name, "weights"), message
        if target.weights is not None and (min(target.weights, default=0) < 0 or sum(target.weights) <= 0):
            yield ("targets", name, "weights"), "must be numbers from 0 on, one of them above 0."
        if target.gt == 1 and target.members:
            yield ("targets", name, "gt"), "1 is the ground truth alone. Leave `from` out, or give gt a smaller share."
        if name in grid.teachers:
            yield ("targets", name), "is the name of a teacher, whose own answers target:NAME means. Choose another."
        for member in target.members:
            if member not in grid.teachers and member not in grid.targets:
                yield ("targets", name, "from"), f"{member} is neither a teacher nor a target."
    limits = {"students": grid.students, "settings": grid.settings, "iterations": grid.iterations}
    for section, keys in (("rows", limits), ("settings", ["iterations"])):
        for name, given in getattr(grid, section).items():
            for key in keys:
                for one in given.get(key, ()):
                    if one not in limits[key]:
                        there = ", ".join(map(str, limits[key])) or "none"
                        yield (section, name, key), f"names {one}, which the grid has not: {there}."
    for section in ("rows", "runs", "settings"):
        for name, given in getattr(grid, section).items():
            known = {
                "target": {**grid.teachers, **grid.targets},
                "run": grid.runs,
                "row": grid.rows if section != "runs" else {},
            }
            for kind, link in links(given):
                if kind not in known:
                    word = kind.removesuffix("s")
                    yield (section, name), f"names {kind}:{link}. A link is {word}:{link}."
                elif link not in known[kind]:
                    yield (section, name), f"names {kind}:{link}, which there is not."
            members = given.get("teachers")
            for member in members if isinstance(members, list) else ():
                if member not in grid.teachers:
                    yield (section, name, "teachers"), f"{member} is not among the grid's `teachers`."


def _shapes(grid: Grid) -> Iterator[tuple[KeyPath, str]]:
    for section, model in (("rows", OfARow), ("runs", OfARun), ("settings", OfARow)):
        for name, given in getattr(grid, section).items():
            try:
                model.model_validate({key: given[key] for key in OF_A_ROW if key in given})
            except ValidationError as error:
                for one in error.errors():
                    yield (section, name, *one["loc"]), of_pydantic(one)


def _twice(grid: Grid) -> Iterator[tuple[KeyPath, str]]:
    """What would be the same thing under one name, in folders or for readers."""
    for key in ("iterations", "scales", "seeds", "baselines", "pooled"):
        for value in _repeated(getattr(grid, key)):
            yield (key,), f"names {value} twice."
    subjects = [f"{student}_{setting}" for student in grid.students for setting in grid.settings]
    for name in _repeated(subjects):
        yield ("settings",), f"{name} would be the folder of two students with a setting each. Rename one."
    for title in _repeated(str(given.get("title", name)) for name, given in grid.settings.items()):
        yield ("settings",), f'the title "{title}" stands twice, and tables would be mixed. Give each its own.'
    rows = {name: grid.title_of("rows", name) for name in grid.rows}
    measured = [*MEASURED, *grid.teachers, *(grid.title_of("runs", name) for name in grid.runs)]
    for title in _repeated(rows.values()):
        yield ("rows",), f'the title "{title}" stands twice, and readers could not tell which is meant.'
    for title in _repeated(measured):
        yield ("runs",), f'"{title}" is the name of two networks that are measured. Give the run another title.'
    for name, title in rows.items():
        if title in measured:
            yield ("rows", name, "title"), f'"{title}" is what a network that is only measured is called.'


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _names_of_sets(grid: Grid) -> Iterator[tuple[KeyPath, str]]:
    sets = grid.test.datasets.items()
    names = [str(given.get("name", key)) if isinstance(given, dict) else key for key, given in sets]
    for name in _repeated(names):
        yield ("test", "datasets"), f"two sets are called {name}."
    for where, wanted in (
        (("pooled",), grid.pooled),
        (("test", "teacher_sets"), grid.test.teacher_sets),
        (("pictures",), grid.pictures),
    ):
        for name in wanted:
            if name not in names:
                yield where, f"{name} is no test set. There are {', '.join(names)}."
