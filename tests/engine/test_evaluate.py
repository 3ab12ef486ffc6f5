"""Numbers of tables, against BasicSR; tiles; self-ensemble; upscaled files."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd.archs.edsr import EDSR
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.data.paired import PairedImages
from mtkd.engine.evaluate import build_metrics, evaluate, to_image, to_tensor, write_results
from mtkd.engine.tiling import self_ensemble, tiled
from mtkd.engine.upscale import upscale
from tests.engine.runs import make_images
from tests.helpers import photo

METRICS = {
    "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
    "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
}


def small_net() -> EDSR:
    torch.manual_seed(0)
    return EDSR(num_feat=4, num_block=1, upscale=2).eval()


def test_evaluation_equals_basicsrs_numbers(tmp_path: Path) -> None:
    from basicsr.metrics import calculate_psnr, calculate_ssim
    from basicsr.utils import tensor2img

    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)

    def predict(lq: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(lq, scale_factor=2, mode="bicubic")

    result = evaluate(predict, images, build_metrics(METRICS), dataset="photos")
    for position in range(len(images)):
        image = images[position]
        theirs = tensor2img(predict(to_tensor(image.lq)))
        gt = image.gt[:, :, ::-1]
        psnr = calculate_psnr(theirs, gt, crop_border=2, test_y_channel=True)
        ssim = calculate_ssim(theirs, gt, crop_border=2, test_y_channel=True)
        assert result.values["psnr"][position] == pytest.approx(psnr, abs=1e-4)
        assert result.values["ssim"][position] == pytest.approx(ssim, abs=1e-6)
    assert result.images == tuple(images.names)


def test_wrong_scale_and_broken_output_name_the_image(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)
    with pytest.raises(MtkdError, match="photos/astronaut"):
        evaluate(lambda lq: lq, images, build_metrics(METRICS), dataset="photos")
    for value in ("nan", "inf"):
        with pytest.raises(MtkdError, match="astronaut: the network's output is not finite"):
            evaluate(
                lambda lq, value=value: torch.full((1, 3, lq.shape[2] * 2, lq.shape[3] * 2), float(value)),
                images,
                build_metrics(METRICS),
                dataset="photos",
            )


def test_results_are_written_per_image_and_as_means(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)
    result = evaluate(small_net(), images, build_metrics(METRICS), dataset="photos")
    write_results(tmp_path / "out", [("edsr", result)], {"command": "c"})
    with (tmp_path / "out/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == list(images.names)
    saved = json.loads((tmp_path / "out/metrics.json").read_text())
    assert saved["command"] == "c"
    assert saved["results"][0]["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))


@pytest.mark.parametrize("size", [(20, 33), (7, 5), (16, 16)])
def test_tiles_equal_the_whole_image_when_the_context_suffices(size: tuple[int, int]) -> None:
    # Six 3x3 convolutions at lq size or finer see at most six lq pixels around.
    net, lq = small_net().double(), torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tiled(net, lq, scale=2, tile_size=6, tile_pad=6), net(lq))


def test_self_ensemble_undoes_every_turn() -> None:
    lq = torch.rand(1, 3, 5, 8, dtype=torch.float64)
    nearest = partial(torch.nn.functional.interpolate, scale_factor=2)
    torch.testing.assert_close(self_ensemble(nearest, lq), nearest(lq))
    net = small_net().double()
    with torch.no_grad():
        turned = self_ensemble(net, lq.flip(-1)).flip(-1)
        torch.testing.assert_close(self_ensemble(net, lq), turned)


def test_upscale_writes_images_and_never_replaces_them(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("coffee", "rocket"):
        write_image(source / f"{name}.png", photo(name, (24, 31)))
    net = small_net()
    assert upscale(net, source, tmp_path / "out") == 2
    written = read_image(tmp_path / "out/coffee.png")
    with torch.no_grad():
        expected = to_image(net(to_tensor(photo("coffee", (24, 31)))))
    assert np.array_equal(written, expected)
    with pytest.raises(MtkdError, match="--overwrite"):
        upscale(net, source, tmp_path / "out")
    assert upscale(net, source / "coffee.png", tmp_path / "one.png", tile_size=16, tile_pad=8) == 1
    assert np.abs(read_image(tmp_path / "one.png").astype(int) - expected.astype(int)).max() <= 1


def test_upscale_refuses_two_images_that_would_become_one(tmp_path: Path) -> None:
    for suffix in ("png", "bmp"):
        write_image(tmp_path / f"in.{suffix}", photo("coffee", (8, 8)))
    with pytest.raises(MtkdError, match="both become"):
        upscale(small_net(), tmp_path, tmp_path / "out")


def test_upscale_with_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="nowhere"):
        upscale(small_net(), tmp_path / "nowhere", tmp_path / "out")
