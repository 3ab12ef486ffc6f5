"""A module that uses a frozen network without owning its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


class Hidden(nn.Module, Generic[Net]):
    """Base of modules around a network that is not trained and not saved.

    The network is in eval mode and needs no gradients. It is in neither `parameters()`, `buffers()` nor
    `state_dict()`, and `train()` does not reach it. It follows `.to()`, `.double()` and their kin.

    Attributes:
        net: the network.
    """

    net: Net

    def __init__(self, net: Net) -> None:
        super().__init__()
        # nn.Module.__setattr__ would register it as a child.
        object.__setattr__(self, "net", net.eval().requires_grad_(False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Hidden[Net]:
        super()._apply(fn, recurse)
        self.net._apply(fn)
        return self
