"""Peak signal-to-noise ratio as in the tables of super-resolution papers."""

from __future__ import annotations

import torch
from torch import Tensor

from mtkd.metrics.better import better
from mtkd.metrics.color import compared


@better("higher")
@torch.no_grad()
def psnr(sr: Tensor, gt: Tensor, *, crop_border: int, test_y_channel: bool = False) -> Tensor:
    """10 log10(255^2 / MSE) of each image in dB, BasicSR's `calculate_psnr` on the images as 8-bit files.

    Both images are clamped, rounded to 8 bits and cropped; Y (BT.601) is not rounded again; the rest is float64.
    BasicSR's own default is RGB, the tables' convention is Y.

    Args:
        sr: (N, 3, H, W) floating point RGB in [0, 1], any device; (N, 1, H, W) grey and single images (C, H, W) too.
        gt: shaped as `sr`.
        crop_border: pixels ignored on each side; the convention is the scale.
        test_y_channel: measure Y of YCbCr; otherwise one MSE over the three channels.

    Returns:
        (N,) float64 on the images' device; inf where they are identical.

    Raises:
        MtkdError: shapes differ or are no images, or nothing is left after the crop.

    Example:
        >>> gt = torch.full((1, 3, 16, 16), 100 / 255)
        >>> psnr(gt + 1 / 255, gt, crop_border=2)  # one level of 8 bits
        tensor([48.1308], dtype=torch.float64)
    """
    sr, gt = compared(sr, gt, crop_border=crop_border, test_y_channel=test_y_channel)
    mse = (sr - gt).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / mse)
