"""A toy grid: two rows, one student, two seeds, stored and live teachers, a fusion network, in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mtkd.data.images import write_image
from mtkd.data.resize import imresize
from tests.helpers import photo
from tests.runs import make_teachers

PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}


def make_data(folder: Path) -> Path:
    """Training crops, blurred answers to them and to the test images, test images."""
    crops = {name: photo(name, (56, 52)) for name in ("astronaut", "chelsea", "coffee")}
    for name, crop in crops.items():
        write_image(folder / "train" / f"{name}.png", crop)
    tests = {"rocket": photo("rocket", (40, 44)), "coffee": photo("coffee", (44, 40))}
    for name, crop in tests.items():
        write_image(folder / "test" / f"{name}.png", crop)
    for kind, images in (("train", crops), ("Photos", tests)):
        for name, crop in images.items():
            write_image(folder / "answers" / kind / f"{name}.png", imresize(imresize(crop, 0.5), 2))
    held_out = photo("rocket", (36, 36))
    write_image(folder / "val" / "rocket.png", held_out)
    write_image(folder / "answers" / "held_out" / "rocket.png", imresize(imresize(held_out, 0.5), 2))
    return folder


def toy(folder: Path, **changes: Any) -> Path:
    """A grid file in `folder` with its data; `changes` replace its sections."""
    data = make_data(folder / "data")
    live = make_teachers(folder / "weights")["edsr"]
    l1 = {"type": "L1Loss"}
    grid: dict[str, Any] = {
        "name": "toy",
        "data": str(data),
        "protocol": {
            "num_gpu": 0,
            "datasets": {
                "train": {
                    "name": "crops",
                    "type": "PairedImageDataset",
                    "dataroot_gt": "{data}/train",
                    "gt_size": 32,
                    "batch_size_per_gpu": 2,
                },
                "val": {"name": "held_out", "type": "PairedImageDataset", "dataroot_gt": "{data}/val"},
            },
            "train": {
                "optim_g": {"type": "Adam", "lr": 1e-3},
                "scheduler": {"type": "CosineAnnealingRestartLR", "periods": ["{iterations}"], "eta_min": 1e-6},
                "total_iter": "{iterations}",
            },
            "val": {"val_freq": "{1/2}", "metrics": PSNR},
            "logger": {"print_freq": 2, "save_checkpoint_freq": 2},
        },
        "iterations": [4],
        "scales": [2],
        "seeds": [1, 2],
        "students": {"small": {"type": "EDSR", "num_feat": 4, "num_block": 1}},
        "teachers": {"kept": {"images": "{data}/answers"}, "live": live},
        "runs": {
            "fusion": {
                "title": "fused",
                "model_type": "MTKDFusion",
                "teachers": ["kept", "live"],
                "network_g": {"type": "DCTSwin", "embed_dim": 8, "depths": [2], "num_heads": [2], "num_feat": 4},
                "iterations": 2,
                "train": {"pixel_opt": l1},
            }
        },
        "targets": {"mean": {"from": ["kept", "live"]}, "fused": {"run": "fusion"}},
        "rows": {
            "scratch": {"title": "from scratch", "model_type": "SRModel", "train": {"pixel_opt": l1}},
            "fused": {
                "title": "L1 on the fused image",
                "model_type": "OutputKD",
                "target_store": "target:fused",
                "train": {"pixel_opt": None, "target_opt": l1},
            },
        },
        "test": {
            "datasets": {"test_1": {"name": "Photos", "type": "PairedImageDataset", "dataroot_gt": "{data}/test"}},
            "metrics": PSNR,
        },
        "baselines": ["scratch"],
        "pooled": ["Photos"],
    }
    path = folder / "toy.yml"
    plain = json.loads(json.dumps(grid | changes))  # without YAML's anchors for equal objects
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path
