"""PSNR and SSIM against BasicSR, and bicubic's published PSNR on Set5."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.metrics.psnr import psnr
from mtkd.metrics.ssim import ssim
from tests.helpers import photo, shared_data

modes = pytest.mark.parametrize("test_y_channel", [True, False], ids=["y", "rgb"])
both = pytest.mark.parametrize("metric", [psnr, ssim])


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def _noisy(gt: Tensor, sigma: float) -> Tensor:
    """Outside [0, 1] in places and between the 8-bit levels everywhere, as a network's output."""
    return gt + sigma * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))


def _pair(kind: str) -> tuple[Tensor, Tensor]:
    if kind == "random":
        return tuple(torch.rand(2, 1, 3, 40, 57, generator=torch.Generator().manual_seed(0)).unbind(0))  # pyright: ignore
    gt = _tensor(photo(kind, (96, 120)))  # pyright: ignore[reportArgumentType]
    return _noisy(gt, 0.03), gt


def _by_basicsr(name: str, sr: Tensor, gt: Tensor, **options: object) -> float:
    from basicsr import metrics
    from basicsr.utils import tensor2img

    return getattr(metrics, name)(*(tensor2img([image.clone()]) for image in (sr, gt)), **options)


@modes
@pytest.mark.parametrize("crop_border", [0, 2, 4])
@pytest.mark.parametrize("kind", ["random", "astronaut", "chelsea"])
def test_values_are_those_of_basicsr(kind: str, crop_border: int, test_y_channel: bool) -> None:
    sr, gt = _pair(kind)
    options = {"crop_border": crop_border, "test_y_channel": test_y_channel}
    assert psnr(sr, gt, **options).item() == pytest.approx(_by_basicsr("calculate_psnr", sr, gt, **options), abs=1e-9)
    assert ssim(sr, gt, **options).item() == pytest.approx(_by_basicsr("calculate_ssim", sr, gt, **options), abs=1e-9)


@modes
@both
def test_a_batch_gives_the_values_of_its_images(metric, test_y_channel: bool) -> None:
    gt = torch.cat([_tensor(photo(name, (64, 80))) for name in ("astronaut", "coffee", "chelsea")])
    sr = _noisy(gt, 0.05)
    together = metric(sr, gt, crop_border=2, test_y_channel=test_y_channel)
    alone = [metric(sr[i], gt[i], crop_border=2, test_y_channel=test_y_channel) for i in range(3)]
    assert together.shape == (3,)
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-13, atol=0)


@modes
def test_identical_images_have_infinite_psnr_and_ssim_one(test_y_channel: bool) -> None:
    gt = _tensor(photo("astronaut", (32, 32)))
    assert psnr(gt, gt, crop_border=0, test_y_channel=test_y_channel).item() == math.inf
    assert ssim(gt, gt, crop_border=0, test_y_channel=test_y_channel).item() == pytest.approx(1, abs=1e-12)


def test_images_that_round_to_the_same_8_bits_are_identical() -> None:
    gt = _tensor(photo("astronaut", (32, 32)))
    assert psnr(gt + 0.4 / 255, gt, crop_border=0).item() == math.inf


def test_psnr_of_one_level_everywhere_is_the_textbook_value() -> None:
    gt = torch.full((1, 3, 16, 16), 100 / 255)
    assert psnr(gt + 1 / 255, gt, crop_border=0, test_y_channel=False).item() == pytest.approx(
        20 * math.log10(255), abs=1e-12
    )


@modes
@both
def test_only_the_border_is_ignored(metric, test_y_channel: bool) -> None:
    gt = _tensor(photo("astronaut", (40, 40)))
    sr = _noisy(gt, 0.02)
    spoilt = sr.clone()
    spoilt[..., :4, :] = spoilt[..., -4:, :] = spoilt[..., :4] = spoilt[..., -4:] = 0
    options = {"test_y_channel": test_y_channel}
    assert metric(spoilt, gt, crop_border=4, **options) == metric(sr, gt, crop_border=4, **options)
    assert metric(spoilt, gt, crop_border=3, **options) < metric(sr, gt, crop_border=3, **options)


@both
def test_half_precision_outputs_are_measured_as_their_8_bit_images(metric) -> None:
    gt = _tensor(photo("astronaut", (32, 32)))
    sr = _noisy(gt, 0.02).bfloat16()
    assert metric(sr, gt, crop_border=0) == metric(sr.double(), gt.double(), crop_border=0)


@both
def test_grey_images_are_measured_as_basicsr_does(metric) -> None:
    from basicsr import metrics

    gt = _tensor(photo("astronaut", (32, 40)))[:, :1]
    sr = _noisy(gt, 0.02)
    arrays = [image[0, 0].clamp(0, 1).mul(255).round().byte().numpy()[..., None] for image in (sr, gt)]
    expected = getattr(metrics, f"calculate_{metric.__name__}")(*arrays, crop_border=2, test_y_channel=True)
    # BasicSR takes grey levels through float32 / 255 * 255, which is not exact.
    assert metric(sr, gt, crop_border=2).item() == pytest.approx(expected, abs=1e-5)


@both
@pytest.mark.parametrize(
    ("sr", "gt", "crop_border", "words"),
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 18), 0, r"\(1, 3, 16, 18\)"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16), 0, r"\(2, 3, 16, 16\)"),
        (torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16), 0, r"\(1, 4, 16, 16\)"),
        (torch.zeros(16, 16), torch.zeros(16, 16), 0, r"\(16, 16\)"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), 8, "crop_border 8"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), -1, "crop_border -1"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 16, 16), 0, "uint8"),
    ],
)
def test_what_cannot_be_compared_is_an_error(metric, sr: Tensor, gt: Tensor, crop_border: int, words: str) -> None:
    with pytest.raises(MtkdError, match=words):
        metric(sr, gt, crop_border=crop_border)


def test_ssim_needs_room_for_its_window() -> None:
    image = torch.rand(1, 3, 14, 40)
    assert ssim(image, image, crop_border=1).item() == pytest.approx(1)
    with pytest.raises(MtkdError, match="10x36"):
        ssim(image, image, crop_border=2)


def test_option_files_find_the_metrics_under_basicsr_names() -> None:
    assert catalog.get("metric", "calculate_psnr") is psnr
    assert catalog.get("metric", "calculate_ssim") is ssim


@pytest.mark.skipif(shared_data() is None, reason="the benchmark images are not here")
@pytest.mark.parametrize(("scale", "published"), [(2, 33.678), (3, 30.404), (4, 28.431)])
def test_bicubic_of_set5_scores_the_published_psnr(scale: int, published: float) -> None:
    from mtkd.data.images import list_images, read_image
    from mtkd.data.resize import bicubic_lq, imresize, modcrop

    data = shared_data()
    assert data is not None
    values = []
    for path in list_images(data / "test" / "Set5" / "HR"):
        gt = modcrop(read_image(path), scale)
        # In floating point: the 8-bit resize rounds between its two passes, which costs up to 0.005 dB.
        sr = imresize(_tensor(bicubic_lq(gt, scale)).double(), scale)
        values.append(psnr(sr, _tensor(gt), crop_border=scale, test_y_channel=True).item())
    assert np.mean(values) == pytest.approx(published, abs=0.0006)
