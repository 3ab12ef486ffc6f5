"""Option files in BasicSR's own words run unchanged: six trainings and their tests, at a size a test can afford."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mtkd.basicsr
from mtkd.cli import main
from mtkd.config import load_options
from mtkd.data.images import read_image, write_image
from mtkd.data.resize import bicubic_lq
from tests.helpers import photo

pytestmark = pytest.mark.slow

FILES = Path(__file__).parent / "options"
SMALL = {
    "MSRResNet": ["num_feat=4", "num_block=1"],
    "EDSR": ["num_feat=4", "num_block=1"],
    "RCAN": ["num_feat=4", "num_group=1", "num_block=1", "squeeze_factor=2"],
    "SwinIR": ["depths=[2]", "num_heads=[2]", "embed_dim=8"],
    "RRDBNet": ["num_feat=4", "num_block=1", "num_grow_ch=2"],
    "SRVGGNetCompact": ["num_feat=4", "num_conv=1"],
}
"""What makes the networks of the files small; everything else stays as the file has it."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data where BasicSR's files expect it."""
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_data(root: Path, scale: int) -> None:
    train = [("coffee_s001", photo("coffee", (64, 68))), ("rocket_s001", photo("rocket", (64, 64)))]
    # NIQE works on blocks of 96 pixels and needs two of them.
    sets = {
        "DIV2K/DIV2K_train_HR_sub DIV2K/DIV2K_train_LR_bicubic": train,
        "Set5/GTmod12 Set5": [("chelsea", photo("chelsea", (108, 204)))],
        "Set14/GTmod12 Set14": [("astronaut", photo("astronaut", (108, 204)))],
    }
    for folders, images in sets.items():
        gt, lq = folders.split()
        sub = f"X{scale}_sub" if "DIV2K" in lq else f"LRbicx{scale}"
        for folder in (f"datasets/{gt}", f"datasets/{lq}/{sub}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name, image in images:
            write_image(root / f"datasets/{gt}/{name}.png", image)
            write_image(root / f"datasets/{lq}/{sub}/{name}.png", bicubic_lq(image, scale))
    meta = root / "basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt"
    meta.parent.mkdir(parents=True, exist_ok=True)
    meta.write_text("coffee_s001.png (64,68,3)\n")


def small(network: str) -> list[str]:
    return ["num_gpu=0", *(f"network_g:{item}" for item in SMALL[network])]


def train_small(file: Path, network: str, *more: str) -> int:
    force = [
        *small(network), "datasets:train:gt_size=32", "datasets:train:batch_size_per_gpu=1", "train:total_iter=2",
        "val:val_freq=2", "logger:print_freq=1", *more,
    ]  # fmt: skip
    return main(["train", "-opt", str(file), "--force_yml", *force])


@pytest.mark.parametrize(
    ("file", "network", "scale"),
    [
        ("train_msrresnet_x4.yml", "MSRResNet", 4),
        ("train_edsr_m_x2.yml", "EDSR", 2),
        ("train_rcan_x2.yml", "RCAN", 2),
        ("train_swinir_x2.yml", "SwinIR", 2),
        ("train_rrdbnet_psnr_x4.yml", "RRDBNet", 4),
        ("train_srvgg_x4.yml", "SRVGGNetCompact", 4),
    ],
)
def test_a_training_file_of_basicsr_trains(
    file: str,
    network: str,
    scale: int,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_data(place, scale)
    followed: list[dict[str, Any]] = []
    wandb = ModuleType("wandb")
    wandb.init = lambda **given: followed.append(given) or wandb  # pyright: ignore[reportAttributeAccessIssue]
    wandb.log = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    wandb.finish = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train_small(FILES / file, network) == 0, capsys.readouterr().err
    options = load_options(FILES / file)
    root = place / "experiments" / options.name
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert {row["validation"] for row in rows if "validation" in row} == {"val", "val_2"}
    saved = torch.load(root / "models/net_g_latest.pth", weights_only=True)
    assert ("params_ema" in saved) == (options.train is not None and options.train.ema_decay > 0)
    assert (place / "tb_logger" / options.name).exists() == options.logger.use_tb_logger
    assert bool(followed) == (options.logger.wandb is not None)
    if network == "MSRResNet":
        assert followed[0]["project"] == "basicsr"
        (niqe,) = {row["metrics"]["niqe"] > 0 for row in rows if "metrics" in row}
        assert niqe
    notes = capsys.readouterr().out
    ignored = ["num_worker_per_gpu", "dataset_enlarge_ratio", "prefetch_mode", "io_backend", "dist_params"]
    assert all(sum(key in line and "ignored" in line for line in notes.splitlines()) == 1 for key in ignored)


@pytest.mark.parametrize(
    ("file", "network", "scale", "key"),
    [
        ("test_msrresnet_x4.yml", "MSRResNet", 4, "params"),
        ("test_edsr_m_x2.yml", "EDSR", 2, "params"),
        ("test_swinir_x2.yml", "SwinIR", 2, "params_ema"),
    ],
)
def test_a_test_file_of_basicsr_measures_the_same_numbers_as_basicsr(
    file: str, network: str, scale: int, key: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from basicsr.metrics import calculate_psnr, calculate_ssim

    make_data(place, scale)
    options = load_options(FILES / file, force=small(network))
    theirs = mtkd.basicsr.registered("arch", network)
    assert theirs is not None
    torch.manual_seed(5)
    net = theirs(**options.network_g.args).eval()
    weights = place / str(options.path.pretrain_network_g)
    weights.parent.mkdir(parents=True)
    torch.save({key: net.state_dict()}, weights)
    assert main(["test", "-opt", str(FILES / file), "--launcher", "none", "--force_yml", *small(network)]) == 0
    results = place / "results" / options.name
    means = {row["dataset"]: row for row in json.loads((results / "metrics.json").read_text())["results"]}
    for data, image in (("Set5", "chelsea"), ("Set14", "astronaut")):
        gt = read_image(place / f"datasets/{data}/GTmod12/{image}.png")
        sr = read_image(results / f"visualization/{data}/{image}_{options.name}.png")
        lq = torch.from_numpy(read_image(place / f"datasets/{data}/LRbicx{scale}/{image}.png").copy())
        with torch.no_grad():
            # SwinIR of BasicSR wants whole windows; sides of these images are multiples of 6, not of 8.
            pad = [(-side) % 8 if network == "SwinIR" else 0 for side in lq.shape[:2]]
            x = torch.nn.functional.pad(lq.permute(2, 0, 1)[None] / 255, (0, pad[1], 0, pad[0]), "reflect")
            out = net(x)[..., : gt.shape[0], : gt.shape[1]]
        expected = out[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        assert abs(expected.astype(int) - sr.astype(int)).max() <= 1
        psnr = calculate_psnr(sr[..., ::-1], gt[..., ::-1], crop_border=scale)
        ssim = calculate_ssim(sr[..., ::-1], gt[..., ::-1], crop_border=scale)
        assert means[data]["psnr"] == pytest.approx(psnr, abs=1e-6)
        assert means[data]["ssim"] == pytest.approx(ssim, abs=1e-6)


def test_auto_resume_finds_the_newest_state_under_the_runs_own_root(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(place, 4)
    elsewhere = f"path:experiments_root={place / 'elsewhere'}"
    often = "logger:save_checkpoint_freq=1"
    file = FILES / "train_srvgg_x4.yml"
    assert train_small(file, "SRVGGNetCompact", elsewhere, often) == 0
    name = load_options(file).name
    force = [*small("SRVGGNetCompact"), "datasets:train:gt_size=32", "datasets:train:batch_size_per_gpu=1", elsewhere,
             "train:total_iter=3", "val:val_freq=3"]  # fmt: skip
    capsys.readouterr()
    assert main(["train", "-opt", str(file), "--auto_resume", "--local-rank=0", "--force_yml", *force]) == 0
    assert "Resuming from iteration 2" in capsys.readouterr().out
    assert (place / "elsewhere" / name / "training_states/3.state").exists()
    assert not (place / "experiments").exists()


def test_debug_makes_a_run_of_its_own(place: Path) -> None:
    make_data(place, 4)
    force = [
        *small("SRVGGNetCompact"),
        "datasets:train:gt_size=32",
        "datasets:train:batch_size_per_gpu=1",
        "train:total_iter=1",
    ]
    assert main(["train", "-opt", str(FILES / "train_srvgg_x4.yml"), "--debug", "--force_yml", *force]) == 0
    (run,) = (place / "experiments").iterdir()
    assert run.name.startswith("debug_")


def test_wandb_that_is_not_there_is_said_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(place, 4)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train_small(FILES / "train_msrresnet_x4.yml", "MSRResNet") == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (place / "experiments").exists()


@pytest.mark.parametrize("file", sorted(path.name for path in FILES.glob("*.yml")))
def test_every_file_passes_the_check(file: str) -> None:
    load_options(FILES / file)
