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


def bicubic_row(scale: int) -> Subject:
    """Bicubic enlargement as a network of a table."""
    return Subject("bicubic", Bicubic(scale), None, None, 0, None)


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
        self._fusions: dict[str, tuple[FusedTeacher, str]] = {}

    def behind(self, fused: FusedTeacher) -> FusedTeacher:
        """`fused`, on the answers that the teachers of its names have given."""
        return FusedTeacher(Ensemble({name: self._memoized[name] for name in fused.names}), fused.fusion).eval()

    def add_fusion(self, fused: FusedTeacher, run: str) -> None:
        """A fusion with its weights, once for all runs that declare it; the mean of all teachers is there anyway."""
        if not isinstance(fused.fusion, MeanFusion):
            self._fusions.setdefault(str(fused.fusion.origin), (fused, run))
        elif fused.names != tuple(self.members):
            self._fusions.setdefault(f"mean of {', '.join(fused.names)}", (fused, run))

    def rows(self, *, several: bool) -> Iterator[Subject]:
        """Each teacher, their mean and their fused images; `several`: there are other teachers in the table."""
        of = f" of {self.run}" if several else ""
        alone = len(self.members) == 1 and not self._fusions
        for name, net in self.members.items():
            subject = describe(f"teacher {name}{of}", net.eval(), weights=_source(net))
            yield subject if alone else replace(subject, net=self._memoized[name], bare=net)
        if len(self.members) > 1:
            yield self._row(f"mean of the teachers{of}", MeanFusion(len(self.members)), tuple(self.members))
        for key, (fused, run) in self._fusions.items():
            of = f" of {run}" if several or len(self._fusions) > 1 else ""
            mean = isinstance(fused.fusion, MeanFusion)
            name = key if mean else f"fused teachers ({type(fused.fusion).__name__})"
            yield self._row(f"{name}{of}", fused.fusion, fused.names)

    def _row(self, name: str, fusion: nn.Module, names: tuple[str, ...]) -> Subject:
        # The cost is that of the bare networks, which answer every time.
        bare = FusedTeacher(Ensemble({member: self.members[member] for member in names}), fusion).eval()
        subject = describe(name, bare, weights=_source(fusion), origin=_origin(fusion))
        return replace(subject, net=self.behind(bare), bare=bare)


def _source(net: nn.Module) -> str | None:
    origin = _origin(net)
    return origin.source if origin else None


def _origin(net: nn.Module) -> zoo.Origin | None:
    return getattr(net, "origin", None)
