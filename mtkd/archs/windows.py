"""Windows of a map and the attention inside them, which SwinIR and DCTSwin share."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mtkd.archs.blocks import is_exported, is_traced
from mtkd.archs.cpu_attention import FusedAttention
from mtkd.contracts import MtkdError


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

    relative_position_index: Tensor

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
            y = FusedAttention.apply(
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
