"""Y of RGB images, and back: BT.601 as BasicSR and MATLAB compute it. Batches, evaluation, metrics and `mtkd upscale`
share it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_TO_YCBCR = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float64
)
"""Rows Y, Cb, Cr: levels of 8 bits for each of R, G, B in [0, 1]."""
_OFFSETS = np.array([16.0, 128.0, 128.0])
_TO_RGB = np.linalg.inv(_TO_YCBCR / 255)


def luma(image: Tensor) -> Tensor:
    """Floating point RGB (..., 3, H, W) in [0, 1] -> Y (..., 1, H, W), float32 in [16/255, 235/255].

    BasicSR's `bgr2ycbcr(image, y_only=True)` on float32 images: a float64 sum of three products, rounded once, to
    float32. It is linear, so that Y of a mean of images is the mean of their Y.

    Example:
        >>> luma(torch.ones(3, 1, 1)) * 255  # white
        tensor([[[235.]]])
    """
    red, green, blue = image.float().double().unbind(-3)
    y = blue * 24.966 + green * 128.553 + red * 65.481 + 16.0
    return (y / 255).float().unsqueeze(-3)


def luma_of_pixels(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 Y (H, W, 1) in [16/255, 235/255], not rounded to 8 bits."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div_(255)
    return luma(pixels).permute(1, 2, 0).numpy()


def to_ycbcr(image: Tensor) -> Tensor:
    """Floating point RGB (..., 3, H, W) in [0, 1] -> float32 Y, Cb, Cr (..., 3, H, W), each in [16/255, 240/255]."""
    cb, cr = (_mixed(image.float(), _TO_YCBCR[row] / 255) + _OFFSETS[row] / 255 for row in (1, 2))
    return torch.cat([luma(image), cb, cr], dim=-3)


def to_rgb(image: Tensor) -> Tensor:
    """The inverse of `to_ycbcr`, float32, not clamped. The round trip moves no value by more than 1e-6."""
    parts = image.float().unbind(-3)
    centred = torch.stack([part - offset / 255 for part, offset in zip(parts, _OFFSETS.tolist(), strict=True)], dim=-3)
    return torch.cat([_mixed(centred, row) for row in _TO_RGB], dim=-3)


def _mixed(image: Tensor, factors: np.ndarray) -> Tensor:
    # No matrix product, which autocast would round to half precision.
    first, second, third = (float(factor) for factor in factors)
    a, b, c = image.unbind(-3)
    return (a * first + b * second + c * third).unsqueeze(-3)
