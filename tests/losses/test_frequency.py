"""DCT and FFT losses against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.frequency import DCTLoss, FFTLoss


def _pair(*shape: int) -> tuple[Tensor, Tensor]:
    sr, target = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sr, target


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (2, 1, 15, 9)])
def test_dct_of_the_whole_image_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    sr, target = _pair(*shape)
    expected = np.abs(scipy.fft.dctn((sr - target).numpy(), type=2, norm="ortho", axes=(-2, -1))).mean()
    assert DCTLoss(block_size=None)(sr, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block_size", [2, 4, 5, 8])
def test_dct_of_blocks_is_that_of_scipy_on_the_zero_padded_difference(block_size: int) -> None:
    sr, target = _pair(2, 3, 13, 20)
    d = (sr - target).numpy()
    d = np.pad(d, ((0, 0), (0, 0), (0, -13 % block_size), (0, -20 % block_size)))
    values = [
        np.abs(scipy.fft.dctn(d[..., y : y + block_size, x : x + block_size], norm="ortho", axes=(-2, -1)))
        for y in range(0, d.shape[-2], block_size)
        for x in range(0, d.shape[-1], block_size)
    ]
    assert DCTLoss(block_size=block_size)(sr, target).item() == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (2, 1, 15, 9)])
def test_fft_is_that_of_numpy(shape: tuple[int, ...], norm: str) -> None:
    sr, target = _pair(*shape)
    coefficients = np.fft.fft2((sr - target).numpy(), norm=norm)
    expected = np.stack([np.abs(coefficients.real), np.abs(coefficients.imag)]).mean()
    assert FFTLoss(norm=norm)(sr, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("loss", "option"), [(DCTLoss, {"block_size": 1}), (FFTLoss, {"norm": "orth"})])
def test_a_wrong_option_is_an_error_that_names_it(loss: type, option: dict) -> None:
    with pytest.raises(MtkdError, match=str(next(iter(option.values())))):
        loss(**option)


@pytest.mark.parametrize("loss", [DCTLoss, FFTLoss])
def test_tensors_that_are_no_image_batches_are_refused(loss: type) -> None:
    with pytest.raises(MtkdError, match=r"\(3, 8, 8\)"):
        loss()(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
