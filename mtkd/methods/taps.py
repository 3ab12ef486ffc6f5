"""Where feature methods look: which taps of student and teacher are compared, checked before training starts.

A tap is a module's name, `body.4`, or a sum of modules, `conv_after_body + conv_first`, which is how a network's global
skip is reached that no module computes. Defaults follow each paper's rule on the network's `feature_names`, which for
every network of the catalog are the shallow map, the blocks (or groups) of the body in order, and the body's end.

A network that pads its input inside (SwinIR to whole windows, at the right and bottom) has maps larger than its lq.
Taps are cut back to the positions that the lq has, so that they can be compared with those of a network that does not
pad, at any crop size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.methods.base import Frozen, Method, tapped
from mtkd.methods.tape import Tape
from mtkd.runtime.modes import evaluating

Rule = Callable[[nn.Module], list[str]]
"""A paper's choice of taps for one network."""

TAPS = ("student_taps", "teacher_taps")
"""The options of `TapConfig`, which terms on features use."""

COMPARED = TAPS + ("teachers",)  # noqa: RUF005  `mtkd list` reads sums from the source
"""What a term on features of student and teacher uses."""

PROBE_SIZE = 16
"""Side of the lq on which taps are tried out."""


@dataclass(frozen=True, kw_only=True)
class TapConfig:
    """Options of every feature method: the taps, pairwise, or None for the method's own choice."""

    student_taps: list[str] | None = None
    teacher_taps: list[str] | None = None


class Taps:
    """The taps of one network, tried out once on a small lq.

    Args:
        net: network lq -> sr on any device, in any mode; it is left as it was.
        taps: their names.
        key: where the names come from, for messages.

    Attributes:
        names: the taps in order.
        modules: the modules that they are made of.
        shapes: their shapes (1, C, H, W) for an lq of 16 x 16.

    Raises:
        MtkdError: a name is not a module of `net` (near matches are listed), or its output is not a map (N, C, H, W).
    """

    def __init__(self, net: nn.Module | Frozen, taps: Sequence[str], *, key: str) -> None:
        self.names = tuple(taps)
        self._parts = [[part.strip() for part in tap.split("+")] for tap in taps]
        self.modules = list(dict.fromkeys(part for parts in self._parts for part in parts))
        inner = net.net if isinstance(net, Frozen) else net
        if not self.names:
            raise MtkdError(f"{key} is empty. Name at least one tap; {_recommended(inner)}.")
        maps = self._probe(inner, key)
        self.shapes = [tuple(x.shape) for x in maps]
        # Only maps at least as large as the lq are cut: for a smaller one, nothing tells padding from rounding.
        self._ratios = [(h // PROBE_SIZE, w // PROBE_SIZE) for _, _, h, w in self.shapes]

    def read(self, net: nn.Module | Frozen | Tape, lq: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Image and maps of `lq` in one pass; with gradients for a student, without for a `Frozen` teacher."""
        image, found = net.tapped(self.modules, lq) if isinstance(net, Frozen | Tape) else tapped(net, self.modules, lq)
        height, width = lq.shape[-2:]
        maps = []
        for x, (rows, columns) in zip(self._sums(found), self._ratios, strict=True):
            maps.append(x[..., : rows * height, : columns * width] if rows and columns else x)
        return image, maps

    def _sums(self, found: Mapping[str, Tensor]) -> list[Tensor]:
        return [sum((found[part] for part in rest), found[first]) for first, *rest in self._parts]

    def _probe(self, net: nn.Module, key: str) -> list[Tensor]:
        like = next(net.parameters(), torch.empty(0))
        lq = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=like.device, dtype=like.dtype)
        try:
            with torch.no_grad(), evaluating(net):
                _, found = tapped(net, self.modules, lq)
        except MtkdError as error:
            raise MtkdError(f"{key}: {error}") from error
        for name, x in found.items():
            if not isinstance(x, Tensor) or x.dim() != 4:
                shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise MtkdError(
                    f"{key}: the module {name!r} of {type(net).__name__} gives {shape}, and a tap is a map "
                    f"(N, C, H, W); {_recommended(net)}."
                )
        for tap, parts in zip(self.names, self._parts, strict=True):
            shapes = {tuple(found[part].shape) for part in parts}
            if len(shapes) > 1:
                raise MtkdError(f"{key}: the modules of the sum {tap!r} differ in shape: {sorted(shapes)}.")
        return self._sums(found)


class TapPairs:
    """The taps of a method's student and of each of its teachers, matched one to one.

    Args:
        method: the method, with student, teachers and a `TapConfig` as its options.
        rule: what it taps where the option file names nothing.
        count: how many taps the method has, None for any number.

    Attributes:
        student: taps of the student.
        teachers: taps of each teacher by name.

    Raises:
        MtkdError: a name is wrong, or the numbers of taps differ.
    """

    def __init__(self, method: Method, rule: Rule, *, count: int | None = None) -> None:
        self._method = type(method).__name__
        given: Sequence[str] | None = method.options.student_taps
        of_teachers: Sequence[str] | Mapping[str, Sequence[str]] | None = method.options.teacher_taps
        self.student = Taps(
            method.student, given if given is not None else rule(method.student), key="method.student_taps"
        )
        if isinstance(of_teachers, Mapping):
            unknown = [name for name in of_teachers if name not in method.teachers]
            if unknown:
                raise MtkdError(
                    f"method.teacher_taps names {unknown[0]!r}, and the teachers are {', '.join(method.teachers)}."
                )
        self.teachers: dict[str, Taps] = {}
        for name, teacher in method.teachers.items():
            if isinstance(of_teachers, Mapping):
                names, key = of_teachers.get(name), f"method.teacher_taps.{name}"
            else:
                names, key = of_teachers, "method.teacher_taps"
            self.teachers[name] = Taps(teacher, rule(teacher.net) if names is None else names, key=key)
        for name, taps in self.teachers.items():
            if len(taps.names) != len(self.student.names):
                raise MtkdError(
                    f"{self._method} compares taps in pairs, and the student has {len(self.student.names)} "
                    f"({', '.join(self.student.names)}), the teacher {name!r} {len(taps.names)} "
                    f"({', '.join(taps.names)}). Name as many under method.student_taps as under method.teacher_taps."
                )
        if count is not None and len(self.student.names) != count:
            raise MtkdError(
                f"{self._method} has {count} taps, and method.student_taps names {len(self.student.names)} "
                f"({', '.join(self.student.names)})."
            )

    def widths(self, teacher: str) -> list[tuple[int, int]]:
        """Channels of (student, teacher) at each pair of taps."""
        pairs = zip(self.student.shapes, self.teachers[teacher].shapes, strict=True)
        return [(own[1], other[1]) for own, other in pairs]

    @torch.no_grad()
    def check(self, term: str, loss: Callable[[Tensor, Tensor], Tensor], *, taps: Sequence[int] | None = None) -> None:
        """Try `loss` on maps shaped as the taps (all, or those counted in `taps`), so that it cannot fail later.

        Raises:
            MtkdError: the loss cannot compare a pair of taps; the text names them, their shapes and the reason.
        """
        for teacher, of_teacher in self.teachers.items():
            for i in range(len(self.student.names)) if taps is None else taps:
                try:
                    loss(torch.zeros(self.student.shapes[i]), torch.zeros(of_teacher.shapes[i]))
                except MtkdError as error:
                    raise MtkdError(
                        f"{self._method}'s term {term!r} cannot compare the student's tap {self.student.names[i]!r} "
                        f"with the tap {of_teacher.names[i]!r} of the teacher {teacher!r}: {error} Choose others by "
                        "method.student_taps and method.teacher_taps."
                    ) from error


class FeatureMethod(Method):
    """Base of the methods that compare the student's taps with those of one teacher.

    A subclass names its `rule`, calls `self.taps.check` for its terms, and reads both networks by `features`.

    Raises:
        MtkdError: there is not exactly one teacher, or taps are wrong (see `TapPairs`).
    """

    teacher_use = "network"
    gt_terms = ("pixel",)
    Config: ClassVar[Callable[..., Any]] = TapConfig
    rule: ClassVar[Rule]
    """The paper's choice of taps, a static method."""
    num_taps: ClassVar[int | None] = None
    """How many taps the method has, None for any number."""

    def setup(self) -> None:
        only_teacher(self)
        self.taps = TapPairs(self, type(self).rule, count=self.num_taps)

    def student_modules(self) -> Sequence[str]:
        return self.taps.student.modules

    def teacher_modules(self, name: str) -> Sequence[str]:
        return self.taps.teachers[name].modules

    def features(self, lq: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The student's image, the student's maps and the teacher's, one pass each; no maps where no term reads any."""
        if not self.reads_teachers:
            return self.student(lq), [], []
        (of_teacher,) = self.taps.teachers.values()
        sr, students = self.taps.student.read(self.student, lq)
        _, others = of_teacher.read(only_teacher(self), lq)
        return sr, students, others


def over_taps(loss: Callable[[Tensor, Tensor], Tensor], student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum of `loss` over pairs of maps."""
    first, *rest = (loss(s, t) for s, t in zip(student, teacher, strict=True))
    return sum(rest, first)


def only_teacher(method: Method) -> Frozen:
    """The one teacher of a method that compares features.

    Raises:
        MtkdError: there are several, or none.
    """
    if len(method.teachers) != 1:
        raise MtkdError(
            f"{type(method).__name__} compares features with those of one teacher, and {len(method.teachers)} are "
            f"declared ({', '.join(method.teachers) or 'none'}). Declare exactly one under `teachers:`."
        )
    return next(iter(method.teachers.values()))


def body_blocks(net: nn.Module) -> tuple[str, list[str], str]:
    """Shallow map, blocks of the body, body's end, from `net.feature_names`.

    Raises:
        MtkdError: the network does not say, as networks from elsewhere; the text lists its outer modules.
    """
    names = tuple(getattr(net, "feature_names", ()))
    if len(names) < 3:
        children = ", ".join(name for name, _ in net.named_children())
        raise MtkdError(
            f"{type(net).__name__} does not say what its taps are (it has no feature_names of at least three modules). "
            f"Name them under method.student_taps or method.teacher_taps; its outer modules are {children}."
        )
    return names[0], list(names[1:-1]), names[-1]


def thirds(net: nn.Module) -> list[str]:
    """The blocks with which the first, second and last third of the body end: 4, 7, 10 of 10; 1, 2, 3 of 3."""
    _, blocks, _ = body_blocks(net)
    return [blocks[math.ceil(i * len(blocks) / 3) - 1] for i in (1, 2, 3)]


def middle(net: nn.Module) -> list[str]:
    """The block with which the first half of the body ends: 8 of 16, 16 of 32."""
    _, blocks, _ = body_blocks(net)
    return [blocks[math.ceil(len(blocks) / 2) - 1]]


def deep_features(net: nn.Module) -> list[str]:
    """What the upsampler gets: the body's end plus the shallow map."""
    shallow, _, end = body_blocks(net)
    return [f"{end} + {shallow}"]


def _recommended(net: nn.Module) -> str:
    names = ", ".join(getattr(net, "feature_names", ()))
    return f"{type(net).__name__} recommends {names}" if names else f"{type(net).__name__} recommends none"
