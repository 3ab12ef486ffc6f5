"""A network of a larger scale as a teacher of a smaller one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.data.resize import imresize


class Shrunk(nn.Module):
    """`net` with its image made smaller by MATLAB's bicubic rule, so that it enlarges by `scale`.

    lq images are made by a filter whose width is four lq pixels at every scale. So the lq of x3 is what a network of x4
    was trained for, and its image shows the same scene at 4/3 of the wanted size. With CRAFT of x4 that gives 34.59 dB
    at x3 and 38.01 at x2 on Set5 (docs/log.md).

    Args:
        net: lq -> sr, with an attribute `scale`.
        scale: to enlarge by, smaller than `net.scale`.

    Attributes:
        feature_names: taps of `net`, under `net.`; features of lq size serve at any scale.

    Raises:
        MtkdError: `net` does not enlarge by more than `scale`.
    """

    def __init__(self, net: nn.Module, scale: int) -> None:
        super().__init__()
        own = getattr(net, "scale", None)
        if not isinstance(own, int) or own <= scale:
            raise MtkdError(
                f"A {type(net).__name__} that enlarges by {own} cannot teach at x{scale}: only images of a larger "
                "scale can be made smaller."
            )
        self.net = net
        self.scale = scale
        self.image_channels: int = getattr(net, "image_channels", 3)
        self.feature_names = tuple(f"net.{tap}" for tap in getattr(net, "feature_names", ()))
        self.origin: Any = getattr(net, "origin", None)
        self._factor = scale / own

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h * scale, w * scale), neither clipped nor rounded."""
        return imresize(self.net(lq), self._factor)
