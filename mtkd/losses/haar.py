"""One level of the Haar transform, by sums and differences, with its transpose as the gradient.

Bands are named as in pytorch_wavelets: LH is low-pass along the width and high-pass along the height (PyWavelets' cH),
HL the other way round (cV), HH high-pass along both (cD).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F


def haar(x: Tensor) -> Tensor:
    """One Haar level, 2x the orthonormal one: (N, C, H, W) -> (4, N, C, ceil(H/2), ceil(W/2)), in order LL LH HL HH."""
    x = even_sided(x)
    if not torch.compiler.is_compiling():
        return Haar.apply(x)
    # A compiler fuses this into one kernel; it cannot see into the out= of `Haar`.
    top, bottom = x.unflatten(-2, (-1, 2)).unbind(-2)
    left, right = torch.stack((top + bottom, top - bottom)).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((left + right, left - right)).flatten(0, 1)


def even_sided(x: Tensor) -> Tensor:
    """`x` (N, C, H, W) with a row and a column of zeros at the bottom and the right where its sides are odd."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


class Haar(torch.autograd.Function):
    """`haar` for even sides.

    A Function because the gradient of slicing is a full-size copy; the transform's own transpose writes every pixel
    once.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return butterflies(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return transposed_butterflies(grad)


def butterflies(x: Tensor) -> Tensor:
    """`haar` for even sides: sums and differences of pairs of rows, then of columns, each written where it belongs."""
    n, c, height, width = x.shape
    h, w = height // 2, width // 2
    rows = x.reshape(n, c, h, 2, width)
    halves = x.new_empty(2, n, c, h, width)
    torch.add(rows[:, :, :, 0], rows[:, :, :, 1], out=halves[0])
    torch.sub(rows[:, :, :, 0], rows[:, :, :, 1], out=halves[1])
    bands = x.new_empty(2, 2, n, c, h, w)
    torch.add(halves[..., 0::2], halves[..., 1::2], out=bands[0])
    torch.sub(halves[..., 0::2], halves[..., 1::2], out=bands[1])
    return bands.view(4, n, c, h, w)


def transposed_butterflies(bands: Tensor) -> Tensor:
    """(4, N, C, h, w) -> (N, C, 2 * h, 2 * w), the gradient of `butterflies`."""
    _, n, c, h, w = bands.shape
    bands = bands.reshape(2, 2, n, c, h, w)
    halves = bands.new_empty(2, n, c, h, 2 * w)
    torch.add(bands[0], bands[1], out=halves[..., 0::2])
    torch.sub(bands[0], bands[1], out=halves[..., 1::2])
    rows = bands.new_empty(n, c, h, 2, 2 * w)
    torch.add(halves[0], halves[1], out=rows[:, :, :, 0])
    torch.sub(halves[0], halves[1], out=rows[:, :, :, 1])
    return rows.view(n, c, 2 * h, 2 * w)
