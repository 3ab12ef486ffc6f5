"""Narrow networks inside wide ones: the first channels of every convolution form a network of their own.

The channel-splitting network of CSD (Wang et al., "Towards Compact Single Image Super-Resolution via Contrastive
Self-distillation", IJCAI 2021, arXiv 2105.11683).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtkd.archs.edsr import EDSR
from mtkd.archs.rcan import RCAN
from mtkd.contracts import MtkdError


class Slim:
    """The first channels of `net` as a network: `slim(lq) -> sr`, with gradients for the weights of `net`.

    Weights are sliced anew in every call, nothing is copied, and only the sliced part receives a gradient. Not a
    module: the weights are and stay those of `net`, which it follows to any device and dtype.

    Args:
        net: EDSR or RCAN.
        width: share of the channels, in (0, 1]; floor(width * num_feat) channels are used.

    Raises:
        MtkdError: `net` cannot be sliced, or `width` leaves no channel in some layer.
    """

    def __init__(self, net: nn.Module, width: float) -> None:
        self.net = net
        self.shape = narrowed(net, width)

    def weights(self) -> dict[str, Tensor]:
        """Name -> sliced parameter or buffer, views of those of `net`."""
        wide = dict(_tensors(self.net))
        # A pixel shuffle makes channel c of its inputs c * r * r to (c + 1) * r * r - 1, so that the first inputs are
        # the first channels there as well, and one rule serves all layers.
        return {name: wide[name][tuple(slice(side) for side in like.shape)] for name, like in _tensors(self.shape)}

    def __call__(self, lq: Tensor) -> Tensor:
        return functional_call(self.shape, self.weights(), (lq,))


def extract(net: nn.Module, width: float) -> nn.Module:
    """Standalone network with copies of the first channels of `net`, on its device and in its dtype.

    It is of the same class, with floor(width * num_feat) features, and its output is that of `Slim(net, width)`.

    Raises:
        MtkdError: as `Slim`.
    """
    slim = Slim(net, width)
    like = next(net.parameters())
    small = slim.shape.to_empty(device=like.device).to(like.dtype)
    with torch.no_grad():
        weights = slim.weights()
        for name, own in _tensors(small):
            own.copy_(weights[name])
    return small.train(net.training)


def narrowed(net: nn.Module, width: float) -> nn.Module:
    """A network shaped like `net` with a share `width` of its features, without values (on the meta device).

    Raises:
        MtkdError: as `Slim`.
    """
    arguments = next((make for cls, make in _ARGUMENTS.items() if type(net) is cls), None)
    if arguments is None:
        raise MtkdError(
            f"{type(net).__name__} cannot be sliced by channels: its first channels do not make a network of the "
            f"same kind. CSD is defined for {' and '.join(cls.__name__ for cls in _ARGUMENTS)}; give one of them as "
            "network_g."
        )
    if not 0 < width <= 1:
        raise MtkdError(f"The width of a slim network is a share of its channels in (0, 1]; got {width}.")
    given = arguments(net)
    wide = given["num_feat"]
    # 0.29 * 100 is 28.999999999999996.
    features = math.floor(width * wide + 1e-9)
    least = given.get("squeeze_factor", 1)
    if features < least:
        reason = f"its channel attention divides them by {least}" if least > 1 else "none would be left"
        raise MtkdError(
            f"The width {width} keeps {features} of {type(net).__name__}'s {wide} channels, and {reason}. Choose a "
            f"width of at least {least / wide:g}."
        )
    with torch.device("meta"):
        return type(net)(**{**given, "num_feat": features})


def _tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _edsr(net: Any) -> dict[str, Any]:
    return {
        "num_in_ch": net.conv_first.in_channels,
        "num_out_ch": net.mean.numel(),
        "num_feat": net.conv_first.out_channels,
        "num_block": len(net.body),
        "upscale": net.scale,
        "res_scale": net.body[0].res_scale if len(net.body) else 1.0,
        "img_range": net.img_range,
        "rgb_mean": (0.0,) * net.mean.numel(),  # the buffer is taken over, as are the weights
        "upsampler": net.upsampler,
    }


def _rcan(net: Any) -> dict[str, Any]:
    block = net.body[0].residual_group[0]
    wide = net.conv_first.out_channels
    return {
        "num_in_ch": net.conv_first.in_channels,
        "num_out_ch": net.conv_last.out_channels,
        "num_feat": wide,
        "num_group": len(net.body),
        "num_block": len(net.body[0].residual_group),
        "squeeze_factor": wide // block.rcab[3].attention[1].out_channels,
        "upscale": net.scale,
        "res_scale": block.res_scale,
        "img_range": net.img_range,
        "rgb_mean": (0.0,) * net.mean.numel(),
    }


_ARGUMENTS: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {EDSR: _edsr, RCAN: _rcan}
"""Networks that can be sliced, and how to read their constructor's arguments off them."""
