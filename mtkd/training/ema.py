"""Exponential moving average of the student's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A shadow copy of `net`: `shadow = decay * shadow + (1 - decay) * net` after every step.

    Parameters as in BasicSR's model_ema. Buffers are copied, where BasicSR leaves them at their first value.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._shadow: list[Tensor] = list(self.net.parameters())
        self._live: list[Tensor] = list(net.parameters())
        self._buffers = list(zip(self.net.buffers(), net.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the live weights."""
        torch._foreach_lerp_(self._shadow, self._live, 1 - self.decay)
        for shadow, live in self._buffers:
            shadow.copy_(live)
