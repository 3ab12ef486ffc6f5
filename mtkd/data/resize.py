"""MATLAB's `imresize(image, scale, "bicubic")`, the rule behind the standard low-quality images of super-resolution.

The cubic kernel has a = -0.5 (Keys, IEEE TASSP 1981) and is widened by 1 / scale when an image is made smaller. Pixels
outside the image are mirrored with the edge repeated. Rows are resampled first, then columns.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from mtkd.contracts import MtkdError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRIP = 1 << 21
"""Values of an image that are in double precision at once."""


@overload
def imresize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]: ...
@overload
def imresize(image: Tensor, scale: float) -> Tensor: ...
def imresize(image: NDArray[np.uint8] | Tensor, scale: float) -> NDArray[np.uint8] | Tensor:
    """Resize by `scale` (below 1 makes it smaller, with antialiasing); the new sides are ceil(side * scale).

    A uint8 or uint16 array (H, W) or (H, W, C) gives another: summed in double precision, rounded and clipped to its
    bits after *each* of the two passes, as MATLAB does for integer images. This gives the standard LR images bit for
    bit, when the HR image has been cut to a multiple of the factor before (`modcrop`).

    A float tensor (..., H, W) gives a float tensor of the same dtype on the same device, neither rounded nor clipped,
    and differentiable. It equals `basicsr.utils.matlab_functions.imresize` up to the rounding of its float32 weights.

    Raises:
        MtkdError: `scale` is not positive, or the image is neither a uint8 or uint16 array nor a float tensor.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise MtkdError(f"The resize factor must be a positive number, not {scale}.")
    if isinstance(image, Tensor):
        if not image.is_floating_point() or image.dim() < 2:
            raise MtkdError(
                f"imresize takes a float tensor (..., H, W) or a uint8 or uint16 array, not a {image.dtype} tensor of "
                f"shape {tuple(image.shape)}."
            )
        half = image.dtype in (torch.float16, torch.bfloat16)
        out = image.float() if half else image
        for axis in (-2, -1):
            out = _resample(out, axis, scale)
        return out.to(image.dtype)
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or not image.size:
        raise MtkdError(
            f"imresize takes a uint8 or uint16 array (H, W) or (H, W, C) or a float tensor, not a {image.dtype} array "
            f"of shape {image.shape}."
        )
    out = torch.from_numpy(np.ascontiguousarray(image))
    for axis in (0, 1):
        out = _resample_rounded(out, axis, scale)
    return out.numpy()


def _resample_rounded(image: Tensor, axis: int, scale: float) -> Tensor:
    """One pass over an 8-bit or 16-bit image, in strips across the other axis: doubles take eight times its memory."""
    length = len(_taps(image.shape[axis], scale, torch.float64, image.device)[0][0])
    out = image.new_empty([length if i == axis else side for i, side in enumerate(image.shape)])
    across = 1 - axis
    step = max(_STRIP * image.shape[across] // max(image.numel(), out.numel()), 1)
    most = torch.iinfo(image.dtype).max
    for first in range(0, image.shape[across], step):
        width = min(step, image.shape[across] - first)
        strip = _resample(image.narrow(across, first, width).double(), axis, scale)
        # MATLAB rounds halves away from zero; torch.round would take them to even.
        out.narrow(across, first, width).copy_(strip.add_(0.5).floor_().clamp_(0, most))
    return out


def modcrop(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """View of an (H, W, ...) array cut at the bottom and the right to sides divisible by `scale`."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def bicubic_lq(gt: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Standard low-quality version of an (H, W, C) uint8 image: cut to a multiple of `scale`, then made smaller."""
    return imresize(modcrop(gt, scale), 1 / scale)


def levels_from_bicubic(lq: NDArray[np.uint8], gt: NDArray[np.uint8], scale: int) -> int:
    """The largest difference of `lq` to `bicubic_lq(gt, scale)`, which has its size, in levels of 255."""
    return int(np.abs(lq.astype(int) - bicubic_lq(gt, scale)).max())


def _resample(image: Tensor, axis: int, scale: float) -> Tensor:
    # One multiply-add per kernel tap over the whole image: exact on every device (a matmul would fall to TF32 on
    # some), and many times less work than a dense weight matrix.
    indices, weights = _taps(image.shape[axis], scale, image.dtype, image.device)
    shape = [1] * image.dim()
    shape[axis] = -1
    out = image.index_select(axis, indices[0]) * weights[0].view(shape)
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        out = out + image.index_select(axis, index) * weight.view(shape)
    return out


@lru_cache(maxsize=64)
def _taps(length: int, scale: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Source positions and weights, both (taps, new length), that resize an axis of `length` pixels."""
    # The inner rounding keeps 0.1 * 30 from becoming 4 pixels.
    new_length = math.ceil(round(length * scale, 6))
    stretch = max(1.0, 1 / scale)
    centre = (np.arange(new_length) + 0.5) / scale - 0.5
    first = np.floor(centre - 2 * stretch).astype(np.int64)
    position = first[:, None] + np.arange(math.ceil(4 * stretch) + 2)
    weight = _cubic((centre[:, None] - position) / stretch)
    weight /= weight.sum(1, keepdims=True)
    used = np.flatnonzero((weight != 0).any(0))
    position, weight = position[:, used], weight[:, used]
    # Mirror with the edge repeated: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ...
    position = position % (2 * length)
    position = np.where(position < length, position, 2 * length - 1 - position)
    return (
        torch.from_numpy(np.ascontiguousarray(position.T)).to(device),
        torch.from_numpy(np.ascontiguousarray(weight.T)).to(device, dtype),
    )


def _cubic(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
