"""The one rounding rule, and image <-> tensor: what is saved, what is measured and what is stored round alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_levels(image: Tensor, most: int = 255) -> Tensor:
    """Image in [0, 1], of any shape and floating point dtype -> its levels 0, 1, ..., `most` as float32.

    Values outside are clamped; halves are rounded to even. The input is not changed.

    Example:
        >>> to_levels(torch.tensor([-0.1, 0.5, 1.2]))
        tensor([  0., 128., 255.])
    """
    return image.float().clamp(0, 1).mul_(most).round_()


def to_tensor(image: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (H, W, 3) array or host tensor -> float (1, 3, H, W) tensor in [0, 1] on `device`, lying as channels_last.

    Floating point pixels are in [0, 1] already. From pinned memory (`background.staged`) it is copied without waiting.
    """
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image))
    image_on_device = pixels.to(device, non_blocking=True).permute(2, 0, 1)[None]
    return image_on_device if pixels.is_floating_point() else image_on_device.float().div_(255)


def to_pixels(image: Tensor) -> Tensor:
    """Float (1, 3, H, W) or (3, H, W) tensor -> uint8 (H, W, 3) tensor, clamped and rounded by `to_levels`."""
    image = image[0] if image.dim() == 4 else image
    return to_levels(image).to(torch.uint8).permute(1, 2, 0).contiguous()


def to_image(image: Tensor) -> np.ndarray:
    """`to_pixels` as an array."""
    return to_pixels(image).cpu().numpy()
