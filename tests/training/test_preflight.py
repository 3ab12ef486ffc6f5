"""What is found before the first iteration: packages, networks, metrics, validation images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd.config import Options
from mtkd.data.images import write_image
from mtkd.inference import preflight
from mtkd.training.preflight import try_packages, try_parts
from tests.helpers import photo
from tests.runs import FUSION, make_images, make_teachers, run_options

PSNR = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}


def validated(tmp_path: Path, metrics: dict[str, Any] | None = None, **changes: Any) -> Options:
    """A run that trains and validates on two folders of the same photographs."""
    train, val = make_images(tmp_path / "train"), make_images(tmp_path / "val")
    sets = {
        "train": {
            "name": "t", "type": "PairedImageDataset", "dataroot_gt": str(train), "gt_size": 16,
            "batch_size_per_gpu": 2,
        },
        "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(val)},
    }  # fmt: skip
    return run_options(
        tmp_path, images=train, datasets=sets, val={"val_freq": 4, "metrics": metrics or {"psnr": PSNR}}, **changes
    )


def test_nothing_is_found_where_all_is_well(tmp_path: Path) -> None:
    assert try_parts(validated(tmp_path)) == []
    teachers = make_teachers(tmp_path / "teachers")
    options = validated(tmp_path / "f", model_type="MTKDFusion", network_g=FUSION, teachers=teachers)
    assert try_parts(options) == []


@pytest.mark.parametrize("damage", ["half", "sixteen bits", "zeros"])
def test_each_validation_image_is_decoded(tmp_path: Path, damage: str) -> None:
    import cv2

    options = validated(tmp_path)
    file = tmp_path / "val/coffee.png"
    whole = file.read_bytes()
    if damage == "half":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "zeros":
        file.write_bytes(whole[:600] + bytes(len(whole) - 600))
    else:
        cv2.imwrite(str(file), photo("coffee", (56, 52)).astype("uint16") * 257)
    (problem,) = preflight.try_images(options)
    assert problem.key == "datasets.val" and "coffee.png" in problem.message


def test_each_metric_is_tried_on_the_smallest_image(tmp_path: Path) -> None:
    pytest.importorskip("basicsr")
    metrics = {
        "psnr": PSNR,
        "lpips": {"type": "calculate_lpips", "weights": str(tmp_path / "none.pth"), "better": "lower"},
        "niqe": {"type": "calculate_niqe", "crop_border": 0, "better": "lower"},
    }
    found = preflight.try_metrics(validated(tmp_path, metrics))
    assert [problem.key for problem in found] == ["val.metrics.lpips", "val.metrics.niqe"]
    assert "none.pth" in found[0].message and "astronaut (48x52" in found[1].message


def test_a_metric_is_tried_on_the_lowest_and_the_narrowest_image(tmp_path: Path) -> None:
    options = validated(tmp_path, {"ssim": {"type": "calculate_ssim", "crop_border": 0}})
    write_image(tmp_path / "val/sliver.png", photo("coffee", (60, 8)))
    (problem,) = preflight.try_metrics(options)
    assert "sliver (60x8" in problem.message


def sizes_seen(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """A metric that refuses, and says on what."""
    raise ValueError(f"{tuple(gt.shape)}")


def test_a_metric_is_tried_on_a_part_of_a_large_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = validated(tmp_path, {"mine": {"type": f"{__name__}:sizes_seen", "better": "lower"}})
    monkeypatch.setattr(preflight, "_TRIED_SIDE", 40)
    (problem,) = preflight.try_metrics(options)
    assert "(1, 3, 40, 40)" in problem.message and problem.message.count("val.metrics.mine") == 0


class Grey(nn.Module):
    """A network of one channel."""

    def __init__(self, num_in_ch: int = 1, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.up = nn.Sequential(nn.Conv2d(num_in_ch, num_in_ch * 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)


@pytest.mark.parametrize(
    "network",
    [
        {"type": f"{__name__}:Grey"},
        {"type": "EDSR", "num_in_ch": 1, "num_out_ch": 1, "rgb_mean": [0.0], "num_feat": 4, "num_block": 1},
        {"type": "SwinIR", "in_chans": 1, "embed_dim": 8, "depths": [1], "num_heads": [1], "upsampler": "pixelshuffle"},
    ],
    ids=["own", "EDSR", "SwinIR"],
)
def test_a_network_without_three_channels_is_found(tmp_path: Path, network: dict[str, Any]) -> None:
    (problem,) = preflight.try_networks(validated(tmp_path, network_g=network))
    assert problem.key == "network_g" and "take and make 3 channels" in problem.message


def test_a_teacher_that_does_not_fit_its_weights_is_found(tmp_path: Path) -> None:
    teachers = make_teachers(tmp_path / "teachers")
    teachers["edsr"]["network"] = {**teachers["edsr"]["network"], "num_block": 2}
    (problem,) = preflight.try_networks(validated(tmp_path, model_type="OutputKD", teachers={"edsr": teachers["edsr"]}))
    assert "num_block" in problem.message


@pytest.mark.parametrize(("key", "package"), [("use_tb_logger", "tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = {"use_tb_logger": True} if key == "use_tb_logger" else {"wandb": {"project": "p"}}
    (problem,) = try_packages(validated(tmp_path, logger=logger))
    assert problem.key == f"logger.{key}" and f"pip install {package}" in problem.message
