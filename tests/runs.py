"""Tiny training runs on crops of real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.archs.rcan import RCAN
from mtkd.config import Options, make_options
from mtkd.data.images import write_image
from tests.helpers import photo

STUDENT = {"type": "EDSR", "num_feat": 4, "num_block": 1, "upscale": 2}
TEACHERS = {
    "edsr": {"type": "EDSR", "num_feat": 6, "num_block": 1, "upscale": 2},
    "rcan": {"type": "RCAN", "num_feat": 4, "num_group": 1, "num_block": 1, "squeeze_factor": 2, "upscale": 2},
}
FUSION = {
    "type": "DCTSwin",
    "upscale": 2,
    "num_teachers": 2,
    "embed_dim": 8,
    "depths": [2],
    "num_heads": [2],
    "num_feat": 4,
}


def make_images(folder: Path) -> Path:
    """A folder of four photographs, 48 pixels wide or so."""
    folder.mkdir(parents=True)
    for number, name in enumerate(("astronaut", "chelsea", "coffee", "rocket")):
        write_image(folder / f"{name}.png", photo(name, (48 + 4 * number, 52)))
    return folder


def make_teachers(folder: Path) -> dict[str, dict[str, Any]]:
    """Teachers with stored (untrained) weights, ready for a `teachers:` section."""
    folder.mkdir(parents=True, exist_ok=True)
    section = {}
    for number, (name, network) in enumerate(TEACHERS.items()):
        torch.manual_seed(100 + number)
        arguments = {key: value for key, value in network.items() if key != "type"}
        net = {"EDSR": EDSR, "RCAN": RCAN}[network["type"]](**arguments)
        path = folder / f"{name}.safetensors"
        zoo.write_safetensors(
            path, net.state_dict(), {"arch": {"type": network["type"], "args": arguments}, "scale": 2}
        )
        section[name] = {"network": network, "pretrain": str(path)}
    return section


def run_options(tmp_path: Path, *, images: Path | None = None, **changes: Any) -> Options:
    """Options of a run of eight iterations; `changes` replace top-level sections, `train` is merged."""
    images = images or make_images(tmp_path / "images")
    train = {
        "optim_g": {"type": "Adam", "lr": 1e-3},
        "scheduler": {"type": "MultiStepLR", "milestones": [4], "gamma": 0.5},
        "total_iter": 8,
        "ema_decay": 0.9,
        **changes.pop("train", {}),
    }
    model = changes.get("model_type", "SRModel")
    if model == "SRModel":
        train.setdefault("pixel_opt", {"type": "L1Loss"})
    plain: dict[str, Any] = {
        "name": "tiny",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 3,
        "datasets": {
            "train": {
                "name": "photographs",
                "type": "PairedImageDataset",
                "dataroot_gt": str(images),
                "gt_size": 16,
                "batch_size_per_gpu": 2,
            }
        },
        "network_g": STUDENT,
        "path": {"experiments_root": str(tmp_path / "experiments")},
        "logger": {"print_freq": 2, "save_checkpoint_freq": 2},
        **changes,
        "train": train,
    }
    return make_options(plain)
