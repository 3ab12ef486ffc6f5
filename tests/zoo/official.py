"""EDSR and RCAN as their authors lay them out: complete lists of names and shapes, and what the layers compute.

Written from the layer lists of EDSR-PyTorch's and RCAN's constructors, independently of the key maps under test.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


def conv(name: str, out: int, inside: int, kernel: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inside, kernel, kernel), f"{name}.bias": (out,)}


def tail(features: int, scale: int) -> dict[str, tuple[int, ...]]:
    steps = {2: [4], 3: [9], 4: [4, 4], 8: [4, 4, 4]}[scale]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, factor in enumerate(steps):
        shapes |= conv(f"tail.0.{2 * i}", factor * features, features)
    return shapes | conv("tail.1", 3, features)


def edsr_shapes(features: int, blocks: int, scale: int) -> dict[str, tuple[int, ...]]:
    shapes = conv("sub_mean", 3, 3, 1) | conv("add_mean", 3, 3, 1) | conv("head.0", features, 3)
    for block in range(blocks):
        shapes |= conv(f"body.{block}.body.0", features, features) | conv(f"body.{block}.body.2", features, features)
    return shapes | conv(f"body.{blocks}", features, features) | tail(features, scale)


def rcan_shapes(features: int, groups: int, blocks: int, reduction: int, scale: int) -> dict[str, tuple[int, ...]]:
    shapes = conv("sub_mean", 3, 3, 1) | conv("add_mean", 3, 3, 1) | conv("head.0", features, 3)
    for group in range(groups):
        for block in range(blocks):
            name = f"body.{group}.body.{block}.body"
            shapes |= conv(f"{name}.0", features, features) | conv(f"{name}.2", features, features)
            shapes |= conv(f"{name}.3.conv_du.0", features // reduction, features, 1)
            shapes |= conv(f"{name}.3.conv_du.2", features, features // reduction, 1)
        shapes |= conv(f"body.{group}.body.{blocks}", features, features)
    return shapes | conv(f"body.{groups}", features, features) | tail(features, scale)


def filled(shapes: dict[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, but for the mean shifts, which are those of DIV2K at 0-255."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        state[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        state[f"{name}.bias"] = sign * 255 * MEAN
    return state


def run_edsr(state: dict[str, Tensor], lq: Tensor, *, blocks: int, scale: int, res_scale: float) -> Tensor:
    """What the authors' EDSR computes, on [0, 1] images."""
    x = head = _conv(state, "head.0", _conv(state, "sub_mean", 255 * lq))
    for block in range(blocks):
        inner = _conv(state, f"body.{block}.body.2", _conv(state, f"body.{block}.body.0", x).relu())
        x = x + res_scale * inner
    return _tail(state, _conv(state, f"body.{blocks}", x) + head, scale)


def run_rcan(state: dict[str, Tensor], lq: Tensor, *, groups: int, blocks: int, scale: int) -> Tensor:
    """What the authors' RCAN computes, on [0, 1] images."""
    x = head = _conv(state, "head.0", _conv(state, "sub_mean", 255 * lq))
    for group in range(groups):
        entry = x
        for block in range(blocks):
            name = f"body.{group}.body.{block}.body"
            inner = _conv(state, f"{name}.2", _conv(state, f"{name}.0", x).relu())
            squeezed = _conv(state, f"{name}.3.conv_du.0", inner.mean((2, 3), keepdim=True)).relu()
            x = x + inner * _conv(state, f"{name}.3.conv_du.2", squeezed).sigmoid()
        x = entry + _conv(state, f"body.{group}.body.{blocks}", x)
    return _tail(state, _conv(state, f"body.{groups}", x) + head, scale)


def _tail(state: dict[str, Tensor], x: Tensor, scale: int) -> Tensor:
    factors = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
    for i, factor in enumerate(factors):
        x = F.pixel_shuffle(_conv(state, f"tail.0.{2 * i}", x), factor)
    return _conv(state, "add_mean", _conv(state, "tail.1", x)) / 255


def _conv(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)
