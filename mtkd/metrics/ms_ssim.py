"""Structural similarity over five scales, through the package pytorch-msssim."""

from __future__ import annotations

import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.metrics.better import better
from mtkd.metrics.color import compared
from mtkd.metrics.extra import Package, through

_PACKAGE = Package("MS-SSIM", "pytorch-msssim", "pytorch_msssim")
_MINIMUM = 161  # the window of 11 pixels must fit after four halvings


@through(_PACKAGE)
@better("higher")
@torch.no_grad()
def ms_ssim(sr: Tensor, gt: Tensor, *, crop_border: int, test_y_channel: bool = False) -> Tensor:
    """MS-SSIM of each image (Wang, Simoncelli and Bovik, Asilomar 2003) on the images as 8-bit files.

    Contrast and structure at five scales and luminance at the coarsest, with the paper's exponents 0.0448, 0.2856,
    0.3001, 0.2363 and 0.1333, each scale half the one before by the mean of 2x2 pixels. The window is that of `ssim`:
    11x11 Gaussian, sigma 1.5, no padding, K1 = 0.01, K2 = 0.03, range 255. On RGB it is the mean over the channels.

    Deviations of `pytorch-msssim` (MIT), which computes it: a negative mean of contrast and structure counts as 0, and
    an odd width or height gets a line of zeros on both sides before it is halved. It gets its window in float64 here.

    Args:
        sr: (N, 3, H, W) floating point RGB in [0, 1], any device; (N, 1, H, W) grey and single images (C, H, W) too.
        gt: shaped as `sr`.
        crop_border: pixels ignored on each side; the convention is the scale.
        test_y_channel: measure Y of YCbCr.

    Returns:
        (N,) float64 in [0, 1] on the images' device.

    Raises:
        MtkdError: the package is missing, shapes differ or are no images, or less than 161x161 pixels are left after
            the crop.

    Example:
        >>> gt = torch.rand(2, 3, 176, 192)
        >>> ms_ssim(gt, gt, crop_border=4, test_y_channel=True)
        tensor([1., 1.], dtype=torch.float64)
    """
    package = _PACKAGE.load()
    height, width = sr.shape[-2:]
    sr, gt = compared(sr, gt, crop_border=crop_border, test_y_channel=test_y_channel)
    if min(sr.shape[-2:]) < _MINIMUM:
        raise MtkdError(
            f"MS-SSIM needs {_MINIMUM}x{_MINIMUM} pixels or more, because it halves the image four times, and "
            f"{height}x{width} with crop_border {crop_border} leaves {sr.shape[-2]}x{sr.shape[-1]}."
        )
    with torch.autocast(sr.device.type, enabled=False):
        return package.ms_ssim(sr, gt, data_range=255, size_average=False, win=_window(sr))


def _window(images: Tensor) -> Tensor:
    """(C, 1, 1, 11); the one that the package makes is rounded to float32, which moves values by 1e-6."""
    taps = torch.exp(-(torch.arange(-5.0, 6.0).to(images) ** 2) / (2 * 1.5**2))
    return (taps / taps.sum()).repeat(images.shape[1], 1, 1, 1)
