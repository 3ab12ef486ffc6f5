"""Rows beside a student in a table: bicubic enlargement, and its teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from mtkd import zoo
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.data.resize import imresize
from mtkd.inference.results import Subject, describe
from mtkd.runtime.memory import available_memory


class Bicubic(nn.Module):
    """MATLAB's bicubic enlargement, the first row of tables: lq (N, C, h, w), floating point, -> sr."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h * scale, w * scale), not clamped."""
        return imresize(lq, self.scale)


class Memoized(nn.Module):
    """A network that computes each image once: a table needs each teacher alone, in the mean and in the fused image.

    Args:
        net: lq -> sr, with its `scale`; put in eval mode.
        room: bytes of main memory for kept results; what does not fit is computed again.
    """

    def __init__(self, net: nn.Module, *, room: int) -> None:
        super().__init__()
        self.net = net.eval()
        self.scale = net.scale
        self.room = room
        self._answers: dict[bytes, Tensor] = {}

    def forward(self, lq: Tensor) -> Tensor:
        """`net(lq)`, computed or from memory."""
        pixels = lq.cpu().numpy()
        key = hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes()).digest()
        if key in self._answers:
            return self._answers[key].to(lq.device)
        sr = self.net(lq)
        if sum(known.nbytes for known in self._answers.values()) + sr.nbytes <= self.room:
            self._answers[key] = sr.detach().cpu()
        return sr

    def forget(self) -> None:
        """Free the memory of all results."""
        self._answers.clear()


class Teachers:
    """Teachers that runs declare, each computing an image once for all rows, and their fusions."""

    def __init__(self, members: dict[str, nn.Module], run: str) -> None:
        self.members, self.run = members, run
        room = available_memory() // 4 // len(members)
        self._memoized = {name: Memoized(net, room=room) for name, net in members.items()}
        self._fusions: dict[str, tuple[nn.Module, str]] = {}

    def behind(self, fusion: nn.Module) -> FusedTeacher:
        """The image that `fusion` makes of the teachers'."""
        return FusedTeacher(Ensemble(self._memoized), fusion).eval()

    def add_fusion(self, fusion: nn.Module, run: str) -> None:
        """A fusion network with its weights, once for all runs that declare it."""
        self._fusions.setdefault(str(fusion.origin), (fusion, run))

    def rows(self, *, several: bool) -> Iterator[Subject]:
        """Each teacher, their mean and their fused images; `several`: there are other teachers in the table."""
        of = f" of {self.run}" if several else ""
        alone = len(self.members) == 1 and not self._fusions
        for name, net in self.members.items():
            subject = describe(f"teacher {name}{of}", net.eval(), weights=_source(net))
            yield subject if alone else replace(subject, net=self._memoized[name])
        if len(self.members) > 1:
            mean = MeanFusion(len(self.members))
            # Count the cost of the bare networks, not of the memoized ones.
            subject = describe(f"mean of the teachers{of}", FusedTeacher(Ensemble(self.members), mean))
            yield replace(subject, net=self.behind(mean))
        for fusion, run in self._fusions.values():
            of = f" of {run}" if several or len(self._fusions) > 1 else ""
            subject = describe(
                f"fused teachers ({type(fusion).__name__}){of}",
                FusedTeacher(Ensemble(self.members), fusion).eval(),
                weights=_source(fusion),
                origin=_origin(fusion),
            )
            yield replace(subject, net=self.behind(fusion))


def _source(net: nn.Module) -> str | None:
    origin = _origin(net)
    return origin.source if origin else None


def _origin(net: nn.Module) -> zoo.Origin | None:
    return getattr(net, "origin", None)
