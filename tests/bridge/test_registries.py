"""BasicSR's registries both ways: what stands there serves here, and ours serves BasicSR's own training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mtkd.basicsr
from mtkd import catalog, zoo
from mtkd.cli import main
from mtkd.config import resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from tests.helpers import photo
from tests.runs import make_images, run_options

pytestmark = pytest.mark.slow

USER_MODULE = """
import numpy as np
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from torch import nn


@ARCH_REGISTRY.register()
class MyNet{tag}(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 12, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x):
        return self.body(x)


@LOSS_REGISTRY.register()
class MyLoss{tag}(nn.Module):
    def __init__(self, loss_weight=7.0, power=2):
        super().__init__()
        self.loss_weight, self.power = loss_weight, power

    def forward(self, pred, target):
        return self.loss_weight * (pred - target).abs().pow(self.power).mean()


@METRIC_REGISTRY.register()
def my_blue_error{tag}(img, img2, crop_border=0, **kwargs):
    assert img.dtype == np.uint8 and img.shape == img2.shape and img.ndim == 3
    return float(np.abs(img[..., 0].astype(float) - img2[..., 0]).mean())
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_a_users_own_registered_classes_train_and_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_parts.py").write_text(USER_MODULE.replace("{tag}", "A"))
    catalog.import_modules(["user_parts"])
    images = make_images(tmp_path / "images")
    options = run_options(
        tmp_path,
        images=images,
        network_g={"type": "MyNetA", "width": 4},
        datasets={
            "train": {
                "name": "t", "type": "PairedImageDataset", "dataroot_gt": str(images), "gt_size": 16,
                "batch_size_per_gpu": 2,
            },
            "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)},
        },
        val={"val_freq": 2, "metrics": {"blue": {"type": "my_blue_errorA", "better": "lower"}}},
        train={"total_iter": 2, "pixel_opt": {"type": "MyLossA", "loss_weight": 0.5, "power": 1}},
    )  # fmt: skip
    (tmp_path / "run.yml").write_text(resolved_yaml(options))
    assert main(["train", "-opt", "run.yml", "--import", "user_parts"]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "experiments/tiny/metrics.jsonl").read_text().splitlines()]
    losses = rows[0]["losses"]
    assert losses["l_total"] == pytest.approx(0.5 * losses["pixel"])
    assert rows[-1]["metrics"]["blue"] > 0

    weights = str(tmp_path / "experiments/tiny/models/net_g_latest.pth")
    net = zoo.build(weights)
    assert net.scale == 2
    write_image(tmp_path / "in.png", photo("coffee", (20, 30)))
    assert main(["upscale", "in.png", "out.png", "--weights", weights]) == 0
    assert read_image(tmp_path / "out.png").shape == (40, 60, 3)


def test_a_registered_network_serves_as_teacher(tmp_path: Path) -> None:
    from mtkd.training.loop import train

    arguments = {"num_feat": 4, "num_conv": 1, "upscale": 2}
    net = mtkd.basicsr.registered("arch", "SRVGGNetCompact")(**arguments)  # pyright: ignore[reportOptionalCall]
    torch.save({"params": net.state_dict()}, tmp_path / "teacher.pth")
    network = {"type": "SRVGGNetCompact", **arguments}
    options = run_options(
        tmp_path,
        model_type="OutputKD",
        teachers={"compact": {"network": network, "pretrain": str(tmp_path / "teacher.pth")}},
        train={"total_iter": 2, "pixel_opt": {"type": "L1Loss"}},
    )
    assert train(options).exists()


def test_import_names_a_module_of_the_working_directory_for_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "user_more.py").write_text(USER_MODULE.replace("{tag}", "B"))
    text = resolved_yaml(run_options(tmp_path)).replace("{type: EDSR,", "{type: MyNetB,")
    options = run_options(tmp_path / "b").model_dump()
    options["network_g"] = {"type": "MyNetB", "width": 4}
    del options["fusion"], options["val"], options["target_store"]
    from mtkd.config import yaml_loader

    text = yaml_loader.dump({key: value for key, value in options.items() if value not in (None, {})})
    (tmp_path / "run.yml").write_text(text)
    assert main(["check", "run.yml"]) == 2
    assert "MyNetB" in capsys.readouterr().out
    assert main(["check", "run.yml", "--import", "user_more"]) == 0
    assert main(["check", "run.yml", "--import", "no_such_module"]) == 2
    assert "--import no_such_module" in capsys.readouterr().err


def test_a_miss_names_what_was_searched_and_what_is_near() -> None:
    with pytest.raises(MtkdError, match=r"'MSRResnet'\. Did you mean MSRResNet.*BasicSR's registry adds .*RRDBNet"):
        catalog.get("arch", "MSRResnet")


def test_a_loss_of_basicsr_has_no_weight_of_its_own_here() -> None:
    sr, gt = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    smooth = catalog.get("loss", "WeightedTVLoss")()
    expected = (sr[..., 1:, :] - sr[..., :-1, :]).abs().mean() + (sr[..., 1:] - sr[..., :-1]).abs().mean()
    torch.testing.assert_close(smooth(sr, gt), expected)  # its second argument is a weight, not a target
    with pytest.raises(MtkdError, match="critic"):
        catalog.get("loss", "GANLoss")


def test_the_parts_of_a_loss_that_returns_several_are_added() -> None:
    class Parts(nn.Module):
        def forward(self, x: torch.Tensor, gt: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
            return (x - gt).abs().mean(), None, x.mean()

    sr, gt = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    loss = mtkd.basicsr.inward._loss(Parts)()
    torch.testing.assert_close(loss(sr, gt), (sr - gt).abs().mean() + sr.mean())


@pytest.mark.parametrize("name", ["calculate_psnr", "calculate_ssim", "calculate_psnr_pt"])
def test_adapted_metrics_see_what_basicsr_shows_them(name: str) -> None:
    adapted = mtkd.basicsr.adapted("metric", name)
    assert adapted is not None
    gt = torch.from_numpy(photo("chelsea", (32, 36)).copy()).permute(2, 0, 1)[None] / 255
    sr = (gt + 0.05 * torch.randn_like(gt)).clamp(0, 1)
    ours = catalog.get("metric", name.removesuffix("_pt"))
    expected = ours(sr, gt, crop_border=2, test_y_channel=True)
    found = adapted(sr, gt, crop_border=2, test_y_channel=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if not name.endswith("_pt") else 0.1)


@pytest.fixture
def registered() -> Any:
    """Ours in BasicSR's registries, for one test."""
    before = {kind: dict(registry._obj_map) for kind, registry in mtkd.basicsr.shim.REGISTRIES.items()}
    yield mtkd.basicsr.register()
    for kind, registry in mtkd.basicsr.shim.REGISTRIES.items():
        registry._obj_map.clear()
        registry._obj_map.update(before[kind])


def test_nothing_is_registered_before_it_is_asked_for() -> None:
    assert mtkd.basicsr.registered("arch", "DCTSwin") is None


def test_ours_stand_under_their_own_name_where_it_is_free_and_always_under_name_mtkd(registered: list[str]) -> None:
    from basicsr.utils.registry import ARCH_REGISTRY

    from mtkd.archs.dctswin import DCTSwin
    from mtkd.archs.edsr import EDSR

    assert {"DCTSwin", "DCTSwin_mtkd", "EDSR_mtkd", "WaveletLoss", "L1Loss_mtkd", "calculate_lpips"} <= set(registered)
    assert not {"EDSR", "L1Loss", "calculate_psnr"} & set(registered)
    assert ARCH_REGISTRY.get("DCTSwin") is ARCH_REGISTRY.get("DCTSwin_mtkd") is DCTSwin
    assert ARCH_REGISTRY.get("EDSR_mtkd") is EDSR
    assert ARCH_REGISTRY.get("EDSR").__module__.startswith("basicsr")
    assert mtkd.basicsr.register() == registered


def test_our_metrics_measure_arrays_as_basicsrs_do(registered: list[str]) -> None:
    from basicsr.metrics import calculate_metric

    gt = np.ascontiguousarray(photo("coffee", (40, 44))[..., ::-1])
    sr = np.clip(gt.astype(int) + np.random.default_rng(0).integers(-9, 9, gt.shape), 0, 255).astype(np.uint8)
    for name in ("calculate_psnr", "calculate_ssim"):
        arguments = {"crop_border": 2, "test_y_channel": True}
        theirs = calculate_metric({"img": sr, "img2": gt}, {"type": name, **arguments})
        ours = calculate_metric({"img": sr, "img2": gt}, {"type": f"{name}_mtkd", **arguments})
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_basicsrs_own_train_pipeline_trains_our_network_with_our_loss(
    tmp_path: Path, registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from basicsr.train import train_pipeline

    images = make_images(tmp_path / "images")
    (tmp_path / "lq").mkdir()
    from mtkd.data.resize import bicubic_lq

    for image in images.iterdir():
        write_image(tmp_path / "lq" / image.name, bicubic_lq(read_image(image), 2))
    file = tmp_path / "theirs.yml"
    file.write_text(f"""
name: theirs
model_type: SRModel
scale: 2
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: t
    type: PairedImageDataset
    dataroot_gt: {images}
    dataroot_lq: {tmp_path / "lq"}
    io_backend: {{type: disk}}
    gt_size: 16
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 0
    batch_size_per_gpu: 2
    prefetch_mode: ~
network_g: {{type: EDSR_mtkd, num_feat: 4, num_block: 1, upscale: 2}}
path: {{pretrain_network_g: ~, strict_load_g: true, resume_state: ~}}
train:
  optim_g: {{type: Adam, lr: !!float 1e-3}}
  scheduler: {{type: MultiStepLR, milestones: [10], gamma: 0.5}}
  total_iter: 2
  warmup_iter: -1
  pixel_opt: {{type: WaveletLoss, loss_weight: 0.5}}
val: {{val_freq: 100, save_img: false}}
logger: {{print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: false}}
""")
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(file)])
    train_pipeline(str(tmp_path))
    weights = tmp_path / "experiments/theirs/models/net_g_latest.pth"
    from mtkd.archs.edsr import EDSR

    net = EDSR(num_feat=4, num_block=1, upscale=2)
    zoo.load_into(net, zoo.read_checkpoint(weights, key="params").state, source=str(weights))
