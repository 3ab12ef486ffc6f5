"""The Triton kernel of the wavelet loss equals the plain path: interpreted on the CPU, compiled on CUDA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkd.losses import wavelet
from mtkd.losses.wavelet import WaveletLoss

ROOT = Path(__file__).parents[2]
CRITERIA = ("l1", "charbonnier", "mse")
SHAPES = ((2, 3, 8, 12), (1, 3, 7, 9), (3, 1, 5, 4), (1, 3, 64, 50))
WEIGHTS: tuple[dict[str, float], ...] = ({}, {"ll": 0.0}, {"lh": 2.0, "hh": 0.5})


def pair(shape: tuple[int, ...], dtype: torch.dtype, *, last: bool, device: str) -> tuple[Tensor, Tensor]:
    sr, target = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    if last:
        sr = sr.contiguous(memory_format=torch.channels_last)
    return sr.requires_grad_(), target


def differences(device: str) -> list[tuple[str, float, float]]:
    """(case, difference of the values, largest difference of the gradients times the number of pixels)."""
    found = []
    for criterion, shape, weights, last in product(CRITERIA, SHAPES, WEIGHTS, (False, True)):
        for dtype in (torch.float32, torch.bfloat16):
            loss = WaveletLoss(criterion=criterion, band_weights=weights)  # pyright: ignore[reportArgumentType]
            sr, target = pair(shape, dtype, last=last, device=device)
            assert wavelet._for_kernel(sr, target)
            value = loss(sr, target)
            (grad,) = torch.autograd.grad(3 * value, sr)
            exact, reference = sr.detach().cpu().double().requires_grad_(), target.cpu().double()
            expected = loss(exact, reference)
            (expected_grad,) = torch.autograd.grad(3 * expected, exact)
            assert grad.dtype == dtype and value.dtype == torch.float32
            off = (grad.cpu().double() - expected_grad).abs().max().item() * sr.numel()
            rounding = 1e-5 if dtype == torch.float32 else 2**-7
            name = f"{criterion} {shape} {weights} last={last} {dtype}"
            found.append((name, abs(value.item() - expected.item()), off * 1e-5 / rounding))
    return found


@pytest.mark.slow
def test_interpreted_it_equals_the_plain_path() -> None:
    pytest.importorskip("triton")
    # In a process of its own: whether kernels are interpreted is decided when they are defined.
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    judge(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.cuda
def test_on_cuda_it_equals_the_plain_path() -> None:
    judge(differences("cuda"))


def judge(found: list[Any]) -> None:
    assert len(found) == len(CRITERIA) * len(SHAPES) * len(WEIGHTS) * 4
    wrong = [line for line in found if line[1] > 2e-6 or line[2] > 1e-4]
    assert not wrong


def test_the_cpu_and_what_it_cannot_serve_take_the_plain_path() -> None:
    sr, target = torch.rand(2, 1, 3, 8, 8)
    assert not wavelet._for_kernel(sr, target)


if __name__ == "__main__":
    wavelet._KERNEL_DEVICES.add("cpu")
    print(json.dumps(differences("cpu")))
