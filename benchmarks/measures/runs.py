"""Runs as users start them, from the repository's option files, ready to be stepped and timed."""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from torch import Tensor

from measures import photos
from mtkd import build, zoo
from mtkd.config import NetworkOptions, Options, load_options, make_options, resolved_yaml, yaml_loader
from mtkd.contracts import Batch
from mtkd.targets.make import teach
from mtkd.training.loop import train_step
from mtkd.training.prepare import prepare
from mtkd.training.run import Run

ROOT = Path(__file__).resolve().parents[2]
STUDENTS = {"EDSR_M": "edsr_m", "RCAN_lw": "rcan_lw", "SwinIR_S": "swinir_s"}
"""The three students of `options/train/MTKD/stage2_published.yml`, and their networks."""
SCALE, LQ = 4, 32
TINY = {"type": "EDSR", "num_feat": 4, "num_block": 1, "upscale": SCALE}


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder for runs, weights and caches, gone afterwards; what runs print is not shown."""
    with TemporaryDirectory() as name, mock.patch.dict(os.environ, MTKD_HOME=name), silence():
        yield Path(name)


def silence() -> contextlib.AbstractContextManager[object]:
    """Within the block, nothing is printed."""
    return contextlib.redirect_stdout(io.StringIO())


def recipe(student: str, folder: Path, device: str, *, small: bool = False) -> dict[str, Any]:
    """The stage-2 recipe of `student` without validation and first weights, on 16 crops of photographs.

    `small` keeps one block of every network.
    """
    force = [f"network_g={STUDENTS[student]}", "path:pretrain_network_g=~"]
    options = load_options(ROOT / "options/train/MTKD/stage2_published.yml", scale=SCALE, force=force)
    plain: dict[str, Any] = yaml_loader.parse(resolved_yaml(options)).data
    if small:
        shrink(plain["network_g"])
        for teacher in plain["teachers"].values():
            shrink(teacher["network"])
        shrink(plain["fusion"]["network"])
    train_set = plain["datasets"]["train"]
    gt_folder, lq_folder = folder / "crops/gt", folder / "crops/lq"
    if not gt_folder.exists():
        made = photos.pairs(folder / "crops", 16, (LQ * SCALE * 2, LQ * SCALE * 2), SCALE)
        for source, target in zip(made, (gt_folder, lq_folder), strict=True):
            source.rename(target)
    train_set |= {"dataroot_gt": str(gt_folder), "dataroot_lq": str(lq_folder), "filename_tmpl": "{}"}
    plain["datasets"] = {"train": train_set}
    del plain["val"]
    plain["path"] = {"experiments_root": str(folder / "experiments")}
    plain["logger"] = {}
    plain["num_gpu"] = 1 if device == "cuda" else 0
    return plain


def shrink(network: dict[str, Any]) -> None:
    """Leave one block of one group."""
    network |= {key: 1 for key in ("num_block", "num_group") if key in network}
    network |= {key: network[key][:1] for key in ("num_heads",) if key in network}
    network |= {key: [2] for key in ("depths",) if key in network}


def changed(plain: Mapping[str, Any], *, batch: int | None = None, lq: int | None = None, **keys: Any) -> Options:
    """`plain` as options, with another batch or crop size and other top-level keys; None removes a key."""
    plain = copy.deepcopy(dict(plain)) | keys
    train_set = plain["datasets"]["train"]
    train_set["batch_size_per_gpu"] = batch or train_set["batch_size_per_gpu"]
    train_set["gt_size"] = lq * plain["scale"] if lq else train_set["gt_size"]
    return make_options({key: value for key, value in plain.items() if value is not None})


def student_only(plain: Mapping[str, Any], **changes: Any) -> Options:
    """The same run without teachers: L1 to gt."""
    train = {key: value for key, value in plain["train"].items() if not key.endswith("_opt")}
    return changed(
        {key: value for key, value in plain.items() if key not in ("teachers", "fusion")},
        model_type="SRModel",
        train={**train, "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0}},
        **changes,
    )


def from_store(plain: Mapping[str, Any], folder: Path, **changes: Any) -> Options:
    """The same run with targets from a store, which a tiny network has filled: what is in it costs the same."""
    path = folder / "targets.safetensors"
    one = {"tiny": {"network": TINY, "pretrain": random_weights(TINY, folder / "tiny.safetensors")}}
    if not path.exists():
        teach(changed(plain, teachers=one, fusion=None), path)
    return changed(plain, teachers=one, fusion=None, target_store=str(path), **changes)


def on_line(plain: Mapping[str, Any], folder: Path, **changes: Any) -> Options:
    """The same run with its teachers, and its fusion network when they are several, weights drawn at random."""
    teachers = {
        name: {"network": teacher["network"], "pretrain": random_weights(teacher["network"], folder / f"{name}.st")}
        for name, teacher in plain["teachers"].items()
    }
    count = len(teachers)
    if count == 1:
        return changed(plain, teachers=teachers, fusion=None, **changes)
    network = {**plain["fusion"]["network"], "upscale": plain["scale"], "num_teachers": count}
    file = random_weights(network, folder / f"fusion_{count}.st", members=list(teachers))
    return changed(plain, teachers=teachers, fusion={"network": network, "pretrain": file}, **changes)


def random_weights(network: Mapping[str, Any], path: Path, **facts: Any) -> str:
    """A weights file of `network` as initialised, written once."""
    path = path.with_suffix(".safetensors")
    if not path.exists():
        arguments = {"upscale": SCALE, **{key: value for key, value in network.items() if key != "type"}}
        net = build.build_network(NetworkOptions(type=network["type"], args=arguments), arguments["upscale"])
        zoo.write_safetensors(path, net.state_dict(), facts)
    return str(path)


class Steps:
    """Training steps of a prepared run on one batch that stays in memory: what `mtkd train` does but for the data."""

    def __init__(self, options: Options) -> None:
        # Every run has its own folder: a run refuses one that exists.
        root = Path(options.path.experiments_root)
        options.path.experiments_root = str(root / str(len(list(root.iterdir())) if root.exists() else 0))
        Path(options.path.experiments_root).mkdir(parents=True)
        self.run: Run = prepare(options)
        self.run.method.train()
        self.batch: Batch = self.run.sampler.batch(0)
        self.number = 0

    def __call__(self) -> dict[str, Tensor]:
        values = train_step(self.run, self.number, repeat(self.batch))
        self.number += 1
        return values
