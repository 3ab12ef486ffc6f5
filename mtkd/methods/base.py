"""What every distillation method is made of: `Method` and its `Term`s; teachers and taps are those of `frozen`.

A method turns a batch into raw loss terms. The run logs, saves, moves devices, weighs terms: once for all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mtkd import catalog
from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step, Task
from mtkd.methods.asked import TEACHERS, unread
from mtkd.methods.frozen import Frozen, Teachers, frozen_parameters, tapped
from mtkd.runtime.given import errors_of

__all__ = ["Frozen", "Method", "MethodConfig", "NoOptions", "Teachers", "Term", "frozen_parameters", "tapped"]


@dataclass(frozen=True)
class Term:
    """One loss value of a method, configured in an option file as `train.NAME_opt`.

    Attributes:
        about: one line for `mtkd list methods` and docs.
        weight: default `loss_weight`; None means the term is off unless the option file names it.
        loss: default loss of the catalog when the term compares two images (its `type` may then be any catalog loss);
            None when the formula belongs to the method.
        options: the term's own options with their defaults, besides `loss_weight` and the loss's arguments.
        critic: the term trains the critic, not the student.
        uses: options of the `method:` section, and "teachers", that are read for this term. What only terms read that
            are off has no effect, and the user hears of it. An option that no term names is read always.
        partial: the term reaches the network in training only up to its taps. A run needs another one beside it.
    """

    about: str
    weight: float | None = 1.0
    loss: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    critic: bool = False
    uses: tuple[str, ...] = ()
    partial: bool = False


@dataclass(frozen=True)
class MethodConfig:
    """A method's share of an option file.

    Attributes:
        terms: active term -> its options without `loss_weight` (`type` and the loss's arguments for image terms).
            A term that is absent is off. None means every term whose default weight is not None, with its defaults.
        options: the `method:` section, arguments of the method's `Config`.
        teacher_precision: that of `Frozen`.
    """

    terms: Mapping[str, Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher_precision: str | None = None


@dataclass(frozen=True)
class NoOptions:
    """`Config` of a method that has no options beside its terms."""


class Method(nn.Module):
    """Base of all methods. A subclass declares `terms` and writes `forward` (and `setup`); the rest has a default.

    Args:
        student: network in training, lq -> sr.
        teachers: name -> network, in the option file's order. Empty when targets come from a store.
        task: scale, number of training images, number of iterations.
        cfg: the active terms and the method's own options.
    """

    terms: ClassVar[Mapping[str, Term]] = {}
    teacher_use: ClassVar[Literal["none", "image", "network"]] = "none"
    """What the method needs of teachers: nothing, one image per lq (may come from a store), or the networks."""
    answers_suffice: ClassVar[bool] = False
    """With `teacher_use = "network"`: it reads only the teachers' images of lq, so that they may be kept answers."""
    gt_terms: ClassVar[tuple[str, ...] | None] = None
    """The terms that read `batch.gt`; with all of them off the method trains without gt. None: it always needs gt."""
    takes_luma: ClassVar[bool] = False
    """It trains students of Y, `color: y`: it and its teachers are indifferent to the channels of images."""
    alone: ClassVar[str] = ""
    """Why the method cannot be one of several in a run; empty where it can."""
    combines: ClassVar[Mapping[str, type[Method]]] = {}
    """The methods of a combination, by name."""
    paper: ClassVar[str] = ""
    """Where the method comes from: authors, venue, arXiv number."""
    Config: ClassVar[Callable[..., Any]] = NoOptions
    """Keyword-only dataclass of the `method:` section."""

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        task: Task,
        cfg: MethodConfig | None = None,
    ) -> None:
        super().__init__()
        cfg = cfg or MethodConfig()
        self.student = student
        precision = cfg.teacher_precision
        self.teachers = Teachers({name: Frozen(net, precision=precision) for name, net in teachers.items()})
        self.task = task
        self.options = self.Config(**cfg.options)
        active = cfg.terms
        if active is None:
            active = {name: {} for name, term in self.terms.items() if term.weight is not None}
        unknown = [name for name in active if name not in self.terms]
        if unknown:
            raise MtkdError(f"{type(self).__name__} has no term {unknown[0]!r}; its terms are {', '.join(self.terms)}.")
        asked = Asked(options=self.options, terms=active, scale=task.scale, teachers=tuple(teachers))
        for _, why in self.refuses(asked):
            raise MtkdError(why)
        self.active = tuple(name for name in self.terms if name in active)
        readers = [name for name, term in self.terms.items() if TEACHERS in term.uses]
        self.reads_teachers = not readers or any(name in self.active for name in readers)
        self.criteria = nn.ModuleDict()
        self.term_options: dict[str, dict[str, Any]] = {}
        self._from_outside: dict[str, str] = {}
        for name in self.active:
            term, given = self.terms[name], dict(active[name])
            self.term_options[name] = {key: given.pop(key, value) for key, value in term.options.items()}
            if term.loss is not None:
                kind = given.pop("type", term.loss)
                with errors_of(f"train.{name}_opt: {kind} cannot be built"):
                    self.criteria[name] = catalog.get("loss", kind)(**given)
                if kind not in catalog.LOSSES:
                    self._from_outside[name] = kind
            elif given:
                raise MtkdError(f"Term {name!r} of {type(self).__name__} has no option {next(iter(given))!r}.")
        self.setup()

    def setup(self) -> None:
        """Check and build what the method needs besides its terms; called last in construction.

        `self.student`, `self.teachers`, `self.task`, `self.options`, `self.active`, `self.criteria` and
        `self.term_options` are there. Modules that are set here train along, and their initial weights are drawn here.
        """

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        """What no run can do, by key. Reading an option file reports all of it; construction raises the first."""
        yield from ()

    @classmethod
    def ignores(cls, asked: Asked) -> Iterator[Remark]:
        """What changes nothing in such a run, by key; the user is told. Values that are the defaults are no news."""
        yield from unread(cls.terms, cls.Config, asked)

    @classmethod
    def takes_several_teachers(cls, options: Mapping[str, Any]) -> bool:
        """Whether a method with `teacher_use = "image"` makes one image of several teachers itself.

        `options` is the `method:` section. Where this is False, several teachers need `fusion`.
        """
        return False

    @classmethod
    def needs(
        cls, options: Mapping[str, Any], declared: Sequence[str], *, fusion: bool, stored: bool
    ) -> tuple[list[str], list[str]]:
        """Which of the `declared` teachers it gets as they are, and of which it gets the one image that fusion makes.

        `stored`: the images come from a target store.
        """
        if stored:
            return [], []
        return ([], list(declared)) if fusion else (list(declared), [])

    @classmethod
    def imitated(cls, options: Mapping[str, Any], declared: Sequence[str]) -> list[str]:
        """Which of the `declared` teachers make the image that a target store keeps."""
        return list(declared)

    def student_modules(self) -> Sequence[str]:
        """Modules of the student whose output `forward` reads, for a combination to keep."""
        return ()

    def teacher_modules(self, name: str) -> Sequence[str]:
        """The same of the teacher `name`."""
        return ()

    def forward(self, batch: Batch, step: int) -> Step:
        """Raw loss terms of one batch; `step` counts from 0. The names in `losses` and `critic` are `self.active`."""
        raise NotImplementedError

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Optimizer name -> parameters. Every trainable parameter belongs to exactly one."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def deployable(self, student: nn.Module) -> nn.Module:
        """The network a user deploys, made from `student` (the trained one or its EMA copy)."""
        return student

    def deployable_arch(self, arch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Catalog type and arguments, {"type", "args"}, of `deployable(student)`; `arch` is the student's."""
        return arch

    def predictor(self, student: nn.Module) -> nn.Module:
        """The lq -> sr network that validation runs; `student` is the trained one or its EMA copy."""
        return self.deployable(student)

    def metadata(self) -> dict[str, Any]:
        """Plain facts stored with the student's weights, for `check_metadata` (the order of members)."""
        return {}

    def check_metadata(self, facts: Mapping[str, Any]) -> None:
        """Refuse weights that were trained for something else; `facts` is what their file stores, {} for foreign ones.

        Raises:
            MtkdError: what differs, and what to do.
        """

    def target(self, batch: Batch) -> Tensor:
        """The teacher image of `batch`, shaped as gt: the stored one, or the single teacher's answer, no gradient."""
        if batch.target is not None:
            return batch.target
        self.require_teachers(exactly=1)
        return self.answer(next(iter(self.teachers)), batch)

    def answer(self, name: str, batch: Batch) -> Tensor:
        """The image of the teacher `name`, shaped as gt, no gradient: the kept one, or what it makes of `batch.lq`."""
        kept = batch.answers or {}
        return kept[name] if name in kept else self.teachers[name](batch.lq, batch.answers)

    def require_teachers(self, *, exactly: int | None = None, at_least: int = 1) -> list[Frozen]:
        """The teachers in order.

        Raises:
            MtkdError: their number is not what the method can use.
        """
        found, name = list(self.teachers.values()), type(self).__name__
        if exactly is not None and len(found) != exactly:
            raise MtkdError(
                f"{name} distils from {exactly} teacher image, and {len(found)} teachers are declared "
                f"({', '.join(self.teachers) or 'none'}). Declare {exactly} under `teachers:`, or say how several "
                "become one: `fusion: mean`, or `fusion: {network: {type: DCTSwin, ...}, pretrain: FILE}`."
            )
        if len(found) < at_least:
            raise MtkdError(f"{name} needs at least {at_least} networks under `teachers:`, found {len(found)}.")
        return found

    def image_losses(self, sr: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the active image terms named in `targets`."""
        return {name: self._image_term(name, sr, target) for name, target in targets.items() if name in self.active}

    def _image_term(self, name: str, sr: Tensor, target: Tensor) -> Tensor:
        if (kind := self._from_outside.get(name)) is None:
            return self.criteria[name](sr, target)
        with errors_of(f"train.{name}_opt: {kind} failed"):
            value = self.criteria[name](sr, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise MtkdError(f"train.{name}_opt: {kind} gives {found}, and a loss is one number; take its mean.")
        return value.reshape(())
