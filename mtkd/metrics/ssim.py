"""Structural similarity as in the tables of super-resolution papers."""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.metrics.better import better
from mtkd.metrics.color import compared

_WINDOW = 11
_SIGMA = 1.5


@better("higher")
@torch.no_grad()
def ssim(sr: Tensor, gt: Tensor, *, crop_border: int, test_y_channel: bool = False) -> Tensor:
    """Mean SSIM of each image (Wang et al., IEEE TIP 2004), BasicSR's `calculate_ssim` on the images as 8-bit files.

    11x11 Gaussian window with sigma 1.5 where it fits (no padding), K1 = 0.01, K2 = 0.03, range 255, population
    (co)variances, float64. On RGB it is the mean over the three channels.

    Args:
        sr: (N, 3, H, W) floating point RGB in [0, 1], any device; (N, 1, H, W) grey and single images (C, H, W) too.
        gt: shaped as `sr`.
        crop_border: pixels ignored on each side; the convention is the scale.
        test_y_channel: measure Y of YCbCr.

    Returns:
        (N,) float64 in [-1, 1] on the images' device.

    Raises:
        MtkdError: shapes differ or are no images, or less than 11x11 pixels are left after the crop.

    Example:
        >>> gt = torch.rand(2, 3, 16, 16)
        >>> ssim(gt, gt, crop_border=2, test_y_channel=True)
        tensor([1., 1.], dtype=torch.float64)
    """
    height, width = sr.shape[-2:]
    sr, gt = compared(sr, gt, crop_border=crop_border, test_y_channel=test_y_channel)
    if min(sr.shape[-2:]) < _WINDOW:
        raise MtkdError(
            f"SSIM needs {_WINDOW}x{_WINDOW} pixels or more, and {height}x{width} with crop_border {crop_border} "
            f"leaves {sr.shape[-2]}x{sr.shape[-1]}."
        )
    mean_sr, mean_gt, mean_sr2, mean_gt2, mean_product = _blur(torch.stack((sr, gt, sr * sr, gt * gt, sr * gt)))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    product, squares = mean_sr * mean_gt, mean_sr**2 + mean_gt**2
    luminance = (2 * product + c1) / (squares + c1)
    structure = (2 * (mean_product - product) + c2) / (mean_sr2 + mean_gt2 - squares + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean over the window, where it fits: (..., H, W) -> (..., H - 10, W - 10).

    A sum of shifted slices: a float64 convolution is several times slower on a CPU.
    """
    centre = _WINDOW // 2
    taps = [exp(-((i - centre) ** 2) / (2 * _SIGMA**2)) for i in range(_WINDOW)]
    for dim in (-1, -2):
        size = x.shape[dim] - _WINDOW + 1
        blurred = x.narrow(dim, centre, size) * (taps[centre] / sum(taps))
        for i in range(centre):
            pair = x.narrow(dim, i, size) + x.narrow(dim, _WINDOW - 1 - i, size)
            blurred.add_(pair, alpha=taps[i] / sum(taps))
        x = blurred
    return x
