"""Small pieces that several architectures share: range checks, upsamplers, padding, windows, window attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mtkd.contracts import MtkdError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean RGB of the DIV2K training images in [0, 1]; what EDSR, RCAN and SwinIR subtract."""


def channel_mean(values: Sequence[float], num_in_ch: int, num_out_ch: int) -> Tensor:
    """`values` as a (1, C, 1, 1) tensor that is subtracted from the input and added to the output.

    Raises:
        MtkdError: the number of values is not the number of input and output channels.
    """
    if not len(values) == num_in_ch == num_out_ch:
        raise MtkdError(
            f"rgb_mean has {len(values)} values, num_in_ch is {num_in_ch} and num_out_ch {num_out_ch}; the mean is "
            "subtracted from the input and added to the output, so the three must agree. Give one mean per channel, "
            "for a one-channel net for example rgb_mean: [0.0]."
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
    Returns `x` itself when nothing is missing.
    """
    h, w = x.shape[-2:]
    pad_h, pad_w = height - h, width - w
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
    # A compiler traces the arithmetic; a tensor out of a cache would be a constant of one size to it.
    build = _mask if torch.compiler.is_compiling() else _kept_mask
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
    position = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    dy, dx = position[:, :, None] - position[:, None, :] + window - 1
    return dy * (2 * window - 1) + dx


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
        pad = self._head_padding(x)
        qkv = self._padded_qkv(x, pad) if pad else self.qkv(x)
        q, k, v = rearrange(qkv, "b n (t h d) -> t b h n d", t=3, h=self.num_heads).unbind(0)
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=self._logit_bias(mask, len(q)).to(q.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.logit_scale,
        )
        x = rearrange(x, "b h n d -> b n (h d)")
        return self.proj_drop(self._padded_proj(x, pad) if pad else self.proj(x))

    def _logit_bias(self, mask: Tensor | None, batch: int) -> Tensor:
        # Indexing, not index_select: its backward adds in a fixed order on CUDA.
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()
        if mask is None:
            return bias[None]
        bias = bias + mask[:, None]
        images = batch // len(bias)
        return bias if images == 1 else bias.expand(images, *bias.shape).flatten(0, 1)

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
