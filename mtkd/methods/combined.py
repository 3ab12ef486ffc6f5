"""Several methods in one run, `model_type: MTKD + FAKD`: one student, one forward pass of it, the terms of all.

The class is made of the methods' classes, so that reading, building and training see one more method and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mtkd import catalog
from mtkd.archs.ensemble import FusedTeacher
from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step, Task
from mtkd.methods.base import Frozen, Method, MethodConfig, Teachers, Term, tapped
from mtkd.methods.tape import Tape

SHARED = "pixel"
"""The term that all methods have in common, sr against gt: computed once, its weight the sum of the methods'."""


class Combined(Method):
    """The sum of the losses of several methods; `combined("MTKD + FAKD")` makes such a class.

    A term is called by its method, `FAKD.spatial`; only `pixel`, sr against gt, is common to all and has no prefix. Its
    default weight is the sum of theirs, so that the loss of the combination is the sum of the methods' own. Options of
    a method stand in a section of its name, `method: {FAKD: {student_taps: [...]}}`, where `teachers: [NAME, ...]`
    says which teachers it learns from; without it, all of them.

    Student and teachers run once on a batch, whatever number of methods reads them: see `Tape`. What a method trains
    beside the student is saved as `parts.NAME`.
    """

    def __init__(
        self, student: nn.Module, teachers: Mapping[str, nn.Module], task: Task, cfg: MethodConfig | None = None
    ) -> None:
        nn.Module.__init__(self)
        cfg = cfg or MethodConfig()
        given = cfg.terms
        if given is None:
            given = {name: {} for name, term in self.terms.items() if term.weight is not None}
        if unknown := [name for name in given if name not in self.terms]:
            raise MtkdError(f"{type(self).__name__} has no term {unknown[0]!r}; its terms are {', '.join(self.terms)}.")
        self.student, self.task, self.options = student, task, self.Config(**cfg.options)
        self.active = tuple(name for name in self.terms if name in given)
        self.teachers = Teachers({name: Frozen(net, precision=cfg.teacher_precision) for name, net in teachers.items()})
        given_to = self._given(cfg.options, teachers)
        self._asks = {name for name in self.combines if "teachers" in cfg.options.get(name, {})}
        self.parts = nn.ModuleDict()
        self._tapes: dict[str, Tape] = {}
        self._student_tape = Tape(functools.partial(tapped, student), student)
        for name, terms in self._shares(given).items():
            options = _own(cfg.options.get(name, {}))
            nets = {key: teachers[key] for key in given_to[name]}
            try:
                part = self.combines[name](student, nets, task, replace(cfg, terms=terms, options=options))
            except MtkdError as error:
                raise MtkdError(f"{name}, whose options stand under method.{name}: {error}") from error
            self._share(part)
            self.parts[name] = part

    def _shares(self, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Method -> its own terms, `pixel` with the first that has it; without those of which nothing is active."""
        shares = {
            name: {key: given[f"{name}.{key}"] for key in cls.terms if f"{name}.{key}" in given}
            for name, cls in self.combines.items()
        }
        if SHARED in given:
            first = next(name for name, cls in self.combines.items() if SHARED in cls.terms)
            shares[first] = {SHARED: given[SHARED], **shares[first]}
        return {name: share for name, share in shares.items() if share}

    def _given(self, options: Mapping[str, Any], teachers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        """Method -> its share of `teachers`, among which is at most one fused one."""
        fused = {name: net for name, net in teachers.items() if isinstance(net, FusedTeacher)}
        members = [name for net in fused.values() for name in net.names]
        declared = list(dict.fromkeys([*(name for name in teachers if name not in fused), *members]))
        given = {}
        for name, (names, one) in self.serving(options, declared, fusion=bool(fused), stored=False).items():
            part = self.combines[name]
            several = len(names) > 1 and not one and not part.takes_several_teachers(_own(options.get(name, {})))
            # Where nothing makes one image of several teachers, the store holds it.
            given[name] = [*fused] if one else [] if several and part.teacher_use == "image" else names
        return given

    def _share(self, part: Method) -> None:
        """Give `part` the tapes in the place of the networks, which it then neither saves nor counts as its own."""
        self._student_tape.names.update(part.student_modules())
        names = {name: part.teacher_modules(name) for name in part.teachers}
        del part.student, part.teachers
        tapes = {}
        for name, modules in names.items():
            tapes[name] = self._tapes.setdefault(name, Tape(self.teachers[name].tapped, self.teachers[name]))
            tapes[name].names.update(modules)
        # No modules of the part: they are the run's.
        part.__dict__["student"], part.__dict__["teachers"] = self._student_tape, tapes

    def forward(self, batch: Batch, step: int) -> Step:
        tapes = [self._student_tape, *self._tapes.values()]
        for tape in tapes:
            tape.start(batch.lq)
        try:
            outs = {name: self._run(name, batch, step) for name in self.parts}
        finally:
            for tape in tapes:
                tape.start(None)
        first, *_ = outs.values()
        losses = {_term(name, key): loss for name, out in outs.items() for key, loss in out.losses.items()}
        return Step(
            first.sr,
            {name: losses[name] for name in self.active if name in losses},
            critic={f"{name}.{key}": loss for name, out in outs.items() for key, loss in out.critic.items()},
            logs={f"{name}.{key}": value for name, out in outs.items() for key, value in out.logs.items()},
        )

    def _run(self, name: str, batch: Batch, step: int) -> Step:
        # A method that names its teachers asks them, whatever the store holds.
        return self.parts[name](batch._replace(target=None) if name in self._asks else batch, step)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"main": [p for p in self.student.parameters() if p.requires_grad]}
        for part in self.parts.values():
            assert isinstance(part, Method)
            for name, parameters in part.param_groups().items():
                groups.setdefault(name, []).extend(parameters)
        return groups

    @classmethod
    def serving(
        cls, options: Mapping[str, Any], declared: Sequence[str], *, fusion: bool, stored: bool
    ) -> dict[str, tuple[list[str], bool]]:
        """Method -> the teachers it learns from, and whether `fusion` makes one image of them.

        A method that imitates an image takes it from the store, unless it names its teachers; several of those are
        fused where there is `fusion`. Methods that read networks get the networks.
        """
        found = {}
        for name, part in cls.combines.items():
            own = options.get(name, {})
            chosen = list(own.get("teachers", declared))
            if part.teacher_use == "none" or (part.teacher_use == "image" and stored and "teachers" not in own):
                chosen = []
            found[name] = chosen, part.teacher_use == "image" and fusion and len(chosen) > 1
        return found

    @classmethod
    def needs(
        cls, options: Mapping[str, Any], declared: Sequence[str], *, fusion: bool, stored: bool
    ) -> tuple[list[str], list[str]]:
        serving = cls.serving(options, declared, fusion=fusion, stored=stored).values()
        alone = {name for names, fused in serving if not fused for name in names}
        ensembles = {tuple(names): names for names, fused in serving if fused}
        if len(ensembles) > 1:
            raise MtkdError(
                "One `fusion` makes one image, and methods ask for it of different teachers: "
                f"{' and '.join(', '.join(names) for names in ensembles)}. Name the same under `method.NAME.teachers`."
            )
        return [name for name in declared if name in alone], next(iter(ensembles.values()), [])

    @classmethod
    def imitated(cls, options: Mapping[str, Any], declared: Sequence[str]) -> list[str]:
        parts = [name for name, part in cls.combines.items() if part.teacher_use == "image"]
        # The store serves the methods that leave the choice to it.
        parts.sort(key=lambda name: "teachers" in options.get(name, {}))
        return list(options.get(parts[0], {}).get("teachers", declared)) if parts else list(declared)

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        for name, part, own in cls._asked_of_each(asked):
            yield from (_renamed(name, remark) for remark in part.refuses(own))

    @classmethod
    def ignores(cls, asked: Asked) -> Iterator[Remark]:
        for name, part, own in cls._asked_of_each(asked):
            if set(own.terms) <= {SHARED}:
                yield ("model_type",), f"names {name}, of which no term but pixel_opt is active: it changes nothing."
            else:
                yield from (_renamed(name, remark) for remark in part.ignores(own))

    @classmethod
    def _asked_of_each(cls, asked: Asked) -> Iterator[tuple[str, type[Method], Asked]]:
        options: Mapping[str, Any] = asked.options.given
        for name, part in cls.combines.items():
            own = options.get(name, {})
            terms = {key: value for key, value in asked.terms.items() if key == SHARED and SHARED in part.terms}
            terms |= {key.partition(".")[2]: value for key, value in asked.terms.items() if key.startswith(f"{name}.")}
            names, fused = cls.serving(
                options, asked.declared, fusion="fusion" in asked.sources, stored="target_store" in asked.sources
            )[name]
            teachers = ["fused"] if fused else names
            sources = asked.sources if part.teacher_use != "none" else ()
            yield (
                name,
                part,
                replace(
                    asked, options=part.Config(**_own(own)), terms=terms, teachers=tuple(teachers), sources=sources
                ),
            )


class PartOptions:
    """`method:` of a combination: a section for each method. The reader checks each against its own `Config`."""

    def __init__(self, **given: Mapping[str, Any]) -> None:
        self.given = given


@functools.cache
def combined(model_type: str) -> type[Method]:
    """The class of `A + B + ...`; of one name, that method itself.

    Raises:
        MtkdError: a name is unknown or there twice, or a method cannot be combined; the text says why.
    """
    names = [name.strip() for name in model_type.split("+")]
    parts: dict[str, type[Method]] = {}
    for name in names:
        part = catalog.get("method", name)
        short = name.rpartition(":")[2]
        if short in parts:
            raise MtkdError(f"model_type names {short} twice.")
        if len(names) > 1 and (why := _why_alone(part)):
            can = [one for one in catalog.METHODS if not _why_alone(catalog.get("method", one))]
            raise MtkdError(f"{name} cannot be combined with other methods: {why}. These can: {', '.join(can)}.")
        parts[short] = part
    if len(parts) == 1:
        return part
    weights = [cls.terms[SHARED].weight for cls in parts.values() if SHARED in cls.terms]
    given = [weight for weight in weights if weight is not None]
    terms: dict[str, Term] = {}
    if weights:
        shared = next(cls.terms[SHARED] for cls in parts.values() if SHARED in cls.terms)
        terms[SHARED] = replace(shared, weight=sum(given) if given else None)
    for name, cls in parts.items():
        terms |= {f"{name}.{key}": term for key, term in cls.terms.items() if key != SHARED}
    uses = {cls.teacher_use for cls in parts.values()}
    members: dict[str, Any] = {
        "combines": parts,
        "terms": terms,
        "teacher_use": "network" if "network" in uses else "image" if "image" in uses else "none",
        "gt_terms": _gt_terms(parts),
        "takes_several_teachers": classmethod(lambda cls, options: True),  # the parts say what they get
        "paper": "; ".join(cls.paper for cls in parts.values()),
        "Config": PartOptions,
        "__doc__": f"The sum of the losses of {' and '.join(parts)}.",
        "__module__": __name__,
    }
    return type(" + ".join(parts), (Combined,), members)


def _gt_terms(parts: Mapping[str, type[Method]]) -> tuple[str, ...] | None:
    """The terms that read gt, by their names in the combination; None where a method always needs gt."""
    found: dict[str, None] = {}
    for name, cls in parts.items():
        if cls.gt_terms is None:
            return None
        found |= {_term(name, key): None for key in cls.gt_terms}
    return tuple(found)


def _why_alone(cls: type[Method]) -> str:
    if cls.alone:
        return cls.alone
    for name in ("predictor", "deployable", "deployable_arch", "metadata", "check_metadata"):
        if getattr(cls, name) is not getattr(Method, name):
            return "it deploys another network than the student"
    if SHARED in cls.terms and cls.terms[SHARED].about != "sr against gt":
        return "its pixel term is another one"
    return ""


def _own(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "teachers"}


def _term(part: str, key: str) -> str:
    return key if key == SHARED else f"{part}.{key}"


def _renamed(part: str, remark: Remark) -> Remark:
    (section, *rest), why = remark
    if section == "method":
        rest = [part, *rest]
    elif section == "train" and rest and rest[0] != f"{SHARED}_opt":
        rest = [f"{part}.{rest[0]}", *rest[1:]]
    return (section, *rest), f"{why} ({part})"
