"""What cannot be in a grid file, found before anything is made of it: names that are not there, or mean two things."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from mtkd.bench.texts import links
from mtkd.config.problems import KeyPath, of_pydantic
from mtkd.config.schema.fields import Count, Section

if TYPE_CHECKING:
    from mtkd.bench.grid import Grid

BICUBIC, MEAN = "bicubic", "mean of the teachers"
"""Rows of every table that no grid names."""
OF_A_ROW = ("title", "note", "students", "settings", "iterations")
"""Keys of a row, run or setting that belong to the grid, not to an option file."""
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


class _OfARow(BaseModel):
    """The keys of a row, run or setting that belong to the grid, not to an option file."""

    model_config = {**Section.model_config, "extra": "ignore"}

    title: str = ""
    note: str = ""
    students: list[str] = []
    settings: list[str] = []
    iterations: list[Count] = []


class _OfARun(_OfARow):
    """As `_OfARow`; a run has one length."""

    iterations: Count = 1  # pyright: ignore[reportIncompatibleVariableOverride]


def mistakes(grid: Grid) -> Iterator[tuple[KeyPath, str]]:
    """Where in the file, and what is wrong there and what to do."""
    if shapes := [*_shapes(grid)]:
        yield from shapes
        return
    yield from _twice(grid)
    yield from _names_of_sets(grid)
    for section in ("students", "settings", "teachers", "runs", "targets", "rows"):
        for name in getattr(grid, section):
            if not _NAME.fullmatch(name):
                yield (section, name), "a name is made of letters, digits, _ and -; `title` is for readers."
    for number, figure in enumerate(grid.published):
        if figure.scale is None and len(grid.scales) > 1:
            message = f"{figure.name}: the grid has several scales. Say of which it is: `scale: N`."
            yield ("published", str(number)), message
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
        if target.weights is not None and min(target.weights, default=1) <= 0:
            yield ("targets", name, "weights"), "must be above 0. Leave a teacher out of `from` that is not wanted."
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
    for section, model in (("rows", _OfARow), ("runs", _OfARun), ("settings", _OfARow)):
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
    measured = [BICUBIC, MEAN, *grid.teachers, *(grid.title_of("runs", name) for name in grid.runs)]
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
