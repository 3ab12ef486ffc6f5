"""PlainSR, for devices: 3x3 convolutions at lq size and one pixel shuffle. It trains more weights than it keeps.

Its parts are known: all layers at low resolution and a pixel shuffle (ESPCN: Shi et al., CVPR 2016, arXiv 1609.05158);
kernels that are sums of linear branches in training, summed as weights in every step (SESR: Bhardwaj et al., MLSys
2022, arXiv 2103.09404, its collapsed training); a residual over the enlarged input (ECBSR: Zhang et al., ACM MM 2021).
Ours: the enlarged input is exact bicubic, made by a fixed convolution at lq size, and the residual may be one of
brightness alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.contracts import MtkdError

SLOPE = 0.1
"""Of the leaky ReLUs. Runtimes fuse them with the convolution before them; a PReLU costs a third of the time more."""


class SummedConv(nn.Module):
    """3x3 convolution whose kernel is a sum of linear branches: (N, in, H, W) -> (N, out, H, W).

    kernel = own 3x3 + (1x1 after a 3x3 to `expand` channels) + identity where the widths agree. The branches are summed
    as weights, so that a step costs what one convolution costs. `plain()` is that convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, expand: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.wide = nn.Parameter(torch.empty(expand, in_channels, 3, 3))
        self.narrow = nn.Parameter(torch.empty(out_channels, expand))
        nn.init.kaiming_uniform_(self.wide, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.narrow, a=math.sqrt(5))
        self.has_identity = _is_square(self.conv.weight)

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """The kernel of the sum, (out, in, 3, 3), computed in `dtype`, by default that of the weights."""
        own, narrow, wide = (weight.to(dtype or weight.dtype) for weight in (self.conv.weight, self.narrow, self.wide))
        with torch.autocast(wide.device.type, enabled=False):
            kernel = own + (narrow @ wide.flatten(1)).view_as(own)
            if self.has_identity:
                identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
                kernel = kernel + F.pad(identity[:, :, None, None], (1, 1, 1, 1))
        return kernel

    @torch.no_grad()
    def plain(self) -> nn.Conv2d:
        """One convolution with the summed kernel, a copy; summed in float64."""
        conv = nn.Conv2d(self.conv.in_channels, self.conv.out_channels, 3, 1, 1).to(self.conv.weight)
        conv.weight.copy_(self.kernel(torch.float64))
        assert conv.bias is not None and self.conv.bias is not None
        conv.bias.copy_(self.conv.bias)
        return conv

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.conv.bias, padding=1)


class PlainSR(nn.Module):
    """bicubic(lq) + a residual made of 3x3 convolutions at lq size.

    Maps RGB (N, 3, H, W) in [0, 1] of any size to (N, 3, H * upscale, W * upscale), not clamped. Bicubic interpolation
    is part of the network, a fixed 5x5 convolution from each colour to its `upscale**2` pixels: MATLAB's
    (`mtkd.data.resize`) to rounding, but for the border, where edge pixels are repeated and not mirrored.

    Args:
        num_in_ch: channels of the input, 3.
        num_out_ch: channels of the output, 3.
        num_feat: channels of the features. Multiples of 16 fill the registers of a CPU.
        num_conv: convolutions between the first and the last.
        upscale: scale factor, any whole number.
        expand: channels of the wide branch of each kernel in training; 0 for plain convolutions. `deployable()` makes a
            network with 0 that computes the same.
        residual: "luma" adds one residual to the three colours, so that colours are bicubic's and all weights serve
            brightness, which PSNR-Y measures; "rgb" has one for each, for `2 * upscale**2` more channels of the last
            convolution.

    Raises:
        MtkdError: numbers of channels other than 3, or an unknown `residual`.
    """

    cubic: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 16,
        num_conv: int = 6,
        upscale: int = 4,
        expand: int = 0,
        residual: Literal["luma", "rgb"] = "luma",
    ) -> None:
        super().__init__()
        if (num_in_ch, num_out_ch) != (3, 3):
            raise MtkdError(
                f"PlainSR takes and makes RGB: num_in_ch and num_out_ch are 3, found {num_in_ch}, {num_out_ch}."
            )
        if residual not in ("luma", "rgb"):
            raise MtkdError(f"residual {residual!r} is not supported: it is 'luma' or 'rgb'.")
        self.scale = upscale
        self.num_feat = num_feat
        self.expand = expand
        self.residual: Literal["luma", "rgb"] = residual
        self.head = _layer(3, num_feat, expand)
        self.body = nn.Sequential(*(_layer(num_feat, num_feat, expand) for _ in range(num_conv)))
        self.tail = nn.Conv2d(num_feat, (1 if residual == "luma" else 3) * upscale**2, 3, 1, 1)
        with torch.no_grad():
            self.tail.weight.mul_(0.1)  # begins near bicubic, which is where it will stay near
            assert self.tail.bias is not None
            self.tail.bias.zero_()
        # Not saved: it is part of the definition, not of what is learned.
        self.register_buffer("cubic", cubic_kernels(upscale).repeat(3, 1, 1, 1), persistent=False)
        self.feature_names = ("head", *(f"body.{i}" for i in range(num_conv)))

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), self.cubic, groups=3)
        residual = self.tail(self.body(self.head(x - 0.5)))
        if self.residual == "luma":
            residual = torch.cat([residual] * 3, 1)
        return F.pixel_shuffle(enlarged + residual, self.scale)

    def widened(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`state` of a network without branches as that of this one, which then computes the same; any other as it is.

        The narrow kernels of the wide branches begin at zero, the wide ones at random, so that both learn.
        """
        if not self.expand or not any(name.endswith(".0.weight") for name in state):
            return state
        wide: dict[str, Tensor] = {}
        for name, value in state.items():
            layer, _, kind = name.rpartition(".0.")
            if not layer or kind not in ("weight", "bias") or (kind == "weight" and value.ndim != 4):
                wide[name] = value
                continue
            wide[f"{layer}.0.conv.{kind}"] = value
            if kind == "weight":
                if _is_square(value):
                    value = value.clone()
                    value[:, :, 1, 1] -= torch.eye(len(value), dtype=value.dtype)
                    wide[f"{layer}.0.conv.weight"] = value
                branch = SummedConv(value.shape[1], value.shape[0], self.expand)
                wide[f"{layer}.0.wide"] = branch.wide.detach()
                wide[f"{layer}.0.narrow"] = torch.zeros_like(branch.narrow)
        return wide

    def deployable(self) -> PlainSR:
        """A copy without branches: its output differs by rounding alone (below 1e-6)."""
        plain = PlainSR(num_feat=self.num_feat, num_conv=len(self.body), upscale=self.scale, residual=self.residual).to(
            self.tail.weight
        )
        state = {name: value for name, value in self.state_dict().items() if name.startswith("tail.")}
        layers = [("head", self.head), *((f"body.{i}", layer) for i, layer in enumerate(self.body))]
        for name, layer in layers:
            conv = layer[0]
            state |= {
                f"{name}.0.{key}": value
                for key, value in (conv.plain() if isinstance(conv, SummedConv) else conv).state_dict().items()
            }
        plain.load_state_dict(state)
        return plain.train(self.training)


def _is_square(kernel: Tensor) -> bool:
    return kernel.shape[0] == kernel.shape[1]


def cubic_kernels(scale: int) -> Tensor:
    """Kernels (scale**2, 1, 5, 5): a pixel shuffle of their outputs is the bicubic enlargement (Keys, a = -0.5)."""
    rows = torch.tensor(
        [[_cubic((phase + 0.5) / scale - 0.5 - tap) for tap in range(-2, 3)] for phase in range(scale)],
        dtype=torch.float64,
    )
    return torch.einsum("ai,bj->abij", rows, rows).reshape(scale**2, 1, 5, 5).float()


def _cubic(distance: float) -> float:
    t = abs(distance)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def _layer(in_channels: int, out_channels: int, expand: int) -> nn.Sequential:
    conv = SummedConv(in_channels, out_channels, expand) if expand else nn.Conv2d(in_channels, out_channels, 3, 1, 1)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE))
