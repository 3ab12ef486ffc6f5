"""BasicSR's files of GANs in tests, its files without gt, and losses that fetch weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import yaml

import mtkd.basicsr
from mtkd import catalog
from mtkd.cli import main
from mtkd.config import load_options
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.data.resize import bicubic_lq
from tests.helpers import photo

NETWORK = {"type": "MSRResNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4}
SETS = {"dataroot_gt": "Set5/GTmod12", "dataroot_lq": "Set5/LRbicx4", "io_backend": {"type": "disk"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    image = photo("chelsea", (64, 72))
    write_image(root / SETS["dataroot_gt"] / "cat.png", image)
    write_image(root / SETS["dataroot_lq"] / "cat.png", bicubic_lq(image, 4))
    cls = mtkd.basicsr.registered("arch", "MSRResNet")
    assert cls is not None
    torch.manual_seed(0)
    net = cls(**{key: value for key, value in NETWORK.items() if key != "type"})
    torch.save({"params": net.state_dict()}, root / "net.pth")
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def written(name: str, **changes: Any) -> str:
    """A test file with the keys of BasicSR's test_MSRGAN_x4.yml."""
    data: dict[str, Any] = {
        "name": name,
        "model_type": "SRGANModel",
        "scale": 4,
        "num_gpu": 0,
        "datasets": {"test_1": {"name": "Set5", "type": "PairedImageDataset", **SETS}},
        "network_g": NETWORK,
        "path": {"pretrain_network_g": "net.pth", "strict_load_g": True},
        "val": {
            "save_img": True,
            "suffix": None,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": False}},
        },
        **changes,
    }
    Path(f"{name}.yml").write_text(yaml.safe_dump(data))
    return f"{name}.yml"


def without_gt(name: str, **changes: Any) -> str:
    """The same with the keys of test_ESRGAN_x4_woGT.yml."""
    images = {key: value for key, value in SETS.items() if key != "dataroot_gt"}
    one = {"name": "Set5", "type": "SingleImageDataset", **images}
    return written(name, **{"datasets": {"test_1": one}, "val": {"save_img": True, "suffix": None}, **changes})


def test_the_generator_of_a_gan_is_measured_as_the_plain_network(capsys: pytest.CaptureFixture[str]) -> None:
    file, plain = written("srgan"), written("plain", model_type="SRModel")
    assert main(["check", "--data", file]) == 0
    for one in (file, plain):
        assert main(["test", "-opt", one, "--no_page"]) == 0, capsys.readouterr().err
    scores = [Path(f"results/{name}/metrics.csv").read_text().replace("srgan", "plain") for name in ("srgan", "plain")]
    assert scores[0] == scores[1]


def test_a_file_without_gt_is_for_upscale(capsys: pytest.CaptureFixture[str]) -> None:
    file = without_gt("wogt", model_type="ESRGANModel")
    remedy = f"Enlarge its images: `mtkd upscale Set5/LRbicx4 OUT -opt {file}`."
    for more in ([], ["--data"]):
        assert main(["check", file, *more]) == 0
        said = capsys.readouterr().out
        assert (
            said.startswith(f"ok   {file} (not for `mtkd test`: datasets.test_1 is a SingleImageDataset")
            and remedy in said
        )
    assert main(["test", "-opt", file]) == 2
    assert remedy in capsys.readouterr().err
    assert main(["upscale", "Set5/LRbicx4", "out", "-opt", file]) == 0
    assert read_image("out/cat.png").shape == (64, 72, 3)


def test_what_is_wrong_with_a_file_without_gt_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    gone = without_gt(
        "gone", datasets={"test_1": {"name": "a", "type": "SingleImageDataset", "dataroot_lq": "nowhere"}}
    )
    assert main(["check", gone]) == 0
    assert main(["check", gone, "--data"]) == 2
    assert "nowhere" in capsys.readouterr().out
    measured = without_gt("measured", val={"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}})
    for more in ([], ["--data"]):
        assert main(["check", measured, *more]) == 2
        assert "has no gt, so nothing can be measured" in capsys.readouterr().out


def test_a_test_file_without_metrics_is_refused_by_check_as_by_test(capsys: pytest.CaptureFixture[str]) -> None:
    file = written("silent", val={"save_img": True})
    for more in ([], ["--data"]):
        assert main(["check", file, *more]) == 2
        assert "val.metrics" in capsys.readouterr().out


def test_keys_of_basicsrs_older_files_are_sent_home(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", written("old", suffix=None, crop_border=None, save_img=True)]) == 2
    said = capsys.readouterr().out
    for home in ("val.suffix", "val.metrics.NAME.crop_border", "val.save_img"):
        assert f"belongs at {home}" in said


def test_sets_without_gt_need_no_basicsr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_from_basicsr", lambda kind, name: None)
    network = {"type": "EDSR", "num_feat": 4, "num_block": 1}
    assert load_options(without_gt("alone", network_g=network)).sets_without_gt.keys() == {"test_1"}


def test_a_loss_that_cannot_fetch_its_weights_says_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("basicsr.losses.basic_loss.VGGFeatureExtractor", offline)
    with pytest.raises(MtkdError, match=r"does not answer \(no route\).*checkpoints"):
        catalog.get("loss", "PerceptualLoss")(layer_weights={"conv5_4": 1.0})
