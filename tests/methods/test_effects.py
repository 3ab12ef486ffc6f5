"""No option is silent: each changes the loss, is refused, or the method says that it does nothing.

Of every option of every method another value is tried, found from its type; OTHERS names one where the type tells none.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from mtkd import catalog
from mtkd.contracts import Asked, MtkdError
from mtkd.methods.base import Method, MethodConfig
from tests.methods.setups import SETUPS, TASK, batch, wake

METHODS = list(catalog.METHODS)

OTHERS: dict[tuple[str, str], dict[str, Any]] = {
    ("AT", "student_taps"): {"student_taps": ["body.0", "body.0", "body.0"]},
    ("AT", "teacher_taps"): {"teacher_taps": ["body.0", "body.0", "body.0"]},
    ("SRKD", "student_taps"): {"student_taps": ["body.0", "body.0", "body.0"]},
    ("SRKD", "teacher_taps"): {"teacher_taps": ["body.0", "body.0", "body.0"]},
    ("FAKD", "student_taps"): {"student_taps": ["body.0", "body.0", "body.0"]},
    ("FAKD", "teacher_taps"): {"teacher_taps": ["body.0", "body.0", "body.0"]},
    ("PISR", "student_taps"): {"student_taps": ["mapping.0"]},
    ("PISR", "teacher_taps"): {"teacher_taps": ["mapping.0"]},
    ("CSD", "width"): {"width": 0.75},
    ("CSD", "negatives"): {"negatives": 1},
    ("CRD", "positions"): {"positions": 19},
    ("DCKD", "refresh"): {"refresh": (5,)},
    ("RKD", "angle_vectors"): {"angle_vectors": 4},
    ("DUKD", "consistency"): {"consistency": 0.9},
    ("OnlineTeacher", "tail"): {"tail": "conv_last"},
    ("OnlineTeacher", "margin"): {"margin": 0.5},
    ("OnlineTeacher", "num_block"): {"num_block": 3},
    ("SRKD", "power"): {"power": 3},
}
"""A value to try where the type of the option tells none, or where the setup has it already."""

DATA = {("CSD", "vgg"), ("DCKD", "vqgan"), ("OutputKD", "several")}
"""Options that ask for another file, or for other teachers, than the setup has; tests of their own try them."""


MOVING = {("DCKD", "ema_decay"), ("DCKD", "history_decay"), ("DCKD", "refresh")}
"""Options that count once the student's weights have changed, which the two steps here do not do; tests/methods of the
method itself try them."""


def options_of(name: str) -> list[str]:
    config = catalog.get("method", name).Config
    return [field.name for field in dataclasses.fields(config)]


def other(name: str, option: str) -> dict[str, Any]:
    if (name, option) in OTHERS:
        return OTHERS[name, option]
    if option in ("student_taps", "teacher_taps"):
        return {option: ["conv_first"]}
    config = catalog.get("method", name).Config
    now = SETUPS[name].options.get(option, next(f.default for f in dataclasses.fields(config) if f.name == option))
    return {option: other_value(now, typing.get_type_hints(config)[option])}


def other_value(now: Any, hint: Any) -> Any:
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return now + 1
    if isinstance(now, float):
        return now / 2 + 0.01
    choices = typing.get_args(hint)
    assert isinstance(now, str) and now in choices, f"say another value in OTHERS: {now!r} of {hint}"
    return next(choice for choice in choices if choice != now)


_VALUES: dict[str, dict[str, float]] = {}


def values(name: str, terms: Mapping[str, Any], options: Mapping[str, Any], teachers_seed: int = 0) -> dict[str, float]:
    """`_values`, remembered: most cases are compared with the same run."""
    key = repr((name, terms, options, teachers_seed))
    if key not in _VALUES:
        _VALUES[key] = _values(name, terms, options, teachers_seed)
    return _VALUES[key]


def _values(name: str, terms: Mapping[str, Any], options: Mapping[str, Any], teachers_seed: int) -> dict[str, float]:
    """The loss of two steps, so that what is kept from one to the next counts too."""
    setup, cls = SETUPS[name], catalog.get("method", name)
    torch.manual_seed(0)
    student = setup.student()
    torch.manual_seed(100 + teachers_seed)
    teachers = setup.teachers()
    torch.manual_seed(1)
    method: Method = cls(student, teachers, TASK, MethodConfig(terms=terms, options=options))
    wake(method.student)
    found: dict[str, float] = {}
    gradients: list[nn.Parameter] = [p for p in method.parameters() if p.requires_grad]
    for step in range(2):
        torch.manual_seed(7 + step)
        out = method.train()(batch(seed=step), step)
        found |= {f"{term}.{step}": value.item() for term, value in {**out.losses, **out.critic}.items()}
        (sum(out.losses.values()) + sum(out.critic.values())).backward()
    found["gradient"] = sum(p.grad.double().abs().sum().item() for p in gradients if p.grad is not None)
    return found


def active(name: str) -> dict[str, Any]:
    given = SETUPS[name].terms
    return dict(given) if given is not None else {term: {} for term in catalog.get("method", name).terms}


def said(name: str, terms: Mapping[str, Any], options: Mapping[str, Any], sources: tuple[str, ...]) -> list[str]:
    cls = catalog.get("method", name)
    names = tuple(SETUPS[name].teachers())
    asked = Asked(options=cls.Config(**options), terms=terms, scale=TASK.scale, teachers=names, sources=sources)
    return [".".join(key) for key, _ in cls.ignores(asked)]


def without(name: str, option: str) -> dict[str, Any]:
    """The terms that do not use `option`, where they can stand alone."""
    cls = catalog.get("method", name)
    left = {term: args for term, args in active(name).items() if option not in cls.terms[term].uses}
    asked = Asked(
        options=cls.Config(**SETUPS[name].options),
        terms=left,
        scale=TASK.scale,
        teachers=tuple(SETUPS[name].teachers()),
    )
    if list(cls.refuses(asked)):
        left = {term: left[term] for term in list(left)[:1]}
    return left if any(not cls.terms[term].critic for term in left) else {}


CASES = [(name, option) for name in METHODS for option in options_of(name)]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_an_option_changes_the_loss(name: str, option: str) -> None:
    if (name, option) in DATA | MOVING:
        return
    options = {**SETUPS[name].options, **other(name, option)}
    assert values(name, active(name), options) != values(name, active(name), SETUPS[name].options), (
        f"method.{option} of {name} changes no term: say so in `ignores`, refuse it in `refuses`, or remove it"
    )


@pytest.mark.parametrize(("name", "option"), CASES)
def test_an_option_whose_terms_are_off_is_reported(name: str, option: str) -> None:
    cls = catalog.get("method", name)
    users = [term for term in cls.terms if option in cls.terms[term].uses]
    terms = without(name, option)
    if (name, option) in DATA or not users or not terms:
        return
    options = {**SETUPS[name].options, **other(name, option)}
    before = values(name, terms, SETUPS[name].options)
    try:
        changed = values(name, terms, options) != before
    except MtkdError:  # it does not fit the networks, which training tells
        return
    assert not changed, f"a term of {name} reads method.{option} and does not name it in `uses`"
    assert f"method.{option}" in said(name, terms, options, ())


@pytest.mark.parametrize("name", [name for name in METHODS if catalog.get("method", name).teacher_use != "none"])
def test_teachers_that_no_term_reads_are_reported(name: str) -> None:
    cls = catalog.get("method", name)
    for terms in terms_alone(name):
        changed = values(name, terms, SETUPS[name].options) != values(name, terms, SETUPS[name].options, 1)
        reported = "teachers" in said(name, terms, SETUPS[name].options, ("teachers",))
        assert changed != reported, f"{cls.__name__} with {', '.join(terms)}: `uses` of its terms must name teachers"


def terms_alone(name: str) -> Iterator[dict[str, Any]]:
    cls = catalog.get("method", name)
    for term, args in active(name).items():
        options = cls.Config(**SETUPS[name].options)
        asked = Asked(options=options, terms={term: args}, scale=TASK.scale, teachers=tuple(SETUPS[name].teachers()))
        if not cls.terms[term].critic and not list(cls.refuses(asked)):
            yield {term: args}
    yield active(name)


@pytest.mark.parametrize(
    ("name", "term", "option"),
    [
        (name, term, option)
        for name in METHODS
        for term, about in catalog.get("method", name).terms.items()
        for option in about.options
    ],
)
def test_an_option_of_a_term_changes_it(name: str, term: str, option: str) -> None:
    now = catalog.get("method", name).terms[term].options[option]
    choices = {"pool_type": "max", "form": "at", "pdf": "gaussian", "norm": "l2"}
    given = {**active(name), term: {option: choices[option] if isinstance(now, str) else other_value(now, type(now))}}
    assert values(name, given, SETUPS[name].options) != values(name, active(name), SETUPS[name].options)


def test_a_default_is_never_news() -> None:
    for name in METHODS:
        cls = catalog.get("method", name)
        defaults = {f.name: f.default for f in dataclasses.fields(cls.Config)}
        for term in cls.terms:
            assert not said(name, {term: {}}, defaults, ()), name
