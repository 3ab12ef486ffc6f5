"""A grid of `mtkd bench` where a machine is there for minutes: its toy size, what was reached, a state that travels."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mtkd.archs.edsr import EDSR
from mtkd.bench import jobs, records
from mtkd.bench.control import python_command
from mtkd.bench.gather import gather
from mtkd.bench.grid import load_grid
from mtkd.bench.jobs import Job, Plan
from mtkd.bench.scores import read_scores, scores_path
from mtkd.config import layers, yaml_loader
from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.resize import bicubic_lq, imresize
from mtkd.report.statistics import summary

PART_BYTES, PARTS = 15 * 2**20, 3
"""A state is packed into at most so many files of at most so many bytes."""
STOPPING = 20.0
"""Seconds in which a run that is asked to stop saves and ends."""
GRID = "grid.yml"
"""Name of the grid in a state."""
_TEACHER = {"type": "EDSR", "num_feat": 4, "num_block": 1, "upscale": 4}


def prepare(file: Path, out: Path, *, data: Path | None, iterations: int | None = None, small: bool = False) -> Plan:
    """Write the grid of `file` to OUT/grid.yml, with another length where one is given, and plan it.

    Args:
        data: its images, instead of those that it names.
        iterations: of every run.
        small: three rows, one seed and its first student with one block, four iterations, on the CPU, with images made
            in OUT/data where no `data` is given.

    Raises:
        MtkdError: it is no grid, or option files of it are wrong.
    """
    load_grid(file)
    grid: dict[str, Any] = layers.load(file).data
    if small:
        _shrink(grid)
        iterations = 4
    if data is not None:
        grid["data"] = str(data)
    elif small:
        grid["data"] = str(out / "data")
        _toy_data(out / "data", list(grid.get("teachers", {})))
    if iterations is not None:
        grid["iterations"] = [iterations]
        for run in grid.get("runs", {}).values():
            run["iterations"] = iterations
    out.mkdir(parents=True, exist_ok=True)
    (out / GRID).write_text(yaml_loader.dump(grid), encoding="utf-8")
    return planned(out)


def planned(out: Path) -> Plan:
    """The plan of OUT/grid.yml."""
    return jobs.plan(load_grid(out / GRID), out)


def command(out: Path, job: Job) -> list[str]:
    """The command line that makes `job` of OUT/grid.yml."""
    return python_command(["bench", str(out / GRID), "--out", str(out), "--job", job.name])


def _shrink(grid: dict[str, Any]) -> None:
    grid["name"] += "_rehearsed"
    protocol = grid["protocol"]
    protocol.pop("compile", None)  # it would take longer than all the rest
    protocol |= {"num_gpu": 0, "precision": "fp32", "logger": {"print_freq": 2, "save_checkpoint_freq": 2}}
    protocol["datasets"]["train"] |= {"gt_size": 32, "batch_size_per_gpu": 2}
    protocol["datasets"]["val"] = {**protocol["datasets"]["val"], "dataroot_gt": "{data}/val"}
    # As many rows as make every kind of job: answers, a live teacher, their mean, the fusion network, its images.
    rows = list(grid["rows"])
    grid["rows"] = {name: grid["rows"][name] for name in dict.fromkeys([*rows[:1], *rows[-2:]])}
    grid["baselines"] = [name for name in grid.get("baselines", []) if name in grid["rows"]]
    grid["seeds"] = grid["seeds"][:1]
    name, network = next(iter(grid["students"].items()))
    grid["students"] = {name: {**network, "num_feat": 4, "num_block": 1}}
    for run in grid.get("runs", {}).values():
        run["network_g"] |= {"embed_dim": 8, "depths": [2], "num_heads": [2]}
    for teacher in grid.get("teachers", {}).values():
        if "pretrain" in teacher:
            teacher["network"] = _TEACHER


def _toy_data(data: Path, teachers: list[str]) -> None:
    """Folders as the bundle has them, of crops of the demo's photographs, and a teacher that learned nothing."""
    root = Path(__file__).resolve().parents[2]
    photos = [read_image(path)[:96, :96] for path in list_images(root / "datasets/demo/test")[:3]]
    for number, photo in enumerate(photos):
        for folder in ("train", "val"):
            write_image(data / folder / f"{number}.png", photo)
        for name in teachers:
            for folder in ("train", "Set5"):
                write_image(data / "answers" / name / folder / f"{number}.png", imresize(imresize(photo, 0.5), 2))
        for name in ("Set5", "Set14", "B100"):
            write_image(data / "test" / name / "gt" / f"{number}.png", photo)
            write_image(data / "test" / name / "lq" / f"{number}.png", bicubic_lq(photo, 4))
    torch.manual_seed(0)
    net = EDSR(**{key: value for key, value in _TEACHER.items() if key != "type"})
    torch.save({"params": net.state_dict()}, data / "CRAFT_x4.pth")


def waiting(plan: Plan) -> list[Job]:
    """What has no scores yet: the first seed of every row, the other seeds after it, then what is only measured.

    Weights need not be there: few of them travel.
    """
    seeds = plan.grid.seeds
    cells = sorted(plan.cells, key=lambda job: seeds.index(job.cell.seed) if job.cell else 0)
    measured_only = [job for job in plan.jobs if job.kind == "teachers"]
    return [job for job in (*cells, *measured_only) if read_scores(plan.out, job) is None]


def reached(plan: Plan) -> dict[str, Any]:
    """For people: the mean and the standard deviation over seeds of every row that is measured, and how far the runs
    are that were begun and are not.
    """
    rows, (scale,) = [], plan.grid.scales
    try:
        report = gather(plan, scale)
    except MtkdError:
        report = None
    for row in report.rows if report is not None else ():
        shown: dict[str, Any] = {"row": row.name, "of": row.group}
        if row.kind == "student":
            shown["seeds"] = len(row.seeds)
        for dataset in report.images if report is not None else ():
            for metric in plan.grid.test.metrics:
                if report is not None and (found := summary(report, row, dataset, metric)) is not None:
                    shown[f"{dataset} {metric}"] = found.mean
                    if found.seeds > 1:
                        shown[f"{dataset} {metric}, deviation"] = found.sd
        rows.append(shown)
    left = {job.name for job in waiting(plan)}
    runs = (job for job in plan.jobs if job.cell is not None and (job.name in left or job.kind == "run"))
    begun = [_so_far(plan, job) for job in runs if not jobs.is_done(plan.out, job) and _folder(plan, job).exists()]
    return {"finished": rows, "unfinished": begun, "cells": len(plan.cells), "cells left": len(left & _names(plan))}


def _names(plan: Plan) -> set[str]:
    return {job.name for job in plan.cells}


def _so_far(plan: Plan, job: Job) -> dict[str, Any]:
    """A run's last iteration and its last validation."""
    found: dict[str, Any] = {"run": job.name, "iterations": last_iteration(plan, job)}
    for line in _lines(plan, job):
        if "metrics" in line:
            found |= {f"{line['validation']} {name}": value for name, value in line["metrics"].items()}
            found["measured at"] = line["step"]
    return found


def _folder(plan: Plan, job: Job) -> Path:
    return plan.out / "runs" / job.name


def _lines(plan: Plan, job: Job) -> list[dict[str, Any]]:
    file = _folder(plan, job) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def last_iteration(plan: Plan, job: Job) -> int:
    """The iteration of the run's last line, 0 when it has none."""
    return max((int(line["step"]) for line in _lines(plan, job)), default=0)


def _small_files(plan: Plan, *, without: Sequence[Job] = ()) -> Iterator[Path]:
    """What a report is made of: the grid, scores, records of jobs, curves; a few hundred KiB in all."""
    yield plan.out / GRID
    yield from sorted(plan.out.glob("costs_x*.json"))
    for job in plan.jobs:
        paths = records.record_path(plan.out, job), scores_path(plan.out, job), _folder(plan, job) / "metrics.jsonl"
        yield from (path for path in paths if job not in without and path.exists())


def pack(plan: Plan, out: Path) -> list[str]:
    """Write what is needed to go on into files of `out` that can travel, and name the runs that must begin anew.

    Runs that others need come first, with their last weights; then those in training, the farthest first, with their
    newest checkpoint; then last weights, which pictures are made with, as many as there is room for.
    """
    shared = [job for job in plan.jobs if job.kind == "run" and jobs.is_done(plan.out, job)]
    begun = [job for job in plan.jobs if job.cell is not None and _folder(plan, job).exists() and job not in shared]
    ended = [job for job in begun if read_scores(plan.out, job) is not None]
    going = sorted((job for job in begun if job not in ended), key=lambda job: -last_iteration(plan, job))
    room = PARTS * PART_BYTES - 2 * tarfile.RECORDSIZE - sum(map(_packed, _small_files(plan)))
    large: list[Path] = []
    left: list[Job] = []
    for job in [*shared, *going, *ended]:
        files = list(_to_keep(_folder(plan, job)))
        if (size := sum(map(_packed, files))) <= room:
            large += files
            room -= size
        elif job not in ended:
            # Not even its curve: a folder with losses and no checkpoint is refused.
            left.append(job)
    archive = out / "state.tar"
    with tarfile.open(archive, "w") as tar:
        for path in dict.fromkeys([*_small_files(plan, without=left), *large]):
            tar.add(path, path.relative_to(plan.out))
    with archive.open("rb") as whole:
        for number in range(PARTS):
            piece = whole.read(PART_BYTES)
            part = out / f"state.tar.{number}"
            part.unlink(missing_ok=True)
            if piece:
                part.write_bytes(piece)
    archive.unlink()
    return [job.name for job in left]


def _packed(path: Path) -> int:
    """Bytes of a file in an archive, at most: three headers, and the rest of its last block."""
    return path.stat().st_size + 4 * tarfile.BLOCKSIZE


def _to_keep(folder: Path) -> Iterator[Path]:
    """What a run goes on from, or its last weights, with what stands beside them."""
    yield from (path for path in folder.iterdir() if path.is_file() and path.suffix != ".log")
    last = folder / "models/net_g_latest.pth"
    if last.exists():
        yield last
        return
    states = sorted((folder / "training_states").glob("*.state"), key=lambda path: -int(path.stem))
    pairs = ((state, folder / "models" / f"net_g_{state.stem}.pth") for state in states)
    yield from next((pair for pair in pairs if pair[1].exists()), ())


def unpack(parts: Path, state: Path) -> None:
    """Undo `pack`: the files `state.tar.N` in `parts` become the folder `state`."""
    pieces = sorted(parts.glob("state.tar.[0-9]"))
    if not pieces:
        return
    state.mkdir(parents=True, exist_ok=True)
    whole = state / "state.tar"
    with whole.open("wb") as file:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, file)
    with tarfile.open(whole) as tar:
        tar.extractall(state, filter="data")
    whole.unlink()
