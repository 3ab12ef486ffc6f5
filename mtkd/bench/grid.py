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

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from mtkd.bench.mistakes import OF_A_ROW, mistakes
from mtkd.bench.texts import fill
from mtkd.config import OptionError, Problem, layers
from mtkd.config.problems import KeyPath, key_text, of_pydantic
from mtkd.config.schema.fields import Count, FileName, Int, Section
from mtkd.runtime import shipped


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
    """A figure from a paper, for a setting that matches; see `mtkd.report.content.Published`. A grid of several scales
    says of which it is.
    """

    name: str
    dataset: str
    metric: str
    value: float
    source: str
    scale: int | None = None


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

    `data` takes the place of its own `data`, where {data} is written. `demo:photographs` is the folder of the demo's
    photographs.

    Raises:
        OptionError: the file is no grid; every problem is named.
        MtkdError: the demo's photographs are not installed.
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
    if problems := [*mistakes(grid)]:
        raise fail(problems)
    place = str(data) if data is not None else grid.data
    if place == shipped.PHOTOGRAPHS:
        place = str(shipped.photographs())
    grid = grid.model_copy(update={"data": place})
    return Grid.model_validate(fill(grid.model_dump(by_alias=True), {"data": grid.data}))
