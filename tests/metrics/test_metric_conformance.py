"""What every metric of the catalog promises. A new one needs its line in `ARGUMENTS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mtkd import catalog
from mtkd.contracts import MtkdError
from tests.helpers import photo
from tests.metrics.backbones import save_random_alexnet, save_random_vgg16

BORDER = 4


class Entry(NamedTuple):
    """How the suite calls a metric: its arguments, its value where the images are equal, and their size."""

    best: float
    arguments: Callable[[Path], dict[str, Any]] = lambda folder: {}
    size: tuple[int, int] = (48, 64)


ARGUMENTS = {
    "calculate_psnr": Entry(best=float("inf")),
    "calculate_ssim": Entry(best=1.0),
    "calculate_ms_ssim": Entry(best=1.0, size=(170, 192)),
    "calculate_dists": Entry(best=0.0, arguments=lambda folder: {"weights": save_random_vgg16(folder)}),
    "calculate_lpips": Entry(best=0.0, arguments=lambda folder: {"weights": save_random_alexnet(folder)}),
}

Metric = Callable[..., Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module", params=catalog.names("metric"))
def name(request: pytest.FixtureRequest) -> str:
    assert request.param in ARGUMENTS, f"{request.param} needs a line in ARGUMENTS of {__name__}"
    return request.param


@pytest.fixture(scope="module")
def metric(name: str, folder: Path) -> Metric:
    function, arguments = catalog.get("metric", name), ARGUMENTS[name].arguments(folder)
    return lambda sr, gt, **more: function(sr, gt, **{"crop_border": BORDER, **arguments, **more})


@pytest.fixture(scope="module")
def gt(name: str) -> Tensor:
    """(3, 3, H, W) float32 on the levels of 8 bits: three different photos, not square."""
    size = ARGUMENTS[name].size
    photos = [torch.from_numpy(photo(image, size)) for image in ("astronaut", "coffee", "chelsea")]
    return torch.stack(photos).permute(0, 3, 1, 2).float() / 255


def noisy(gt: Tensor, strength: float) -> Tensor:
    noise = torch.randn(gt.shape, generator=torch.Generator().manual_seed(1))
    return (gt + strength * noise.to(gt)).clamp(0, 1)


def is_better(name: str, one: Tensor, two: Tensor) -> bool:
    """Whether every value of `one` is better than that of `two`, as the metric declares it."""
    return bool((one > two).all() if catalog.get("metric", name).better == "higher" else (one < two).all())


def test_it_declares_which_value_is_better(name: str) -> None:
    assert catalog.get("metric", name).better in ("higher", "lower")


def test_a_batch_has_a_float64_value_per_image_that_of_the_image_alone(metric: Metric, gt: Tensor) -> None:
    sr = noisy(gt, 0.1)
    values = metric(sr, gt)
    assert values.shape == (3,) and values.dtype == torch.float64 and values.isfinite().all()
    alone = torch.cat([metric(one[None], two[None]) for one, two in zip(sr, gt, strict=True)])
    torch.testing.assert_close(values, alone, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(metric(sr[1], gt[1]), alone[1:2], rtol=1e-5, atol=1e-7)
    assert len(set(values.tolist())) == 3


def test_equal_images_have_the_best_value(name: str, metric: Metric, gt: Tensor) -> None:
    best = metric(gt, gt)
    assert best.tolist() == pytest.approx([ARGUMENTS[name].best] * 3, abs=1e-9)
    assert is_better(name, best, metric(noisy(gt, 0.02), gt))


def test_the_worse_the_image_the_worse_the_value(name: str, metric: Metric, gt: Tensor) -> None:
    values = [metric(noisy(gt, strength), gt) for strength in (0.02, 0.1, 0.3)]
    assert is_better(name, values[0], values[1]) and is_better(name, values[1], values[2])


def test_the_border_does_not_count(name: str, metric: Metric, gt: Tensor) -> None:
    sr = gt.clone()
    sr[..., :BORDER, :] = sr[..., -BORDER:] = 0
    assert metric(sr, gt).tolist() == metric(gt, gt).tolist()
    assert is_better(name, metric(gt, gt), metric(sr, gt, crop_border=BORDER - 1))
    with pytest.raises(MtkdError, match="crop_border"):
        metric(gt, gt, crop_border=100)


def test_images_of_8_bits_are_compared(metric: Metric, gt: Tensor) -> None:
    sr, kept = noisy(gt, 0.1), gt.clone()
    expected = metric(sr, gt)
    assert metric(sr.mul(255).round() / 255, gt).tolist() == expected.tolist()
    assert metric(gt + 0.4 / 255, gt).tolist() == metric(gt, gt).tolist()
    beyond = gt.where(gt < 1, 1.5)
    assert metric(beyond, gt).tolist() == metric(gt, gt).tolist()
    assert gt.equal(kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_of_images_changes_nothing(metric: Metric, gt: Tensor, dtype: torch.dtype) -> None:
    sr = noisy(gt, 0.1).mul(255).round() / 255
    values = metric(sr.to(dtype), gt.to(dtype))
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, metric(sr, gt), rtol=1e-5, atol=1e-7)


def test_autocast_and_memory_format_change_nothing(metric: Metric, gt: Tensor) -> None:
    sr = noisy(gt, 0.1)
    expected = metric(sr, gt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert metric(sr, gt).tolist() == expected.tolist()
    last = metric(sr.to(memory_format=torch.channels_last), gt.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-7)


def test_no_gradient_is_kept_and_no_random_number_drawn(metric: Metric, gt: Tensor) -> None:
    state = torch.get_rng_state()
    assert not metric(noisy(gt, 0.1).requires_grad_(), gt).requires_grad
    with torch.inference_mode():
        assert metric(noisy(gt, 0.1), gt).isfinite().all()
    assert torch.get_rng_state().equal(state)


def test_what_cannot_be_compared_is_refused(metric: Metric, gt: Tensor) -> None:
    with pytest.raises(MtkdError, match="same shape"):
        metric(gt[..., :-1], gt)
    with pytest.raises(MtkdError, match="floating point"):
        metric(gt.mul(255).byte(), gt.mul(255).byte())


@pytest.mark.cuda
def test_the_value_is_on_the_device_of_the_images(metric: Metric, gt: Tensor) -> None:
    sr = noisy(gt, 0.1)
    values = metric(sr.cuda(), gt.cuda())
    assert values.is_cuda and values.dtype == torch.float64
    torch.testing.assert_close(values.cpu(), metric(sr, gt), rtol=1e-4, atol=1e-6)
