"""Train the cells of a grid side by side within a given time, and go on another day where they stopped.

A grid is a YAML file: `base`, the option file that all cells share; `students`, name -> `network_g`; `rows`, name ->
what the row changes. Each cell, `ROW_STUDENT`, is an ordinary `mtkd train` in its own process. An ordinary option file
is a grid of one cell.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mtkd.config import Options, load_options, make_options, resolved_yaml, yaml_loader
from mtkd.data import store
from mtkd.data.images import read_image
from mtkd.targets.make import teach
from mtkd.targets.store_check import fingerprint, open_training_images

PART_BYTES, PARTS = 15 * 2**20, 3
"""A state is packed into at most so many files of at most so many bytes."""
STOPPING = 20.0
"""Seconds in which a run that is asked to stop saves and ends."""


@dataclass(frozen=True)
class Cell:
    """One run: its name, its row and student for the table, and its option file."""

    name: str
    row: str
    student: str
    options: dict[str, Any]


def cells(file: Path, data: Path, state: Path, *, iterations: int | None = None, small: bool = False) -> list[Cell]:
    """The cells of `file`, with DATA replaced by `data` and runs in `state`.

    Args:
        iterations: another length for every run.
        small: on the CPU in seconds: crops of 32 pixels, two a batch, students of one block.
    """
    plain: dict[str, Any] = yaml_loader.load(file).data
    if "rows" not in plain:
        plain = yaml_loader.parse(resolved_yaml(load_options(file))).data
        plain = {"base": plain, "students": {"": plain["network_g"]}, "rows": {plain["name"]: {}}}
    found = []
    for student, network in plain["students"].items():
        for row, changes in plain["rows"].items():
            options = _merged(plain["base"], {"network_g": network}, changes)
            name = "_".join(part for part in (row, student) if part)
            options |= {"name": name, "path": {**options.get("path", {}), "experiments_root": str(state / "runs")}}
            _replace(options, "DATA", str(data))
            if "target_store" in options and not Path(options["target_store"]).is_absolute():
                options["target_store"] = str(state / "targets" / f"{options['target_store']}.safetensors")
            if small:
                _shrink(options)
            if iterations is not None:
                _shorten(options, iterations)
            found.append(Cell(name, row, student or network["type"], options))
    return found


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over each other, `train` merged key by key."""
    merged: dict[str, Any] = {}
    for part in copy.deepcopy(parts):
        train = {**merged.get("train", {}), **part.get("train", {})}
        merged = {**merged, **part, "train": train}
    return merged


def _replace(tree: Any, word: str, by: str) -> None:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, str):
            tree[key] = value.replace(word, by)
        elif isinstance(value, (dict, list)):
            _replace(value, word, by)


def _shrink(options: dict[str, Any]) -> None:
    options |= {"num_gpu": 0, "precision": "fp32"}
    options["network_g"] |= {"num_feat": 4, "num_block": 1}
    options["datasets"]["train"] |= {"gt_size": 32, "batch_size_per_gpu": 2}


def _shorten(options: dict[str, Any], iterations: int) -> None:
    train = options["train"]
    train["total_iter"] = iterations
    if "periods" in train.get("scheduler", {}):
        train["scheduler"]["periods"] = [iterations]
    options["val"]["val_freq"] = iterations
    options["logger"] |= {"print_freq": max(iterations // 4, 1), "save_checkpoint_freq": max(iterations // 2, 1)}


def make_targets(cell: Cell, data: Path, state: Path, device: str) -> None:
    """The stores `single` and `mean` of the training images, from `data/answers` and the teacher in `data/teacher.pth`.

    `single` holds the answers as they are; `mean` their mean with the answers of the teacher, which runs here.
    """
    base = without_teachers(cell)
    options = make_options(base)
    folder = state / "targets"
    images = open_training_images(options)
    answers = [read_image(data / "answers" / f"{name}.webp") for name in images.gt.names]
    facts = {"fingerprint": fingerprint(options, images)}
    single, mean, own = (folder / f"{name}.safetensors" for name in ("single", "mean", "teacher"))
    if not single.exists():
        store.write(single, images.gt.names, answers, facts)
    if mean.exists():
        return
    others: list[np.ndarray]
    weights = data / "teacher.pth"
    if weights.exists():
        taught = store.ImageStore(own) if own.exists() else teach(_with_teacher(base, weights), own, device=device)
        others = [taught[i] for i in range(len(taught))]
    else:
        others = answers
    means = [((a.astype(np.uint16) + b + 1) // 2).astype(np.uint8) for a, b in zip(answers, others, strict=True)]
    store.write(mean, images.gt.names, means, facts)


def without_teachers(cell: Cell) -> dict[str, Any]:
    """The option file of the cell's student, trained on gt alone."""
    train = {key: value for key, value in cell.options["train"].items() if not key.endswith("_opt")}
    kept = {key: value for key, value in cell.options.items() if key not in ("target_store", "teachers", "fusion")}
    return {**kept, "model_type": "SRModel", "train": {**train, "pixel_opt": {"type": "L1Loss"}}}


def _with_teacher(base: dict[str, Any], weights: Path) -> Options:
    train = {key: value for key, value in base["train"].items() if key != "pixel_opt"}
    return make_options(
        {
            **base,
            "model_type": "OutputKD",
            "teachers": {"teacher": {"network": {"type": "spandrel"}, "pretrain": str(weights)}},
            "train": {**train, "target_opt": {"type": "L1Loss"}},
        }
    )


def train(found: list[Cell], state: Path, log: Path, *, until: float, jobs: int, keep: Callable[[], object]) -> None:
    """Run every cell that is not finished, `jobs` at a time, until all are or `until` (`time.time()`) has come.

    Then the runs are asked to stop, which save and end; a run that does not is killed, and goes on from its last
    checkpoint another day. `keep` is called whenever a run has ended, and at the end.
    """
    waiting = [cell for cell in found if not finished(state, cell)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    with log.open("ab") as output:
        while (waiting or running) and time.time() < until:
            ended = [name for name, process in running.items() if process.poll() is not None]
            for name in ended:
                del running[name]
            if ended:
                keep()
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell.name] = _start(cell, state, output)
            time.sleep(0.2)
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        stopped_by = time.time() + STOPPING
        for process in running.values():
            try:
                process.wait(max(stopped_by - time.time(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    keep()


def _start(cell: Cell, state: Path, output: Any) -> subprocess.Popen[bytes]:
    file = state / "options" / f"{cell.name}.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(cell.options, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "mtkd", "train", "-opt", str(file), "--auto_resume"]
    # Many runs share the cores, and none needs more than one: images are cut on the device.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)


def finished(state: Path, cell: Cell) -> bool:
    """Whether the run has its last weights."""
    return (_folder(state, cell) / "models/net_g_latest.pth").exists() and last_iteration(state, cell) >= total(cell)


def total(cell: Cell) -> int:
    """Iterations of the whole run."""
    return int(cell.options["train"]["total_iter"])


def _folder(state: Path, cell: Cell) -> Path:
    return state / "runs" / cell.name


def _rows(state: Path, cell: Cell) -> list[dict[str, Any]]:
    file = _folder(state, cell) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def last_iteration(state: Path, cell: Cell) -> int:
    """The iteration of the run's last line, 0 when it has none."""
    return max((int(row["step"]) for row in _rows(state, cell)), default=0)


def table(found: list[Cell], state: Path) -> list[dict[str, Any]]:
    """Rows for people: what each cell reached at its last validation."""
    rows = []
    for cell in found:
        row: dict[str, Any] = {"student": cell.student, "row": cell.row, "iterations": last_iteration(state, cell)}
        measured: dict[str, dict[str, float]] = {}
        for line in _rows(state, cell):
            if "metrics" in line:
                measured[str(line["validation"])] = {**line["metrics"], "at": line["step"]}
        for key, values in measured.items():
            # A set is called by its key in the option file, or by its name.
            dataset = cell.options["datasets"].get(key, {}).get("name", key)
            row[f"{dataset} PSNR-Y"], row[f"{dataset} SSIM-Y"] = values.get("psnr"), values.get("ssim")
            row["measured at"] = values["at"]
        rows.append(row)
    return rows


def pack(found: list[Cell], state: Path, out: Path) -> list[str]:
    """Write what is needed to go on into files of `out` that can travel, and name what was left behind.

    Runs in training keep their newest checkpoint; finished ones their last weights, as many as there is room for.
    """
    pieces = []
    for cell in sorted(found, key=lambda cell: finished(state, cell)):
        folder = _folder(state, cell)
        if not folder.exists():
            continue
        small = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".log"]
        pieces.append((cell.name, [*small, *_to_keep(folder, done=finished(state, cell))]))
    archive, left = out / "state.tar", []
    with tarfile.open(archive, "w") as tar:
        for name, files in pieces:
            if archive.stat().st_size + sum(path.stat().st_size + 1024 for path in files) > PARTS * PART_BYTES - 20480:
                left.append(name)
                files = [path for path in files if path.suffix not in (".pth", ".state")]
            for path in files:
                tar.add(path, path.relative_to(state))
            tar.fileobj.flush()  # pyright: ignore[reportOptionalMemberAccess]
    with archive.open("rb") as whole:
        for number in range(PARTS):
            piece = whole.read(PART_BYTES)
            part = out / f"state.tar.{number}"
            part.unlink(missing_ok=True)
            if piece:
                part.write_bytes(piece)
    archive.unlink()
    return left


def _to_keep(folder: Path, *, done: bool) -> Iterator[Path]:
    if done:
        yield folder / "models/net_g_latest.pth"
        # A finished run without its last state would be taken for a damaged one.
        return
    states = sorted((folder / "training_states").glob("*.state"), key=lambda path: int(path.stem))
    if states:
        yield states[-1]
        yield folder / "models" / f"net_g_{states[-1].stem}.pth"


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
