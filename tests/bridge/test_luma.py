"""`color: y`: networks of Y alone, held against BasicSR's own data set, conversion and metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import mtkd.basicsr
from mtkd import build
from mtkd.cli import main
from mtkd.config import OptionError, load_options, make_options
from mtkd.data.images import read_image, write_image
from mtkd.data.paired import PairedImages, PairedLuma
from mtkd.data.resize import bicubic_lq, imresize
from mtkd.data.sampling import CropSampler
from mtkd.data.store import ImageStore
from mtkd.data.training import open_training_set
from mtkd.inference.luma import LumaNetwork, as_rgb
from mtkd.inference.upscale import upscale
from mtkd.metrics.psnr import psnr
from mtkd.runtime.luma import luma, to_rgb, to_ycbcr
from tests.helpers import photo

FILE = Path(__file__).parent / "options/train_ecbsr_y_x2.yml"
KODAK = Path(__file__).parents[2] / "datasets/demo/test"
ONE_ULP = 2**-24
"""Spacing of float32 below 1, which Y in [0.06, 0.93] is."""
SMALL = [
    "num_gpu=0", "network_g:num_block=1", "network_g:num_channel=4", "datasets:train:gt_size=32",
    "datasets:train:batch_size_per_gpu=2", "train:total_iter=4", "val:val_freq=4", "logger:print_freq=2",
    "logger:save_checkpoint_freq=2", "logger:use_tb_logger=false",
]  # fmt: skip


def put(root: Path, gt: str, lq: str, template: str, names: tuple[Any, ...], size: tuple[int, int]) -> None:
    for name in names:
        image = photo(name, size)
        write_image(root / gt / f"{name}.png", image)
        write_image(root / lq / f"{template.format(name)}.png", bicubic_lq(image, 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with pairs where the file expects them."""
    root = tmp_path_factory.mktemp("luma")
    train, sets = "datasets/DF2K/DIV2K_train_", "datasets/benchmark/Set5/"
    put(root, f"{train}HR_sub", f"{train}LR_bicubic_X2_sub", "{}", ("coffee", "rocket"), (48, 48))
    put(root, f"{sets}HR", f"{sets}LR_bicubic/X2", "{}x2", ("chelsea", "astronaut"), (50, 72))
    meta = root / "basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt"
    meta.parent.mkdir(parents=True)
    meta.write_text("coffee.png (48,48,3)\nrocket.png (48,48,3)\n")
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MTKD_HOME", str(place / "home"))
    monkeypatch.chdir(place)
    yield
    logging.getLogger("mtkd").handlers.clear()


def theirs(section: dict[str, Any], phase: str, **more: Any) -> Any:
    """BasicSR's own data set of a section."""
    cls = mtkd.basicsr.registered("dataset", "PairedImageDataset")
    assert cls is not None
    return cls({"io_backend": {"type": "disk"}, "scale": 2, "phase": phase, **section, **more})


def sections() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())["datasets"]


def test_y_is_that_of_basicsr_for_every_colour() -> None:
    from basicsr.utils import bgr2ycbcr

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image[0, :3] = (0, 0, 0), (255, 255, 255), (1, 0, 0)
    expected = bgr2ycbcr(image[..., ::-1].astype(np.float32) / 255, y_only=True)
    found = luma(torch.from_numpy(image).permute(2, 0, 1).float().div(255))
    assert found.dtype == torch.float32 and found.shape == (1, 256, 256)
    assert np.abs(found[0].numpy() - expected).max() <= ONE_ULP


def test_ycbcr_is_that_of_basicsr_and_comes_back() -> None:
    from basicsr.utils.color_util import rgb2ycbcr

    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(1))
    expected = rgb2ycbcr(image.permute(1, 2, 0).numpy())
    assert np.abs(to_ycbcr(image).permute(1, 2, 0).numpy() - expected).max() < 2e-7
    assert (to_rgb(to_ycbcr(image)) - image).abs().max() < 1e-6


def test_validation_images_are_those_of_basicsr() -> None:
    section = sections()["val"]
    expected = theirs(section, "val")
    ours = PairedLuma.of_section(section, scale=2)
    by_name = {Path(expected[i]["gt_path"]).stem: expected[i] for i in range(len(expected))}
    assert sorted(by_name) == sorted(ours.names) and len(ours) == 2
    for pair in ours:
        for key, found in (("lq", pair.lq), ("gt", pair.gt)):
            assert found.dtype == np.float32 and found.shape[-1] == 1
            assert np.abs(found.transpose(2, 0, 1) - by_name[pair.name][key].numpy()).max() <= ONE_ULP


@pytest.mark.parametrize("residence", ["device", "ram"])
def test_batches_are_those_of_basicsr(place: Path, residence: Any) -> None:
    section = {**sections()["train"], "gt_size": 48}
    expected = theirs(section, "train", use_hflip=False, use_rot=False)
    images = open_training_set(section, scale=2, cache_dir=place / "home/datasets")
    assert images.gt is not None and images.gt.flat.dtype == torch.uint8  # the stores stay RGB
    sampler = CropSampler(
        lq=images.lq, gt=images.gt, target=images.gt, scale=2, gt_size=48, batch_size=2, use_hflip=False,
        use_rot=False, seed=0, residence=residence, color="y",
    )  # fmt: skip
    batch = sampler.batch(0)
    assert batch.target is not None and torch.equal(batch.target, batch.gt)
    for row, index in enumerate(batch.index.tolist()):
        item = expected[[Path(expected[i]["gt_path"]).stem for i in range(2)].index(images.names[index])]
        for key, found in (("lq", batch.lq), ("gt", batch.gt)):
            assert found.shape[1] == 1
            assert (found[row] - item[key]).abs().max() <= ONE_ULP


def test_psnr_of_y_is_psnr_y_but_for_the_rounding_of_y() -> None:
    """Bicubic on five Kodak photographs: Y is rounded to 8 bits, RGB before its Y is taken."""
    rgb, y = (cls(dataroot_gt=KODAK, scale=2) for cls in (PairedImages, PairedLuma))
    assert len(rgb) == 5

    def score(images: PairedImages, *, test_y_channel: bool) -> torch.Tensor:
        values = []
        for pair in images:
            lq, gt = (
                torch.from_numpy(one).permute(2, 0, 1)[None].float() / (255 if one.dtype == np.uint8 else 1)
                for one in (pair.lq, pair.gt)
            )
            values.append(psnr(imresize(lq, 2), gt, crop_border=2, test_y_channel=test_y_channel))
        return torch.cat(values)

    alone, of_rgb = score(y, test_y_channel=False), score(rgb, test_y_channel=True)
    assert torch.equal(alone, score(y, test_y_channel=True))
    assert ((of_rgb - alone).abs() < 0.05).all()
    assert (of_rgb - alone).mean() > 0  # two errors of rounding more, so never a better number


@pytest.mark.slow
def test_the_file_of_ecbsr_trains_and_measures_what_basicsr_does(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from basicsr.metrics import calculate_psnr, calculate_ssim
    from basicsr.utils import tensor2img

    force = ["--force_yml", *SMALL, "val:save_img=true"]
    assert main(["check", "--data", str(FILE), *force]) == 0, capsys.readouterr().out
    assert main(["train", "-opt", str(FILE), *force]) == 0, capsys.readouterr().err
    run = place / "experiments" / load_options(FILE).name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    means = next(row["metrics"] for row in rows if "metrics" in row)
    options = load_options(FILE, force=SMALL)
    cls = mtkd.basicsr.registered("arch", "ECBSR")
    assert cls is not None
    net = cls(**options.network_g.args).eval()
    net.load_state_dict(torch.load(run / "models/net_g_latest.pth", weights_only=True)["params"])
    scores, sets = [], theirs(sections()["val"], "val")
    for item in (sets[i] for i in range(len(sets))):
        with torch.no_grad():
            sr, gt = tensor2img([net(item["lq"][None])]), tensor2img([item["gt"][None]])
        scores.append(
            [metric(sr, gt, crop_border=2, test_y_channel=True) for metric in (calculate_psnr, calculate_ssim)]
        )
    assert np.allclose([means["psnr"], means["ssim"]], np.mean(scores, axis=0), atol=1e-6)
    assert read_image(next((run / "visualization").rglob("chelsea_4.png"))).shape == (50, 72, 3)  # grey, read as RGB
    # Going on, and as a row among RGB networks.
    assert main(["train", "-opt", str(FILE), "--auto_resume", *force, "train:total_iter=5", "val:val_freq=5"]) == 0
    capsys.readouterr()
    assert main(["test", str(run), "--data", str(place / "datasets/benchmark/Set5/HR"), "--with", "bicubic"]) == 0
    assert "test_y_channel: True" in capsys.readouterr().out


STUDENT = {"type": "EDSR", "num_feat": 4, "num_block": 1, "num_in_ch": 1, "num_out_ch": 1, "rgb_mean": [0.44]}
TEACHER = {"type": "EDSR", "num_feat": 4, "num_block": 1, "upscale": 2}


def kd(place: Path, **changes: Any) -> dict[str, Any]:
    """A distillation on Y from a teacher of RGB."""
    teacher = place / "teacher.safetensors"
    if not teacher.exists():
        from mtkd import zoo
        from mtkd.archs.edsr import EDSR

        torch.manual_seed(0)
        net = EDSR(**{key: value for key, value in TEACHER.items() if key != "type"})  # pyright: ignore[reportArgumentType]
        zoo.write_safetensors(teacher, net.state_dict(), {})
    images = {
        "name": "t",
        "type": "PairedImageDataset",
        "dataroot_gt": "datasets/DF2K/DIV2K_train_HR_sub",
        "color": "y",
    }
    return {
        "name": "kd",
        "model_type": "OutputKD",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 1,
        "datasets": {"train": {**images, "gt_size": 16, "batch_size_per_gpu": 2}, "val": {**images, "name": "v"}},
        "network_g": STUDENT,
        "teachers": {"edsr": {"network": TEACHER, "pretrain": str(teacher)}},
        "train": {
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [2]},
            "total_iter": 2,
        },
        "val": {"val_freq": 2, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
        **changes,
    }


def test_a_teacher_of_rgb_is_refused_on_line_and_its_stored_images_become_y(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "kd.yml"
    file.write_text(yaml.safe_dump(kd(place)))
    assert main(["check", str(file)]) == 0
    assert main(["check", "--data", str(file)]) == 2
    assert main(["train", "-opt", str(file)]) == 2
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "teacher edsr takes RGB" in text and "target_store: FILE" in text
    stored = ["--force_yml", "target_store=store.safetensors"]
    assert main(["teach", "-opt", str(file), *stored]) == 0
    assert main(["train", "-opt", str(file), *stored]) == 0, capsys.readouterr().err
    options = make_options(kd(place, target_store="store.safetensors"))
    images, store = build.open_training_images(options), ImageStore(place / "store.safetensors")
    common: dict[str, Any] = {
        "lq": images.lq, "gt": images.gt, "target": store, "scale": 2, "gt_size": 16, "batch_size": 2,
        "use_hflip": True, "use_rot": True, "seed": 1,
    }  # fmt: skip
    y, rgb = CropSampler(**common, color="y").batch(3), CropSampler(**common).batch(3)
    assert y.target is not None and rgb.target is not None
    assert torch.equal(y.target, luma(rgb.target)) and torch.equal(y.lq, luma(rgb.lq))


def test_what_cannot_be_done_with_y_is_refused_by_name(place: Path) -> None:
    good = kd(place)
    make_options(good)
    sets = good["datasets"]
    for changes, text in (
        ({"network_g": {**TEACHER}}, "network_g: takes images of 3 channels.*num_in_ch and num_out_ch to 1"),
        ({"network_g": {**STUDENT, "rgb_mean": [0.4, 0.4, 0.4]}}, r"`color: y`\): 1, 1 and one value"),
        ({"model_type": "FAKD"}, "FAKD reads RGB. Methods that train on Y: SRModel, SwinIRModel, OutputKD, MTKD"),
        ({"datasets": {**sets, "val": {**sets["val"], "color": "rgb"}}}, "datasets.val.color: must be y as in"),
        ({"datasets": {**sets, "val": {**sets["val"], "color": "z"}}}, "must be 'y' or 'rgb'"),
    ):
        with pytest.raises(OptionError, match=text):
            make_options({**good, **changes})


def test_a_network_of_y_enlarges_photographs(place: Path) -> None:
    class Nearest(nn.Module):
        scale, image_channels = 2, 1

        def forward(self, y: torch.Tensor) -> torch.Tensor:
            assert y.shape[1] == 1
            return y.repeat_interleave(2, -2).repeat_interleave(2, -1)

    net = as_rgb(Nearest())
    assert isinstance(net, LumaNetwork) and as_rgb(net) is net
    source = place / "datasets/benchmark/Set5/LR_bicubic/X2"
    upscale(net, source, place / "out")
    lq, sr = (
        torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float() / 255
        for path in (source / "chelseax2.png", place / "out/chelseax2.png")
    )
    found = to_ycbcr(sr)
    expected = torch.cat(
        [luma(lq).repeat_interleave(2, -2).repeat_interleave(2, -1), imresize(to_ycbcr(lq)[:, 1:], 2)], 1
    )
    inside = (to_rgb(expected) > 0.01).all(1, keepdim=True) & (to_rgb(expected) < 0.99).all(1, keepdim=True)
    assert inside.float().mean() > 0.8
    assert ((found - expected).abs() * inside).max() < 1 / 255


def test_upscale_and_load_take_networks_of_y(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mtkd import zoo
    from mtkd.inference.load import load_network

    options = make_options(kd(place))
    torch.manual_seed(0)
    net = build.build_network(options.network_g, 2)
    zoo.write_safetensors(place / "y.safetensors", net.state_dict(), build.network_facts(options))
    assert isinstance(load_network(place / "y.safetensors"), LumaNetwork)
    image = {"name": "s", "type": "PairedImageDataset", "dataroot_gt": "datasets/benchmark/Set5/HR", "color": "y"}
    test = {"name": "y", "scale": 2, "num_gpu": 0, "network_g": STUDENT, "datasets": {"test_1": image}}
    (place / "y.yml").write_text(yaml.safe_dump({**test, "path": {"pretrain_network_g": "y.safetensors"}}))
    source = "datasets/benchmark/Set5/HR/chelsea.png"
    assert main(["upscale", source, "one.png", "--weights", "y.safetensors"]) == 0
    assert main(["upscale", source, "two.png", "-opt", "y.yml"]) == 0
    assert np.array_equal(read_image(place / "one.png"), read_image(place / "two.png"))
    assert read_image(place / "one.png").shape == (100, 144, 3)
    assert main(["export", "y.safetensors", "y.onnx"]) == 2
    assert "computes Y alone" in capsys.readouterr().err


def test_networks_know_their_channels() -> None:
    options = make_options(kd(Path.cwd()))
    net = build.build_network(options.network_g, 2)
    assert net.image_channels == 1
    assert build.build_network(load_options(FILE).network_g, 2).image_channels == 1
