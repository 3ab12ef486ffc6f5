"""Small pieces that several architectures share: range checks, upsamplers, padding, windows, window attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mtkd.contracts import MtkdError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean RGB of the DIV2K training images in [0, 1]; what EDSR, RCAN and SwinIR subtract."""


def is_traced() -> bool:
    """Whether somebody records, transforms or fakes what a network computes: a compiler, an exporter,
    `torch.jit.trace`, `make_fx`, `torch.func`.

    Kernels of our own and tensors out of a cache then step aside for torch's operations.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_exported() -> bool:
    """Whether the network is being recorded to be run elsewhere, at other sizes: nothing may be decided by a size."""
    # torch 2.4 to 2.6 do not tell an export from a compilation.
    return torch.jit.is_tracing() or (hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting())


def channel_mean(values: Sequence[float], num_in_ch: int, num_out_ch: int) -> Tensor:
    """`values` as a (1, C, 1, 1) tensor that is subtracted from the input and added to the output.

    Raises:
        MtkdError: the number of values is not the number of input and output channels.
    """
    if not len(values) == num_in_ch == num_out_ch:
        raise MtkdError(
            f"rgb_mean has {len(values)} values, num_in_ch is {num_in_ch} and num_out_ch {num_out_ch}; the mean is "
            "subtracted from the input and added to the output, so the three must agree. Images have 3 channels: leave "
            "num_in_ch and num_out_ch at 3, and give rgb_mean three values."
        )
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def subpixel_upsampler(scale: int, num_feat: int) -> nn.Sequential:
    """Sub-pixel convolutions (Shi et al., CVPR 2016): (N, num_feat, H, W) -> (N, num_feat, H * scale, W * scale).

    One 3x3 convolution and PixelShuffle(2) per factor 2, or one with PixelShuffle(3); empty for scale 1.

    Raises:
        MtkdError: `scale` is neither 3 nor a power of two.
    """
    if scale == 3:
        factors = [3]
    elif scale >= 1 and scale & (scale - 1) == 0:
        factors = [2] * int(math.log2(scale))
    else:
        raise MtkdError(f"upscale {scale} is not supported: it is 3 or a power of two.")
    layers: list[nn.Module] = []
    for factor in factors:
        layers += [nn.Conv2d(num_feat, factor**2 * num_feat, 3, 1, 1), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """`pad_to_size` to the next multiples of `multiple`."""
    # Not -h % multiple: the padded side is then plainly a product, which spares torch.compile minutes of algebra on
    # symbolic sizes.
    h, w = ((side + multiple - 1) // multiple * multiple for side in x.shape[-2:])
    return pad_to_size(x, h, w)


def pad_to_size(x: Tensor, height: int, width: int) -> Tensor:
    """Reflect (N, C, H, W) at the right and bottom until it is `height` x `width`.

    A side that is shorter than its padding is reflected back and forth, as numpy.pad does; a side of 1 is repeated.
    Returns `x` itself when nothing is missing, but in an export, which must serve other sizes too.
    """
    h, w = x.shape[-2:]
    pad_h, pad_w = height - h, width - w
    if not is_exported():
        if pad_h == pad_w == 0:
            return x
        if pad_h < h and pad_w < w:
            return F.pad(x, (0, pad_w, 0, pad_h), mode="reflect")
    rows = _reflected(h, height, x.device)
    columns = _reflected(w, width, x.device)
    return x[:, :, rows[:, None], columns]


def _reflected(size: int, padded: int, device: torch.device) -> Tensor:
    period = max(2 * (size - 1), 1)
    phase = torch.arange(padded, device=device) % period
    return torch.minimum(phase, period - phase)


def window_partition(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C) -> (N * windows, window * window, C), windows in row-major order; H and W are multiples."""
    return rearrange(x, "n (h wh) (w ww) c -> (n h w) (wh ww) c", wh=window, ww=window)


def window_reverse(windows: Tensor, window: int, h: int, w: int) -> Tensor:
    """Inverse of `window_partition` for an (N, h, w, C) map."""
    return rearrange(
        windows, "(n h w) (wh ww) c -> n (h wh) (w ww) c", h=h // window, w=w // window, wh=window, ww=window
    )


def shifted_window_mask(
    h: int, w: int, window: int, shift: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """(windows, window**2, window**2) to be added to the logits of cyclically shifted windows of an h x w map.

    0 between tokens that are neighbours in the image, -100 between tokens that only the cyclic shift brought into one
    window (Liu et al., ICCV 2021, section 3.2). The masks of the last sizes are kept: do not change them in place.
    """
    # To a tracer, a tensor out of a cache would be a constant of one size.
    build = _mask if is_traced() else _kept_mask
    return build(h, w, window, shift, device, dtype)


def _mask(h: int, w: int, window: int, shift: int, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    def region(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window).int() + (position >= size - shift).int()

    regions = 3 * region(h)[:, None] + region(w)
    tokens = rearrange(regions, "(h wh) (w ww) -> (h w) (wh ww)", wh=window, ww=window)
    apart = tokens[:, None, :] != tokens[:, :, None]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, -100.0)


# Two sizes: training patches and the image being validated. A mask of a 1280x720 lq takes 240 MB.
@lru_cache(maxsize=2)
def _kept_mask(*key: Any) -> Tensor:
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return _mask(*key)


def relative_position_index(window: int) -> Tensor:
    """(window**2, window**2) int64: row of the relative position bias table for each pair (query, key)."""
    # On the CPU: on the meta device, this arithmetic would import torch's compiler, which takes two seconds.
    side = torch.arange(window, device="cpu")
    y, x = side[:, None].expand(window, window).flatten(), side.expand(window, window).flatten()
    dy, dx = (position[:, None] - position + window - 1 for position in (y, x))
    return (dy * (2 * window - 1) + dx).to(torch.get_default_device())


class _FusedAttention(torch.autograd.Function):
    """Window attention with its projections, a few windows at a time, for the CPU.

    The attention weights are the largest tensor of a Swin network by far. Here they never exist as a whole: those of a
    few windows are made, used and overwritten in the cache, and made again in backward from the logarithms of their
    sums. torch's kernel does likewise, but not with a bias that has a gradient.

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

        `keep` says whether backward will follow.
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
                # In the first round what lies there is not read.
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


LOGITS_AT_A_TIME = 2**19
"""Attention weights per thread that `_FusedAttention` works on at a time: 2 MiB of float32."""


class _Windows:
    """Which windows `_FusedAttention` takes at a time, and the logits of those."""

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


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned relative position bias (Liu et al., ICCV 2021).

    Args:
        dim: channels of a token.
        window_size: side of a window.
        num_heads: heads; divides `dim`.
        qkv_bias: whether query, key and value have a bias.
        qk_scale: factor of the logits; None means 1 / sqrt(dim / num_heads).
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.

    Raises:
        MtkdError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise MtkdError(
                f"embed_dim {dim} cannot be split into {num_heads} heads (num_heads must divide embed_dim)."
            )
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.logit_scale = qk_scale or self.head_dim**-0.5
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N * windows, tokens, C) -> same; `mask` (windows, tokens, tokens) is added to the logits."""
        if self._is_fused(x):
            projections = (self.qkv.weight, self.qkv.bias), (self.proj.weight, self.proj.bias)
            bias = self._position_bias()
            y = _FusedAttention.apply(
                x, *projections[0], bias, mask, *projections[1], self.logit_scale, torch.is_grad_enabled()
            )
            return self.proj_drop(y)
        pad = self._head_padding(x)
        qkv = self._padded_qkv(x, pad) if pad else self.qkv(x)
        q, k, v = rearrange(qkv, "b n (t h d) -> t b h n d", t=3, h=self.num_heads).unbind(0)
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=self._logit_bias(mask, q.shape[0]).to(q.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.logit_scale,
        )
        if is_exported():
            x = x.contiguous()  # exporters write the attention with operations whose result lies otherwise in memory
        x = rearrange(x, "b h n d -> b n (h d)")
        return self.proj_drop(self._padded_proj(x, pad) if pad else self.proj(x))

    def _is_fused(self, x: Tensor) -> bool:
        # Elsewhere torch has kernels of its own; a tracer could not see into ours. It takes the projections' weights
        # past the modules, which must then be plain and unwatched.
        return (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and not (self.training and self.attn_drop)
            and not is_traced()
            and all(type(m) is nn.Linear and not m._forward_hooks for m in (self.qkv, self.proj))
        )

    def _position_bias(self) -> Tensor:
        # Indexing, not index_select: its backward adds in a fixed order on CUDA.
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()

    def _logit_bias(self, mask: Tensor | None, batch: int) -> Tensor:
        bias = self._position_bias()
        if mask is None:
            return bias[None]
        bias = bias + mask[:, None]
        images = batch // bias.shape[0]
        return bias if not is_exported() and images == 1 else bias.expand(images, *bias.shape).flatten(0, 1)

    def _head_padding(self, x: Tensor) -> int:
        # CUDA's fused attention with a bias wants heads of a multiple of 8; SwinIR's have 30 or 10 channels. Zeros
        # added to each head change nothing, and padding the weights costs kilobytes where padding maps costs a pass.
        return -self.head_dim % 8 if x.is_cuda else 0

    def _padded_qkv(self, x: Tensor, pad: int) -> Tensor:
        weight = F.pad(self.qkv.weight.unflatten(0, (-1, self.head_dim)), (0, 0, 0, pad)).flatten(0, 1)
        bias = self.qkv.bias
        if bias is not None:
            bias = F.pad(bias.unflatten(0, (-1, self.head_dim)), (0, pad)).flatten()
        return F.linear(x, weight, bias)

    def _padded_proj(self, x: Tensor, pad: int) -> Tensor:
        weight = F.pad(self.proj.weight.unflatten(1, (-1, self.head_dim)), (0, pad)).flatten(1)
        return F.linear(x, weight, self.proj.bias)


class Mlp(nn.Module):
    """fc1, GELU, fc2 on the last axis, with dropout after both."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, drops a sample's branch and scales the kept ones."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept / keep)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an (N, C, H, W) map. The result lies in memory as channels_last."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def residual_conv(kind: Literal["1conv", "3conv"], dim: int) -> nn.Module:
    """The convolution at the end of a residual group: one 3x3, or the 3x3, 1x1, 3x3 bottleneck over dim / 4.

    Raises:
        MtkdError: `kind` is neither.
    """
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, 1, 1)
    if kind == "3conv":
        return nn.Sequential(
            nn.Conv2d(dim, dim // 4, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(dim // 4, dim // 4, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(dim // 4, dim, 3, 1, 1),
        )
    raise MtkdError(f"resi_connection is '1conv' or '3conv', not {kind!r}.")
