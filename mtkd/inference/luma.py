"""A network of Y for RGB images: it enlarges Y, and bicubic interpolation the colours, as the papers show images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtkd.data.resize import imresize
from mtkd.runtime.luma import to_rgb, to_ycbcr


class LumaNetwork(nn.Module):
    """RGB lq (N, 3, h, w) in [0, 1] -> RGB sr (N, 3, h * scale, w * scale), float32, not clamped.

    Y of sr is what `net` makes of Y of lq; Cb and Cr are enlarged by MATLAB's bicubic, as since SRCNN (Dong et al.,
    arXiv 1501.00092, section 4.1). So PSNR and SSIM on Y are those of `net`, but for the rounding of RGB to 8 bits.

    Args:
        net: Y (N, 1, h, w) in [0, 1] -> Y (N, 1, h * scale, w * scale), with its `scale`.
    """

    image_channels = 3

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.scale: int = net.scale  # pyright: ignore[reportAttributeAccessIssue]
        self.feature_names = tuple(f"net.{name}" for name in getattr(net, "feature_names", ()))
        if (origin := getattr(net, "origin", None)) is not None:
            self.origin = origin

    def forward(self, lq: Tensor) -> Tensor:
        ycbcr = to_ycbcr(lq)
        y = self.net(ycbcr[:, :1].to(lq.dtype)).float()
        return to_rgb(torch.cat([y, imresize(ycbcr[:, 1:], self.scale)], dim=1))


def as_rgb(net: nn.Module) -> nn.Module:
    """`net`, or a `LumaNetwork` around it where its images have one channel (`image_channels`, see `catalog`)."""
    return LumaNetwork(net) if getattr(net, "image_channels", 3) == 1 else net
