"""MS-SSIM against its five scales put together from scipy, and against the paper's own cases."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.inference.evaluate import build_metrics
from mtkd.metrics.color import compared
from mtkd.metrics.ms_ssim import ms_ssim
from mtkd.metrics.ssim import ssim
from tests.helpers import photo

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the paper, section 3.2
Plane = NDArray[np.float64]


def blur(plane: Plane) -> Plane:
    """The 11x11 Gaussian mean where the window fits."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    for axis in (0, 1):
        plane = correlate1d(plane, taps / taps.sum(), axis=axis)
    return plane[5:-5, 5:-5]


def parts(x: Plane, y: Plane) -> tuple[float, float]:
    """Mean of luminance * contrast * structure, and of contrast * structure."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    cs = (2 * vxy + c2) / (vx + vy + c2)
    return float(np.mean((2 * mx * my + c1) / (mx * mx + my * my + c1) * cs)), float(np.mean(cs))


def halved(plane: Plane) -> Plane:
    """Means of 2x2 pixels; an odd side gets zeros on both sides first, as the package gives it."""
    plane = np.pad(plane, [(side % 2, side % 2) for side in plane.shape])
    height, width = (side // 2 * 2 for side in plane.shape)
    plane = plane[:height, :width]
    return plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def reference(x: Plane, y: Plane) -> float:
    value = 1.0
    for scale, exponent in enumerate(EXPONENTS):
        whole, cs = parts(x, y)
        value *= max(whole if scale == 4 else cs, 0.0) ** exponent
        x, y = halved(x), halved(y)
    return value


def images(size: tuple[int, int], strength: float = 0.05) -> tuple[Tensor, Tensor]:
    gt = torch.stack([torch.from_numpy(photo(name, size)) for name in ("astronaut", "coffee")])  # pyright: ignore
    gt = gt.permute(0, 3, 1, 2).float() / 255
    return gt + strength * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0)), gt


@pytest.mark.parametrize("test_y_channel", [True, False], ids=["y", "rgb"])
@pytest.mark.parametrize("size", [(176, 208), (173, 198)], ids=["even", "odd"])
def test_value_is_that_of_five_scales_by_scipy(size: tuple[int, int], test_y_channel: bool) -> None:
    sr, gt = images(size)
    settings = {"crop_border": 3, "test_y_channel": test_y_channel}
    expected = [
        np.mean([reference(*planes) for planes in zip(one.numpy(), two.numpy(), strict=True)])
        for one, two in zip(*compared(sr, gt, **settings), strict=True)
    ]
    values = ms_ssim(sr, gt, **settings)
    assert values.shape == (2,) and ((values > 0.5) & (values < 0.999)).all()
    assert values.tolist() == pytest.approx(expected, abs=1e-9)
    assert (values - ssim(sr, gt, **settings)).abs().min() > 1e-3


def test_an_image_against_its_negative_is_0_and_no_nan() -> None:
    _, gt = images((176, 176))
    assert ms_ssim(1 - gt, gt, crop_border=0).tolist() == [0.0, 0.0]


def test_the_coarsest_scale_needs_161_pixels_after_the_crop() -> None:
    image = torch.rand(1, 3, 169, 200)
    assert ms_ssim(image, image, crop_border=4).item() == pytest.approx(1)
    with pytest.raises(MtkdError, match="161x161.*169x200 with crop_border 5 leaves 159x190"):
        ms_ssim(image, image, crop_border=5)


def test_a_missing_package_names_the_extra_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    with pytest.raises(MtkdError, match=r"MS-SSIM needs the package pytorch-msssim.*pip install 'mtkd\[metrics\]'"):
        build_metrics({"ms": {"type": "calculate_ms_ssim", "crop_border": 2}})
    with pytest.raises(MtkdError, match=r"mtkd\[metrics\]"):
        ms_ssim(*images((176, 176)), crop_border=0)
