"""What changes in a run without an optimizer: a method's queue, running statistics of normalisations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OwnState:
    """The buffers and frozen parameters of a network in training, as they were after its last whole iteration.

    A forward pass may change them, so that an iteration which fails leaves them in between. Buffers are copied after
    every iteration, on the device: the version counters of those that a batch normalisation writes stand still. Frozen
    parameters, which may be those of large networks, are copied when their counter has moved.
    """

    def __init__(self, net: nn.Module) -> None:
        # Where they stand, because some are replaced and not written into. Looking through the modules takes long.
        self._places = [
            (module._buffers, name)
            for module in net.modules()
            for name, value in module._buffers.items()
            if value is not None
        ]
        self._buffers: list[Tensor] = []
        self._frozen = [parameter for parameter in net.parameters() if not parameter.requires_grad]
        self._versions = [parameter._version for parameter in self._frozen]
        self._copies: dict[int, Tensor] = {}
        self._copy_buffers()

    def keep(self) -> None:
        """An iteration is complete: its values are those to go back to."""
        self._copy_buffers()
        for number, parameter in enumerate(self._frozen):
            if parameter._version != self._versions[number]:
                self._copies[number] = parameter.detach().clone()
                self._versions[number] = parameter._version

    @torch.no_grad()
    def go_back(self) -> bool:
        """Undo what changed since `keep`; False where that is not known any more."""
        versions = zip(self._frozen, self._versions, strict=True)
        moved = [number for number, (parameter, version) in enumerate(versions) if parameter._version != version]
        now = self._now()
        if any(number not in self._copies for number in moved) or not _alike(now, self._buffers):
            return False
        for number in moved:
            self._frozen[number].copy_(self._copies[number])
        for buffer, kept in zip(now, self._buffers, strict=True):
            buffer.copy_(kept)
        return True

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        now = self._now()
        if not _alike(now, self._buffers):
            self._buffers = [buffer.detach().clone() for buffer in now]
        elif now:
            torch._foreach_copy_(self._buffers, now)

    def _now(self) -> list[Tensor]:
        found = (buffers.get(name) for buffers, name in self._places)
        return [value for value in found if value is not None]


def _alike(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(
        one.shape == other.shape and one.dtype == other.dtype for one, other in zip(some, others, strict=True)
    )
