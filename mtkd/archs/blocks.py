"""Small pieces shared by architectures: tracing, range, upsamplers, padding, parts of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from mtkd.contracts import MtkdError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean RGB of the DIV2K training images in [0, 1]; what EDSR, RCAN and SwinIR subtract."""


def is_traced() -> bool:
    """Whether a tool records, transforms or fakes what a network computes: a compiler, an exporter,
    `torch.jit.trace`, `make_fx`, `torch.func`.

    Kernels of our own and tensors out of a cache then step aside for torch's operations.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or peek_interpreter_stack() is not None
    )


def is_exported() -> bool:
    """Whether the network is being recorded to be run elsewhere, at other sizes: nothing may be decided by a size."""
    # torch 2.4 to 2.6 do not distinguish an export from a compilation.
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
            "num_in_ch and num_out_ch at 3, and give rgb_mean three values. For Y (`color: y`): 1, 1 and one value, "
            "`rgb_mean: [0.44]`."
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
    # As a tensor: exporters to ONNX take no remainder of a size that is free.
    period = torch.full((1,), max(2 * (size - 1), 1), dtype=torch.int64, device=device)
    phase = torch.arange(padded, device=device) % period
    return torch.minimum(phase, period - phase)


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


def init_transformer(module: nn.Module) -> None:
    """Start `module`, if it is linear, as Swin does: weights from a normal distribution of 0.02 cut at +-2, bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
