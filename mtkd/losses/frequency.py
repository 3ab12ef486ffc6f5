"""Losses on the coefficients of Fourier-like transforms.

The MTKD paper's ablation compares its wavelet loss with "a DCT-based loss" whose formula it does not give (as far as
it could be read); `DCTLoss` is the plain reading of that name.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkd.contracts import MtkdError
from mtkd.losses.difference import check_nchw, difference

FFTNorm = Literal["backward", "ortho", "forward"]


class DCTLoss(nn.Module):
    """Mean absolute difference of orthonormal 2-D DCT-II coefficients.

        value = mean |D (sr - target) D^T|,  D[k, i] = c_k cos(pi (2i + 1) k / 2n),  c_0 = sqrt(1/n), c_k = sqrt(2/n)

    Args:
        block_size: side of the blocks that are transformed, 8 as in JPEG. Sides that it does not divide are padded with
            zeros on the right and below; the mean is over the coefficients of the padded image. None transforms the
            whole image at once.

    Example:
        >>> DCTLoss(block_size=8)(torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8))  # 8 * 0.5 in one of 64
        tensor(0.0625)
    """

    def __init__(self, *, block_size: int | None = 8) -> None:
        super().__init__()
        if block_size is not None and block_size < 2:
            raise MtkdError(f"DCTLoss needs a block_size of 2 or more, or None for the whole image; got {block_size}.")
        self.block_size = block_size

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Scalar >= 0 for two (N, C, H, W) tensors of one shape; float32 even under autocast."""
        d = check_nchw(difference(sr, target), "DCTLoss")
        with torch.autocast(d.device.type, enabled=False):
            return _dct(d, self.block_size).abs().mean()


class FFTLoss(nn.Module):
    """Mean absolute difference of the real and imaginary parts of the 2-D discrete Fourier transform.

        value = mean over frequencies and {re, im} of |FFT(sr - target)|

    All H * W frequencies count, each of a conjugate pair too. Real and imaginary parts are penalised, not the modulus,
    whose gradient is undefined at zero: the `fftLoss` of MTKD's authors is the mean modulus, not normalised, and is
    another number (on one pair of images 5.76 for theirs, 3.66 for this, 0.23 for this with "ortho").

    Args:
        norm: "backward" does not scale, "ortho" scales by 1 / sqrt(HW), "forward" by 1 / HW. Only "ortho" makes
            the value comparable between crop sizes.

    Example:
        >>> FFTLoss(norm="ortho")(torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4))  # 4 * 0.5 in one of 2 * 16
        tensor(0.0625)
    """

    def __init__(self, *, norm: FFTNorm = "backward") -> None:
        super().__init__()
        if norm not in get_args(FFTNorm):
            raise MtkdError(f"FFTLoss has the norms {', '.join(get_args(FFTNorm))}, got {norm!r}.")
        self.norm = norm

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Scalar >= 0 for two (N, C, H, W) tensors of one shape; float32 even under autocast."""
        d = check_nchw(difference(sr, target), "FFTLoss")
        return torch.view_as_real(torch.fft.fft2(d, norm=self.norm)).abs().mean()


def _dct(x: Tensor, block_size: int | None) -> Tensor:
    height, width = x.shape[-2:]
    if block_size is None:
        return _dct_matrix(height, x.dtype, x.device) @ x @ _dct_matrix(width, x.dtype, x.device).T
    x = F.pad(x, (0, -width % block_size, 0, -height % block_size))
    blocks = x.unflatten(-1, (-1, block_size)).unflatten(-3, (-1, block_size))
    matrix = _dct_matrix(block_size, x.dtype, x.device)
    return torch.einsum("ki,ncyixj,lj->ncykxl", matrix, blocks, matrix)


@lru_cache(maxsize=32)
def _dct_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor born under inference_mode could not take part in a later training step.
    with torch.inference_mode(False):
        k = torch.arange(size, dtype=torch.float64)
        matrix = torch.cos(pi / size * torch.outer(k, k + 0.5)) * (2 / size) ** 0.5
        matrix[0] /= 2**0.5
        return matrix.to(device, dtype)
