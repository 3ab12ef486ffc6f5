"""Window attention in one autograd Function, for CPUs.

Only `windows.WindowAttention` uses it, and only on a CPU in float32 or float64, outside tracers and autocast.

Why it is here: with a bias that has a gradient, torch's attention makes whole tensors of weights on a CPU. Measured
against BasicSR's classes on two shared cores of an AMD EPYC (docs/log.md, "Speed of window attention"): one layer,
forward and backward, in 54 ms for 79 to 86; SwinIR-S 2.2 to 2.4 times as fast forward; a training pass of it in 2.0 s
of one thread for 2.7 to 3.0, and on a quieter machine 1.2 times as fast. SwinIR-M gains nothing in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LOGITS_AT_A_TIME = 2**19
"""Attention weights per thread that `FusedAttention` works on at a time: 2 MiB of float32."""


class FusedAttention(torch.autograd.Function):
    """Window attention with its projections, a few windows at a time, for the CPU.

    The attention weights are the largest tensor of a Swin network by far. Here they never exist as a whole: those of a
    few windows are made, used and overwritten in the cache, and made again in backward from the logarithms of their
    sums. torch's kernel does the same, but not with a bias that has a gradient.

    Maps lie as (channels, tokens). Heads are then rows that need no copy to be set apart, and the long side of each
    product is the 64 tokens and not the 10 channels of a head, which takes a fourth of the time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor | None,
        logit_bias: Tensor,
        mask: Tensor | None,
        proj_weight: Tensor,
        proj_bias: Tensor,
        scale: float,
        keep: bool,
    ) -> Tensor:
        """(B, tokens, C) -> same; (heads, tokens, tokens) and (windows, tokens, tokens) are added to the logits.

        `keep`: backward will follow.
        """
        batch, tokens, dim = x.shape
        windows = _Windows(batch, logit_bias, mask, scale)
        stored = batch if keep else windows.size
        qkv = x.new_empty(3, stored, dim, tokens)
        mixed = x.new_empty(stored, dim, tokens)
        log_sums = x.new_empty(stored * windows.num_heads, tokens, 1)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        scratch = windows.scratch()
        to_qkv, to_y = qkv_weight.unflatten(0, (3, dim)), proj_weight.T
        for part in windows.parts():
            here = part if keep else slice(0, part.stop - part.start)
            x_part, qkv_part, mixed_part = x[part], qkv[:, here], mixed[here]
            for weight, target in zip(to_qkv, qkv_part, strict=True):
                torch.bmm(_each(weight, x_part), x_part.mT, out=target)
            if qkv_bias is not None:
                qkv_part += qkv_bias.view(3, 1, dim, 1)
            q, k, v = windows.heads(qkv_part)
            logits = windows.logits(q, k, part, scratch)
            top = logits.amax(-1, keepdim=True)
            sums = logits.sub_(top).exp2_().sum(-1, keepdim=True)
            torch.add(top, sums.log2(), out=windows.rows(log_sums, here))
            torch.bmm(v, logits.mT, out=windows.heads(mixed_part)).div_(sums.mT)
            torch.baddbmm(proj_bias, mixed_part.mT, _each(to_y, x_part), out=y[part])
        if keep:
            ctx.save_for_backward(x, qkv_weight, qkv_bias, logit_bias, mask, proj_weight, qkv, mixed, log_sums)
            ctx.scale = scale
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, qkv_weight, qkv_bias, logit_bias, mask, proj_weight, qkv, mixed, log_sums = ctx.saved_tensors
        dim, tokens = qkv.shape[2:]
        grad = grad.contiguous()
        windows = _Windows(len(x), logit_bias, mask, ctx.scale)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_qkv_weight = x.new_zeros(3, dim, dim)
        grad_qkv_bias = x.new_zeros(3, dim)
        grad_logit_bias = torch.zeros_like(logit_bias)
        grad_proj_weight = torch.zeros_like(proj_weight)
        scratch, grad_scratch = windows.scratch(), windows.scratch()
        grad_maps = x.new_empty(4, windows.size, dim, tokens)
        to_qkv, from_y = qkv_weight.unflatten(0, (3, dim)), proj_weight.T
        for part in windows.parts():
            x_part, grad_part = x[part], grad[part]
            here = grad_maps[:, : len(x_part)]
            q, k, v = windows.heads(qkv[:, part])
            weights = windows.logits(q, k, part, scratch, windows.rows(log_sums, part)).exp2_()
            grad_proj_weight += (grad_part.mT @ mixed[part].mT).sum(0)
            torch.bmm(_each(from_y, x_part), grad_part.mT, out=here[3])
            grad_q, grad_k, grad_v, grad_mixed = windows.heads(here)
            torch.bmm(grad_mixed, weights, out=grad_v)
            grad_logits = torch.bmm(grad_mixed.mT, v, out=grad_scratch[: len(v)])
            torch.ops.aten._softmax_backward_data.out(grad_logits, weights, -1, x.dtype, grad_input=grad_logits)
            grad_logit_bias += grad_logits.unflatten(0, (-1, windows.num_heads)).sum(0)
            torch.bmm(k, grad_logits.mT, out=grad_q).mul_(ctx.scale)
            torch.bmm(q, grad_logits, out=grad_k).mul_(ctx.scale)
            for kind in range(3):
                grad_qkv_weight[kind] += (here[kind] @ x_part).sum(0)
                # beta is 0 in the first round, because grad_x is uninitialised memory.
                grad_x[part].baddbmm_(here[kind].mT, _each(to_qkv[kind], x_part), beta=min(kind, 1))
            if qkv_bias is not None:
                grad_qkv_bias += here[:3].sum((1, 3))
        return (
            grad_x,
            grad_qkv_weight.flatten(0, 1),
            None if qkv_bias is None else grad_qkv_bias.flatten(),
            grad_logit_bias,
            None,
            grad_proj_weight,
            grad.sum((0, 1)),
            None,
            None,
        )


class _Windows:
    """Which windows `FusedAttention` takes at a time, and the logits of those."""

    def __init__(self, batch: int, bias: Tensor, mask: Tensor | None, scale: float) -> None:
        self.batch = batch
        self.num_heads, self.tokens, _ = bias.shape
        # torch's exp2 takes half the time of its exp.
        self.bias = bias * math.log2(math.e)
        self.mask = mask
        self.scale = scale * math.log2(math.e)
        self.period = batch if mask is None else len(mask)
        self.size = min(max(int(LOGITS_AT_A_TIME * torch.get_num_threads() / bias.numel()), 1), self.period)

    def parts(self) -> Iterator[slice]:
        """Ranges of windows, none of them over two images when there is a mask."""
        for image in range(0, self.batch, self.period):
            for start in range(image, image + self.period, self.size):
                yield slice(start, min(start + self.size, image + self.period))

    def scratch(self) -> Tensor:
        """Room for the logits of one part."""
        return self.bias.new_empty(self.size * self.num_heads, self.tokens, self.tokens)

    def heads(self, x: Tensor) -> Tensor:
        """(..., B, C, tokens) -> (..., B * heads, C / heads, tokens)."""
        return x.view(*x.shape[:-3], -1, x.shape[-2] // self.num_heads, x.shape[-1])

    def rows(self, x: Tensor, part: slice) -> Tensor:
        """Those of `part` in a tensor of (B * heads, ...)."""
        return x[part.start * self.num_heads : part.stop * self.num_heads]

    def logits(self, q: Tensor, k: Tensor, part: slice, scratch: Tensor, log_sums: Tensor | None = None) -> Tensor:
        """Logits to the base 2, less the logarithm of their sum when that is given."""
        logits = scratch[: len(q)]
        by_window = logits.unflatten(0, (-1, self.num_heads))
        if self.mask is not None:
            start = part.start % self.period
            mask = self.mask[start : start + len(by_window), None]
            torch.add(self.bias, mask, alpha=math.log2(math.e), out=by_window)
        else:
            by_window.copy_(self.bias)
        if log_sums is not None:
            logits -= log_sums
        return logits.baddbmm_(q.mT, k, alpha=self.scale)


def _each(matrix: Tensor, windows: Tensor) -> Tensor:
    return matrix.expand(len(windows), *matrix.shape)
