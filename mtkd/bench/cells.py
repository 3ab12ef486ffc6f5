"""The training runs of a grid, each with its option file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkd.bench.grid import Grid
from mtkd.bench.mistakes import OF_A_ROW
from mtkd.bench.texts import LINK, fill
from mtkd.config import layers
from mtkd.contracts import MtkdError
from mtkd.runtime import shipped
from mtkd.runtime.given import path as given_path
from mtkd.runtime.run_folder import LATEST, RunFolder
from mtkd.variants import variant


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of the grid.

    Attributes:
        name: of its folder.
        row, subject, scale, iterations, seed: what it is; row and subject are "" for a shared run.
        options: its option file, complete but for the links in `needs`.
        needs: links it depends on, such as "target:mean".
        images: the setting whose training images it has, "" for the protocol's.
    """

    name: str
    row: str = ""
    subject: str = ""
    scale: int
    iterations: int
    seed: int
    options: dict[str, Any]
    needs: tuple[str, ...]
    images: str = ""


def cells(grid: Grid, out: Path) -> Iterator[Cell]:
    """Every cell, made when it is asked for; all rows of a student with one seed beside each other, so that an
    unfinished grid has whole tables of fewer seeds. Runs lie in `out`/runs.

    Raises:
        MtkdError: a base is missing.
    """
    subjects = grid.subjects()
    every = itertools.product(grid.scales, grid.iterations, subjects.items(), grid.seeds, grid.rows)
    for scale, iterations, (name_of_subject, subject), seed, row in every:
        given = grid.rows[row]
        if subject.student not in given.get("students", grid.students) or iterations not in subject.iterations:
            continue
        if iterations not in given.get("iterations", grid.iterations):
            continue
        if subject.setting not in given.get("settings", [subject.setting]):
            continue
        own = {key: value for key, value in given.items() if key not in OF_A_ROW}
        name = f"{row}_{name_of_subject}_x{scale}_{iterations}_s{seed}"
        place = {"scale": scale, "iterations": iterations, "seed": seed}
        options = _options(grid, out, own, setting=subject.options, network=subject.network, name=name, **place)
        images = subject.setting if subject.setting in with_own_images(grid) else ""
        options, needs = _linked(options, out, scale=scale, suffix=name.removeprefix(row), images=images)
        yield Cell(
            name=name, row=row, subject=name_of_subject, options=options, needs=tuple(needs), images=images, **place
        )


def runs(grid: Grid, out: Path) -> list[Cell]:
    """The training runs that cells share, one of each for every scale."""
    found = []
    for scale in grid.scales:
        for run, given in grid.runs.items():
            own = {key: value for key, value in given.items() if key not in OF_A_ROW}
            iterations, name = given.get("iterations", max(grid.iterations)), f"{run}_x{scale}"
            place = {"scale": scale, "iterations": iterations, "seed": given.get("manual_seed", grid.seeds[0])}
            options = _options(grid, out, own, network=None, name=name, **place)
            options, needs = _linked(options, out, scale=scale, suffix="", images="")
            found.append(Cell(name=name, options=options, needs=tuple(needs), **place))
    return found


def validation_sets(cell: Cell) -> dict[str, str]:
    """Key in the option file -> name, of what a run is validated on."""
    datasets = cell.options.get("datasets", {})
    return {key: str(given.get("name", key)) for key, given in datasets.items() if key.startswith("val")}


def with_own_images(grid: Grid) -> list[str]:
    """The settings that train on other images than the protocol: they have stores of their own."""
    return [name for name, given in grid.settings.items() if (given.get("datasets") or {}).get("train")]


def training_images(grid: Grid, scale: int, setting: str = "") -> dict[str, Any] | None:
    """The section of the training images that rows start from, in a setting or without; None where the protocol and the
    first row's base have none as a whole.
    """
    options = _stacked(_based(next(iter(grid.rows.values()))), grid, grid.settings.get(setting, {}))
    images = fill(options, {"scale": scale, "iterations": max(grid.iterations)}).get("datasets", {}).get("train")
    return images if images and "type" in images else None


def _options(
    grid: Grid,
    out: Path,
    own: Mapping[str, Any],
    *,
    setting: Mapping[str, Any] | None = None,
    network: Any,
    name: str,
    scale: int,
    iterations: int,
    seed: int,
) -> dict[str, Any]:
    options = _stacked(_based(own), grid, setting or {}, own)
    if isinstance(members := options.get("teachers"), list):
        options["teachers"] = {member: grid.teachers[member] for member in members}
    if network is not None:
        options["network_g"] = _student(network, own.get("network_g"), name)
    options |= {"name": name, "scale": scale, "manual_seed": seed}
    options["path"] = {**options.get("path", {}), "experiments_root": str(out / "runs")}
    filled = fill(options, {"iterations": iterations, "scale": scale, "seed": seed})
    total = (filled.get("train") or {}).get("total_iter", iterations)
    if total != iterations:
        raise MtkdError(
            f"{name} is called one of {iterations} iterations, and its train.total_iter is {total}. Write `protocol: "
            "{train: {total_iter: '{iterations}'}}`, or the same number in both."
        )
    return filled


def _stacked(base: Mapping[str, Any], grid: Grid, *above: Mapping[str, Any]) -> dict[str, Any]:
    """`base`, the protocol's base, the protocol and `above`, one over the other: `~` takes away what any below says."""
    options: dict[str, Any] = {}
    for part in (base, _based(grid.protocol), grid.protocol, *above):
        options = layers.merged(options, {key: value for key, value in part.items() if key != layers.BASE})
    return options


def _student(network: Any, changes: Any, name: str) -> Any:
    """The student, with what its row changes of it."""
    if changes is None:
        return network
    if not isinstance(changes, Mapping) or "type" in changes:
        raise MtkdError(
            f"{name}: network_g of a row changes arguments of the students, as {{num_feat: 32}} does, and found "
            f"{changes!r}. Name networks under `students`."
        )
    return {**(variant(network) if isinstance(network, str) else network), **changes}


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


def _linked(tree: Any, out: Path, *, scale: int, suffix: str, images: str) -> tuple[Any, list[str]]:
    """`tree` with paths in place of links, and what it links to: the name of a target's job, or of a run."""
    needs: list[str] = []

    def linked(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: linked(value) for key, value in item.items()}
        if isinstance(item, list):
            return [linked(value) for value in item]
        found = LINK.fullmatch(item) if isinstance(item, str) else None
        if found is None:
            return item
        if found[1] == "target":
            need, path = target_job(found[2], scale, images), target_path(out, found[2], scale, images)
        else:
            run = f"{found[2]}_x{scale}" if found[1] == "run" else f"{found[2]}{suffix}"
            need, path = run, weights_path(out, run)
        if need not in needs:
            needs.append(need)
        return str(path)

    return linked(tree), needs


def weights_path(out: Path, run: str) -> Path:
    """Where the last weights of the run or cell `run` lie."""
    return RunFolder(out / "runs" / run).model(LATEST)


def target_job(name: str, scale: int, images: str = "") -> str:
    """What the job of the store `name` is called, of the images of the protocol or of the setting `images`."""
    return f"target:{name}{f'_{images}' if images else ''}_x{scale}"


def target_path(out: Path, name: str, scale: int, images: str = "") -> Path:
    """Where that store lies."""
    return out / "targets" / f"{target_job(name, scale, images).removeprefix('target:')}.safetensors"
