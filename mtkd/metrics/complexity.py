"""Cost of a network: parameters, and multiply-adds at the published size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtkd.contracts import MtkdError
from mtkd.runtime.modes import deployed, evaluating

PUBLISHED_LQ = {2: (360, 640), 3: (240, 424), 4: (180, 320)}
"""Scale -> (height, width) of the lq that stands for a 1280x720 output; 424 is 1280 / 3 cut to a multiple of 8."""


@dataclass(frozen=True)
class Complexity:
    """Parameters, and multiply-adds of one forward."""

    params: int
    macs: int


def published_lq_size(scale: int) -> tuple[int, int]:
    """(height, width) of the lq whose output is 1280x720 or nearly so, the size at which papers print multiply-adds."""
    return PUBLISHED_LQ.get(scale, (720 // scale, 1280 // scale))


def complexity(
    net: nn.Module, lq_hw: tuple[int, int] | None = None, *, scale: int | None = None, channels: int = 3
) -> Complexity:
    """Parameters and multiply-adds of `net`, as it is used (`deployed`), on one image.

    Convolutions, matrix products and attention count, half of PyTorch's flops; element-wise work, norms and FFTs do
    not, as in the papers. A network that pads its input is counted with the padding. It runs on meta tensors, which
    costs neither time nor memory; a network that needs real numbers runs once for real on its own device. It is
    unchanged afterwards.

    Args:
        net: maps (1, channels, h, w) to an image.
        lq_hw: height and width of its input; by default the published one for 1280x720 output.
        scale: used when `lq_hw` is not given; by default `net.scale`.
        channels: 3, or 3 * teachers for a fusion network.

    Raises:
        MtkdError: neither `lq_hw` nor a scale is known.

    Example:
        >>> complexity(nn.Conv2d(3, 4, 3, padding=1), (10, 20))
        Complexity(params=112, macs=21600)
    """
    if lq_hw is None:
        scale = scale if scale is not None else getattr(net, "scale", None)
        if not isinstance(scale, int):
            raise MtkdError(f"{type(net).__name__} has no `scale`: give complexity() lq_hw=(height, width) or scale.")
        lq_hw = published_lq_size(scale)
    net = deployed(net)
    # Some networks move a plain tensor attribute to the device of their input; restore it, because `meta` loses values.
    plain = [
        (vars(m), name, value) for m in net.modules() for name, value in vars(m).items() if isinstance(value, Tensor)
    ]
    try:
        with evaluating(net):
            macs = _macs(net, torch.Size((1, channels, *lq_hw)))
    finally:
        for attributes, name, value in plain:
            attributes[name] = value
    return Complexity(params=sum(p.numel() for p in net.parameters()), macs=macs)


def _macs(net: nn.Module, shape: torch.Size) -> int:
    tensors: dict[str, Tensor] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    first = next(iter(net.parameters()), torch.empty(0))
    # The attention kernels that a CPU picks by itself are invisible to the counter; MATH is plain products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            with FlopCounterMode(display=False) as counter:
                functional_call(net, on_meta, (torch.empty(shape, device="meta", dtype=first.dtype),))
        except (RuntimeError, NotImplementedError):
            # Its forward reads values, or keeps tensors that are neither parameters nor buffers.
            with FlopCounterMode(display=False) as counter:
                net(torch.zeros(shape, device=first.device, dtype=first.dtype))
    return counter.get_total_flops() // 2
