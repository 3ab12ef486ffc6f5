"""A teacher as methods see it: a `Frozen` network; and `tapped`, by which features of any network are read."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mtkd.archs.ensemble import FusedTeacher
from mtkd.contracts import MtkdError
from mtkd.runtime.device import DTYPES
from mtkd.runtime.hidden import Hidden
from mtkd.runtime.names import closest


class Teachers(nn.ModuleDict):
    """Name -> `Frozen` teacher, in the option file's order."""

    if TYPE_CHECKING:

        def __getitem__(self, key: str) -> Frozen: ...
        def values(self) -> ValuesView[Frozen]: ...
        def items(self) -> ItemsView[str, Frozen]: ...


class Frozen(Hidden[nn.Module]):
    """A teacher: a `Hidden` network that runs under `no_grad`.

    It gets a copy of the input, so that a network which works in place (spandrel's RCAN does) cannot change the
    student's batch.

    Attributes:
        precision: "fp32", "bf16" or "fp16" to run it under an autocast of its own; None for the student's.
    """

    def __init__(self, net: nn.Module, *, precision: str | None = None) -> None:
        super().__init__(net)
        self.precision = precision

    @property
    def scale(self) -> int:
        """The network's scale."""
        return cast(int, self.net.scale)

    def autocast(self, x: Tensor) -> AbstractContextManager[object]:
        """Context in which parts of `net` called by themselves on `x` run in the teacher's `precision`."""
        if self.precision is None:
            return nullcontext()
        dtype = DTYPES.get(self.precision)
        return torch.autocast(x.device.type, dtype, enabled=dtype is not None)

    @torch.no_grad()
    def forward(self, x: Tensor, answers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The image of `x`. `answers` of members whose answers are kept go to a fused teacher; others need none."""
        with self.autocast(x):
            return self.net(x.clone(), *self._for_members(answers))

    @torch.no_grad()
    def tapped(
        self, names: Sequence[str], x: Tensor, answers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`tapped` of the frozen network, no gradients; `answers` as in `forward`."""
        with self.autocast(x):
            return tapped(self.net, names, x.clone(), *self._for_members(answers))

    def _for_members(self, answers: Mapping[str, Tensor] | None) -> tuple[Mapping[str, Tensor], ...]:
        return (answers,) if answers and isinstance(self.net, FusedTeacher) else ()


@contextmanager
def frozen_parameters(module: nn.Module) -> Iterator[None]:
    """Within the block, calls of `module` give no gradient to its parameters.

    A student term that runs through the critic belongs inside such a block: the loop makes one backward pass over
    student and critic terms together, and the critic must only ever see its own gradient.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def tapped(net: nn.Module, names: Sequence[str], *inputs: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of `net(*inputs)` and the outputs of the modules called `names`, with gradients, leaving no hook behind.

    Raises:
        MtkdError: a name is not a module of `net`, or the module did not run; near matches are listed.
    """
    feats: dict[str, Tensor] = {}
    handles = []
    try:
        for name in names:
            module = _submodule(net, name)
            handles.append(module.register_forward_hook(partial(_keep, feats, name)))
        out = net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in names if name not in feats]
    if silent:
        raise MtkdError(f"Tap {silent[0]!r} of {type(net).__name__} is a module that its forward never calls.")
    return out, {name: feats[name] for name in names}


def _keep(feats: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    feats[name] = output


def _submodule(net: nn.Module, name: str) -> nn.Module:
    modules = dict(net.named_modules())
    if name and name in modules:
        return modules[name]
    suggested = list(getattr(net, "feature_names", ()))
    near = closest(name, [*suggested, *modules])
    raise MtkdError(
        f"{type(net).__name__} has no module {name!r} to tap. Near: {', '.join(near) or 'nothing'}. "
        f"Taps it recommends: {', '.join(suggested) or 'none'}."
    )
