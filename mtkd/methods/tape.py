"""A network of a run that several methods read, and that runs once on a batch all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.methods.base import Frozen


def in_one_pass(net: nn.Module | Tape, lq: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Images of `lq` and of `more`, which is as large and may be empty.

    A network of a combination runs on `lq` for others too, and then on `more` alone.
    """
    if isinstance(net, Tape) or not len(more):
        return net(lq), net(more) if len(more) else more
    images = net(torch.cat([lq, more]))
    return images[: len(lq)], images[len(lq) :]


class Tape:
    """A network that runs once on a batch: what it said of `lq` is played again to whoever asks later.

    Attributes:
        names: modules whose output is kept, known before the first batch.
        net: the network itself.
    """

    def __init__(self, run: Callable[..., tuple[Tensor, dict[str, Tensor]]], of: nn.Module) -> None:
        self.names: set[str] = set()
        self._run, self._of = run, of
        self.net: nn.Module = of.net if isinstance(of, Frozen) else of
        self._lq: Tensor | None = None
        self._said: tuple[Tensor, dict[str, Tensor]] | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's, for methods that follow the student's weights."""
        return self.net.parameters()

    def buffers(self) -> Iterator[Tensor]:
        """The network's."""
        return self.net.buffers()

    def autocast(self, x: Tensor) -> AbstractContextManager[object]:
        """That in which a teacher runs, for methods that run parts of it themselves."""
        assert isinstance(self._of, Frozen)
        return self._of.autocast(x)

    def start(self, lq: Tensor | None) -> None:
        """Forget the batch before; `lq` is the one to keep."""
        self._lq, self._said = lq, None

    def __call__(self, x: Tensor, answers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The image of `x`; `answers` as `Frozen.forward` takes them."""
        return self.tapped((), x, answers)[0]

    def tapped(
        self, names: Sequence[str], x: Tensor, answers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and taps of `x`, as `tapped` gives them."""
        more = () if answers is None else (answers,)
        if x is not self._lq:
            return self._run(names, x, *more)
        if self._said is None:
            self._said = self._run(sorted(self.names), x, *more)
        image, found = self._said
        if missing := [name for name in names if name not in found]:
            raise MtkdError(
                f"A combined method reads {missing[0]!r}, which its `student_modules` or `teacher_modules` do not name."
            )
        return image, {name: found[name] for name in names}
