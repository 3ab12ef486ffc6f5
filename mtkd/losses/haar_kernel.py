"""The wavelet loss of one Haar level and its gradient in one pass over both images, as a Triton kernel for CUDA.

Every 2x2 square of the difference has its own four coefficients, and they alone decide the gradient of its four
pixels. So both images are read once, the gradient is written once, and nothing else touches memory: the least that the
loss can move. On small images what counts is that value and gradient take 4 launches instead of 18.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CRITERIA = {"l1": 0, "charbonnier": 1, "mse": 2}
_BLOCK = 1024
"""Squares of one program."""


def value_and_gradient(
    sr: Tensor,
    target: Tensor,
    *,
    criterion: str,
    eps: float,
    weights: tuple[float, float, float, float],
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """`WaveletLoss` of one Haar level, and its gradient for `sr`.

    Args:
        sr, target: (N, C, H, W) on CUDA, float32, float16 or bfloat16, any strides, H and W.
        criterion, eps: as of `WaveletLoss`.
        weights: of LL, LH, HL, HH, each of the mean over its own band.
        gradient: whether it is wanted.

    Returns:
        The value, a float32 scalar, and the gradient, float32 in the layout of `sr`, or None.
    """
    n, c, height, width = sr.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    squares = n * c * rows * columns
    programs = (squares + _BLOCK - 1) // _BLOCK
    partial = torch.empty(programs, dtype=torch.float32, device=sr.device)
    grad = torch.empty_like(sr, dtype=torch.float32) if gradient else partial
    # Of coefficients that are twice the orthonormal ones: rho_eps(x / 2) = rho_2eps(x) / 2, and (x / 2)^2 = x^2 / 4.
    gain = 4.0 if criterion == "mse" else 2.0
    factors = [weight / gain / squares for weight in weights]
    launch: Any = _kernel[(programs,)]
    with torch.cuda.device_of(sr):  # Triton launches on the current device
        launch(
            sr,
            target,
            grad,
            partial,
            *sr.stride(),
            *target.stride(),
            *(grad.stride() if gradient else (0, 0, 0, 0)),
            c,
            height,
            width,
            rows,
            columns,
            squares,
            *factors,
            2.0 * eps,
            CRITERION=CRITERIA[criterion],
            GRADIENT=gradient,
            # Neighbouring threads should touch neighbouring bytes.
            CHANNELS_FIRST=sr.stride(1) != 1 or c == 1,
            BLOCK=_BLOCK,
        )
    return partial.sum(), grad if gradient else None


@triton.jit
def _kernel(
    sr,
    target,
    grad,
    partial,
    sr_n,
    sr_c,
    sr_h,
    sr_w,
    target_n,
    target_c,
    target_h,
    target_w,
    grad_n,
    grad_c,
    grad_h,
    grad_w,
    channels,
    height,
    width,
    rows,
    columns,
    squares,
    f_ll,
    f_lh,
    f_hl,
    f_hh,
    eps,
    CRITERION: tl.constexpr,
    GRADIENT: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    square = program * BLOCK + tl.arange(0, BLOCK)
    inside = square < squares
    if CHANNELS_FIRST:
        j = square % columns
        i = square // columns % rows
        c = square // columns // rows % channels
        n = square // columns // rows // channels
    else:
        c = square % channels
        j = square // channels % columns
        i = square // channels // columns % rows
        n = square // channels // columns // rows
    y = 2 * i
    x = 2 * j
    right = inside & (x + 1 < width)
    below = inside & (y + 1 < height)
    corner = right & below
    s = sr + n * sr_n + c * sr_c + y * sr_h + x * sr_w
    t = target + n * target_n + c * target_c + y * target_h + x * target_w
    p00 = tl.load(s, inside, 0.0).to(tl.float32) - tl.load(t, inside, 0.0).to(tl.float32)
    p01 = tl.load(s + sr_w, right, 0.0).to(tl.float32) - tl.load(t + target_w, right, 0.0).to(tl.float32)
    p10 = tl.load(s + sr_h, below, 0.0).to(tl.float32) - tl.load(t + target_h, below, 0.0).to(tl.float32)
    p11 = tl.load(s + sr_h + sr_w, corner, 0.0).to(tl.float32) - tl.load(t + target_h + target_w, corner, 0.0).to(
        tl.float32
    )
    ll = p00 + p01 + p10 + p11
    lh = p00 + p01 - p10 - p11
    hl = p00 - p01 + p10 - p11
    hh = p00 - p01 - p10 + p11
    value = f_ll * _rho(ll, eps, CRITERION) + f_lh * _rho(lh, eps, CRITERION)
    value += f_hl * _rho(hl, eps, CRITERION) + f_hh * _rho(hh, eps, CRITERION)
    tl.store(partial + program, tl.sum(value, 0))
    if GRADIENT:
        ll = f_ll * _slope(ll, eps, CRITERION)
        lh = f_lh * _slope(lh, eps, CRITERION)
        hl = f_hl * _slope(hl, eps, CRITERION)
        hh = f_hh * _slope(hh, eps, CRITERION)
        g = grad + n * grad_n + c * grad_c + y * grad_h + x * grad_w
        tl.store(g, ll + lh + hl + hh, inside)
        tl.store(g + grad_w, ll + lh - hl - hh, right)
        tl.store(g + grad_h, ll - lh + hl - hh, below)
        tl.store(g + grad_h + grad_w, ll - lh - hl + hh, corner)


@triton.jit
def _rho(x, eps, CRITERION: tl.constexpr):
    # 0 for x = 0, so that squares outside the image add nothing.
    if CRITERION == 0:
        return tl.abs(x)
    elif CRITERION == 1:
        return tl.sqrt(x * x + eps * eps) - eps
    else:
        return x * x


@triton.jit
def _slope(x, eps, CRITERION: tl.constexpr):
    if CRITERION == 0:
        return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
    elif CRITERION == 1:
        return x / tl.sqrt(x * x + eps * eps)
    else:
        return 2 * x
