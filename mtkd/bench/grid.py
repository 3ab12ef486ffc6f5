"""A grid file: what its cells share, and in what they differ.

    name: cpu_x4
    protocol: {...}              # what all runs share: sections of an option file, or `base: FILE` and changes
    iterations: [4000, 24000]    # the lengths; {iterations}, {1/4} and {5/8+1} in texts are parts of the run's own
    scales: [4]
    seeds: [10, 20, 30]
    students: {small: {type: EDSR, num_feat: 16, num_block: 4}}
    teachers: {a: {images: FOLDER}, b: zoo:NAME}
    runs: {fusion: {model_type: MTKDFusion, teachers: [a, b], network_g: dctswin, iterations: 8000, ...}}
    targets: {mean: {from: [a, b]}, fused: {run: fusion}}
    rows:
      scratch: {title: from scratch, model_type: SRModel, train: {pixel_opt: {type: L1Loss}}}
      best: {base: 'recipe:MTKD/stage2_best', target_store: 'target:fused', teachers: ~, fusion: ~}
    test: {datasets: {test_1: {...}}, metrics: {...}}
    baselines: [scratch]
    pooled: [Set5, Set14]

A cell is a row, a student, a scale, a length and a seed, and an ordinary training run. Its option file is, from below:
the row's base, the protocol, the row, and what the cell says. A text `target:NAME`, `run:NAME` or `row:NAME` stands for
a store, for the weights of a run, or for those of another row's cell with the same student, scale, length and seed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mtkd.config import OptionError, Problem, layers, yaml_loader
from mtkd.config.problems import KeyPath, key_text, of_pydantic
from mtkd.config.schema.fields import Count, FileName, Int, Section
from mtkd.contracts import MtkdError
from mtkd.runtime import shipped
from mtkd.runtime.given import path as given_path

_PART = re.compile(r"\{(\d+)/(\d+)(?:\+(\d+))?\}")
_LINK = re.compile(r"(target|run|row):([\w.-]+)")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


class Target(Section):
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


class Test(Section):
    """What every trained network is measured on: `datasets` and `metrics` as in a test file.

    `teacher_sets` are the names of the sets that teachers are measured on too, all where none is named.
    """

    datasets: dict[str, Any]
    teacher_sets: list[str] = []
    metrics: dict[str, dict[str, Any]]


class Grid(Section):
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
    rows: dict[str, dict[str, Any]] = Field(min_length=1)
    test: Test
    baselines: list[str] = []
    pooled: list[str] = []
    pictures: dict[str, list[str]] = {}
    published: list[dict[str, Any]] = []

    def title_of(self, section: Literal["rows", "runs"], name: str) -> str:
        """What readers call the row or run."""
        return str(getattr(self, section)[name].get("title", name))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of the grid.

    Attributes:
        name: of its folder.
        row, student, scale, iterations, seed: what it is; row and student are "" for a shared run.
        options: its option file, complete but for the links in `needs`.
        needs: links it depends on, such as "target:mean".
    """

    name: str
    row: str = ""
    student: str = ""
    scale: int
    iterations: int
    seed: int
    options: dict[str, Any]
    needs: tuple[str, ...]


def load_grid(path: Path, *, data: Path | None = None) -> Grid:
    """The grid in the file at `path`; `data` takes the place of its own `data`, where {data} is written.

    Raises:
        OptionError: the file is no grid; every problem is named.
    """
    document = yaml_loader.load(path)

    def fail(messages: Iterable[tuple[KeyPath, str]]) -> OptionError:
        problems = []
        for where, message in messages:
            known = (document.lines.get(where[:end]) for end in range(len(where), 0, -1))
            line = next((line for line in known if line is not None), None)
            problems.append(Problem(str(path), line, key_text(where), message))
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
    for section in ("students", "teachers", "runs", "targets", "rows"):
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
        for member in target.members:
            if member not in grid.teachers and member not in grid.targets:
                yield ("targets", name, "from"), f"{member} is neither a teacher nor a target."
    for section in ("rows", "runs"):
        for name, given in getattr(grid, section).items():
            known = {"target": grid.targets, "run": grid.runs, "row": grid.rows if section == "rows" else {}}
            for kind, link in links(given):
                if link not in known[kind]:
                    yield (section, name), f"names {kind}:{link}, which there is not."
            members = given.get("teachers")
            for member in members if isinstance(members, list) else ():
                if member not in grid.teachers:
                    yield (section, name, "teachers"), f"{member} is not among the grid's `teachers`."


def cells(grid: Grid, out: Path) -> list[Cell]:
    """Every cell; all rows of a student with one seed beside each other, so that an unfinished grid has whole tables of
    fewer seeds. Runs lie in `out`/runs.

    Raises:
        MtkdError: a base is missing.
    """
    found = []
    every = itertools.product(grid.scales, grid.iterations, grid.students, grid.seeds, grid.rows)
    for scale, iterations, student, seed, row in every:
        given = grid.rows[row]
        if student not in given.get("students", grid.students):
            continue
        if iterations not in given.get("iterations", grid.iterations):
            continue
        own = {key: value for key, value in given.items() if key not in _OF_A_ROW}
        name = f"{row}_{student}_x{scale}_{iterations}_s{seed}"
        place = {"scale": scale, "iterations": iterations, "seed": seed}
        options = _options(grid, out, own, network=grid.students[student], name=name, **place)
        options, needs = _linked(options, out, scale=scale, suffix=name.removeprefix(row))
        found.append(Cell(name=name, row=row, student=student, options=options, needs=tuple(needs), **place))
    return found


_OF_A_ROW = ("title", "note", "students", "iterations")


def runs(grid: Grid, out: Path) -> list[Cell]:
    """The training runs that cells share, one of each for every scale."""
    found = []
    for scale in grid.scales:
        for run, given in grid.runs.items():
            own = {key: value for key, value in given.items() if key not in _OF_A_ROW}
            iterations, name = given.get("iterations", max(grid.iterations)), f"{run}_x{scale}"
            place = {"scale": scale, "iterations": iterations, "seed": given.get("manual_seed", grid.seeds[0])}
            options = _options(grid, out, own, network=None, name=name, **place)
            options, needs = _linked(options, out, scale=scale, suffix="")
            found.append(Cell(name=name, options=options, needs=tuple(needs), **place))
    return found


def _options(
    grid: Grid, out: Path, own: Mapping[str, Any], *, network: Any, name: str, scale: int, iterations: int, seed: int
) -> dict[str, Any]:
    below = _based(own)
    above = {key: value for key, value in own.items() if key != layers.BASE}
    options = layers.merged(layers.merged(below, _protocol(grid)), above)
    if isinstance(members := options.get("teachers"), list):
        options["teachers"] = {member: grid.teachers[member] for member in members}
    if network is not None:
        options["network_g"] = network
    options |= {"name": name, "scale": scale, "manual_seed": seed}
    options["path"] = {**options.get("path", {}), "experiments_root": str(out / "runs")}
    return fill(options, {"iterations": iterations, "scale": scale, "seed": seed})


def _protocol(grid: Grid) -> dict[str, Any]:
    above = {key: value for key, value in grid.protocol.items() if key != layers.BASE}
    return layers.merged(_based(grid.protocol), above)


def _based(given: Mapping[str, Any]) -> dict[str, Any]:
    """The option file that `base` names, complete; {} where it names none."""
    named = given.get(layers.BASE)
    if named is None:
        return {}
    if not isinstance(named, str):
        raise MtkdError(f"base must be an option file or recipe:NAME, found {named!r}.")
    recipe = named.startswith(shipped.RECIPE)
    path = shipped.recipe(named.removeprefix(shipped.RECIPE)) if recipe else given_path(named)
    data = layers.load(path).data
    if not isinstance(data, dict):
        raise MtkdError(f"{path} is no option file: it has no `key: value` lines.")
    return data


def fill(tree: Any, values: Mapping[str, Any]) -> Any:
    """`tree` with {word} replaced in its texts, and {a/b+c} by that part of `iterations`; a text that is one word alone
    becomes the value itself.
    """
    if isinstance(tree, dict):
        return {key: fill(item, values) for key, item in tree.items()}
    if isinstance(tree, list):
        return [fill(item, values) for item in tree]
    if not isinstance(tree, str) or "{" not in tree:
        return tree
    for word, value in values.items():
        if tree == f"{{{word}}}":
            return value
        tree = tree.replace(f"{{{word}}}", str(value))
    if "iterations" in values:

        def part(found: re.Match[str]) -> str:
            above, below, more = int(found[1]), int(found[2]), int(found[3] or 0)
            return str(round(values["iterations"] * above / below) + more)

        whole = _PART.fullmatch(tree)
        return int(part(whole)) if whole else _PART.sub(part, tree)
    return tree


def links(tree: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of every `target:`, `run:` and `row:` in a tree of plain values."""
    if isinstance(tree, dict | list):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from links(item)
    elif isinstance(tree, str) and (found := _LINK.fullmatch(tree)):
        yield found[1], found[2]


def _linked(tree: Any, out: Path, *, scale: int, suffix: str) -> tuple[Any, list[str]]:
    """`tree` with paths in place of links, and what it links to: "target:NAME_xSCALE" or the name of a run."""
    needs: list[str] = []

    def linked(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: linked(value) for key, value in item.items()}
        if isinstance(item, list):
            return [linked(value) for value in item]
        found = _LINK.fullmatch(item) if isinstance(item, str) else None
        if found is None:
            return item
        if found[1] == "target":
            need, path = f"target:{found[2]}_x{scale}", target_path(out, found[2], scale)
        else:
            run = f"{found[2]}_x{scale}" if found[1] == "run" else f"{found[2]}{suffix}"
            need, path = run, out / "runs" / run / "models/net_g_latest.pth"
        if need not in needs:
            needs.append(need)
        return str(path)

    return linked(tree), needs


def target_path(out: Path, name: str, scale: int) -> Path:
    """Where the store `name` lies."""
    return out / "targets" / f"{name}_x{scale}.safetensors"
