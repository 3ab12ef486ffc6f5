"""The difference of two images, checked and in full precision: the one thing every image loss starts from.

All image losses of this package are a norm of a linear transform of `sr - target`, so that the transform runs once, on
the difference, and not on each image.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mtkd.contracts import MtkdError


def difference(sr: Tensor, target: Tensor) -> Tensor:
    """`sr - target` in float32, or in float64 when one of them is; half precision is widened before the subtraction.

    Raises:
        MtkdError: the shapes differ (nothing is broadcast) or a tensor is not floating point.
    """
    check_comparable(sr, target)
    if torch.promote_types(sr.dtype, target.dtype) in (torch.float16, torch.bfloat16):
        sr = sr.float()
    return sr - target


def check_comparable(sr: Tensor, target: Tensor) -> None:
    """Raise an MtkdError when the shapes differ (nothing is broadcast) or a tensor is not floating point."""
    if sr.shape != target.shape:
        raise MtkdError(
            f"A loss compares tensors of the same shape, and sr is {tuple(sr.shape)} while target is "
            f"{tuple(target.shape)}. Check that the network's scale, the data set's scale and the target's agree."
        )
    if not (sr.is_floating_point() and target.is_floating_point()):
        raise MtkdError(
            f"A loss compares floating point images in [0, 1], and sr is {sr.dtype} while target is {target.dtype}. "
            "Convert 8-bit images with `image.float() / 255`."
        )


def check_nchw(x: Tensor, loss: str) -> Tensor:
    """`x` itself when it is (N, C, H, W).

    Raises:
        MtkdError: it has another number of dimensions.
    """
    if x.dim() != 4:
        raise MtkdError(f"{loss} compares batches of images (N, C, H, W), and got tensors of shape {tuple(x.shape)}.")
    return x


@lru_cache(maxsize=64)
def cached_tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """1-D tensor of `values`, copied to the device once and not in every step."""
    # A tensor born under inference_mode could not take part in a later training step.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
