"""What changes in a run without an optimizer: a method's queue, running statistics of normalisations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OwnState:
    """The buffers and frozen parameters of a network in training, as they were after its last whole iteration.

    A forward pass may change them, so that an iteration which fails leaves them in between. Copies lie on the device.
    Buffers are copied after every iteration: the version counters of those that a batch normalisation writes stand
    still. Frozen parameters, which may be many, are copied when their counter has moved. What no checkpoint holds is
    left aside.
    """

    def __init__(self, net: nn.Module) -> None:
        # Where they stand, because some are replaced and not written into. Looking through the modules takes long.
        self._places = [
            (module._buffers, name)
            for module in net.modules()
            for name, value in module._buffers.items()
            if value is not None and name not in module._non_persistent_buffers_set
        ]
        self._buffers: list[Tensor | None] = [None] * len(self._places)
        frozen = (parameter for parameter in net.parameters() if not parameter.requires_grad)
        # Tensors made under inference_mode have no counter, and nothing writes into them.
        self._frozen = [parameter for parameter in frozen if not parameter.is_inference()]
        self._versions = [parameter._version for parameter in self._frozen]
        self._values = [parameter.detach().clone() for parameter in self._frozen]
        self._copy_buffers()

    def keep(self) -> None:
        """An iteration is complete: its values are those to go back to."""
        self._copy_buffers()
        for number, parameter in enumerate(self._frozen):
            if parameter._version != self._versions[number]:
                self._values[number] = parameter.detach().clone()
                self._versions[number] = parameter._version

    def go_back(self) -> None:
        """Put the values of the last `keep` in the place of those of now."""
        for (buffers, name), value in zip(self._places, self._buffers, strict=True):
            buffers[name] = value
        for parameter, value in zip(self._frozen, self._values, strict=True):
            parameter.data = value

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        into, of = [], []
        for number, (buffers, name) in enumerate(self._places):
            now, kept = buffers.get(name), self._buffers[number]
            if now is None:
                self._buffers[number] = None
            elif kept is None or kept.shape != now.shape or kept.dtype != now.dtype or kept.device != now.device:
                self._buffers[number] = now.detach().clone()
            else:
                into.append(kept)
                of.append(now)
        if of:
            torch._foreach_copy_(into, of)
