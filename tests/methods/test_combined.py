"""Methods named together: the sum of their losses, one pass of every network, nothing saved twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mtkd import catalog
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.contracts import Batch, MtkdError
from mtkd.methods.at import AT
from mtkd.methods.base import Method, MethodConfig, Term
from mtkd.methods.combined import combined
from tests.methods.setups import SETUPS, TASK, batch, build, edsr, one_teacher
from tests.methods.test_conformance import optimizers_of, run

PAIRS = [
    "OutputKD + FAKD",
    "SRKD + AT",
    "FitNet + PKT",
    "DUKD + FAKD",
    "SRModel + FAKD",
    "StructuredKD + OutputKD + AT",
]
ALONE = ["CSD", "OnlineTeacher", "MTKDFusion", "PISRTeacher"]


def make(name: str, *, teachers: dict[str, nn.Module] | None = None, seed: int = 0, **given: Any) -> Method:
    torch.manual_seed(seed)
    student, found = edsr(), one_teacher() if teachers is None else teachers
    torch.manual_seed(seed + 1)
    return catalog.get("method", name)(student, found, TASK, MethodConfig(**given)).train()


def weighted(method: Method, given: Batch) -> torch.Tensor:
    torch.manual_seed(5)
    out = method(given, 0)
    return torch.stack(
        [out.sr.new_zeros(()), *((method.terms[name].weight or 0.0) * value for name, value in out.losses.items())]
    ).sum()


def test_one_name_is_the_method_itself() -> None:
    assert combined("FAKD") is catalog.get("method", "FAKD")


@pytest.mark.parametrize("name", PAIRS)
def test_the_loss_is_the_sum_of_the_losses_apart(name: str) -> None:
    whole = make(name).double()
    total = weighted(whole, batch(dtype=torch.float64))
    apart = 0.0
    for part in name.split(" + "):
        alone = make(part).double()
        own = {key.removeprefix(f"parts.{part}."): value for key, value in whole.state_dict().items()}
        alone.load_state_dict({key: own[key] for key in alone.state_dict()})
        apart += weighted(alone, batch(dtype=torch.float64)).item()
    assert total.item() == pytest.approx(apart, rel=1e-12)


CAN = [name for name in catalog.METHODS if name not in ALONE and catalog.METHODS[name] != catalog.METHODS["SRModel"]]


@pytest.mark.parametrize("name", CAN)
def test_every_method_says_in_a_combination_what_it_says_alone(name: str) -> None:
    """A method that cannot say so needs `alone`; one that taps the student or a teacher names what it taps."""
    setup, cls = SETUPS[name], catalog.get("method", name)
    alone = build(name).double()
    torch.manual_seed(2)
    nets = {key: teacher.net for key, teacher in alone.teachers.items()}
    config = MethodConfig(
        terms={"pixel": {}, **{f"{name}.{term}": alone.term_options[term] for term in alone.active if term != "pixel"}},
        options={name: dict(setup.options)},
    )
    whole = catalog.get("method", f"SRModel + {name}")(setup.student(), nets, TASK, config).train().double()
    own = {
        key if key.startswith("student.") else f"parts.{name}.{key}": value for key, value in alone.state_dict().items()
    }
    whole.load_state_dict(own)
    for step in range(2):
        outs = []
        for method in (alone, whole):
            torch.manual_seed(11 + step)
            outs.append(method(batch(dtype=torch.float64, seed=step), step))
        expected = {**outs[0].losses, **outs[0].critic}
        found = {key.removeprefix(f"{name}."): value for key, value in {**outs[1].losses, **outs[1].critic}.items()}
        assert found.keys() == expected.keys(), cls
        for key, value in expected.items():
            assert found[key].item() == pytest.approx(value.item(), rel=1e-9), key


def test_student_and_teacher_run_once_whatever_reads_them() -> None:
    method = make("OutputKD + FAKD + AT + CRD")
    seen = {"student": 0, "teacher": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            seen[name] += 1

        return hook

    method.student.register_forward_hook(count("student"))
    method.teachers["teacher"].net.register_forward_hook(count("teacher"))
    out = method(batch(), 0)
    assert seen == {"student": 1, "teacher": 1}
    assert list(out.losses) == [name for name in method.active if not method.terms[name].critic]
    assert "CRD.agreement" in out.logs


OWN_IMAGES = {
    "DUKD": (("target", "zoom_in"), {"tiles": 2}, {"student": 3 + 6, "teacher": 3 + 6}),
    "DCKD": (("target", "consistency"), {}, {"student": 3, "teacher": 3 + 3}),
}
"""Methods that make images of their own, their terms and options, and how many images the networks get."""


@pytest.mark.parametrize("name", list(OWN_IMAGES))
def test_no_network_sees_lq_twice_beside_a_method_that_makes_images_of_its_own(name: str) -> None:
    own, options, expected = OWN_IMAGES[name]
    terms = {key: {} for key in ("pixel", "FAKD.spatial", *(f"{name}.{term}" for term in own))}
    assert images_seen(make(f"{name} + FAKD", terms=terms, options={name: options})) == expected


def images_seen(method: Method) -> dict[str, int]:
    """How many images each network gets for a batch of three."""
    seen = {"student": 0, "teacher": 0}

    def count(name: str) -> Any:
        def hook(_: nn.Module, given: Any) -> None:
            seen[name] += len(given[0])

        return hook

    method.student.register_forward_pre_hook(count("student"))
    method.teachers["teacher"].net.register_forward_pre_hook(count("teacher"))
    method(batch(size=3), 0)
    return seen


def test_a_method_from_outside_that_names_no_readers_reads_its_teacher() -> None:
    class Own(AT):
        terms = {"pixel": Term("sr against gt", loss="L1Loss"), "attention": Term("maps", weight=50.0)}

    method = Own(edsr(), one_teacher(), TASK)
    assert images_seen(method) == {"student": 3, "teacher": 3} and method.active == ("pixel", "attention")


TAUGHT = ["OutputKD", "FAKD", "SRKD", "FitNet", "AT", "PKT", "RKD", "CRD", "StructuredKD", "DUKD", "DCKD"]


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_that_no_term_reads_does_not_run(name: str) -> None:
    options = dict(SETUPS[name].options)
    assert images_seen(make(name, terms={"pixel": {}}, options=options)) == {"student": 3, "teacher": 0}


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_combined_is_refused_with_what_can(name: str) -> None:
    with pytest.raises(MtkdError, match=f"{name} cannot be combined.*These can: .*FAKD"):
        catalog.get("method", f"{name} + FAKD")


def test_a_name_twice_or_unknown_is_refused() -> None:
    with pytest.raises(MtkdError, match="FAKD twice"):
        catalog.get("method", "FAKD + FAKD")
    with pytest.raises(MtkdError, match="No method is called 'FAKDD'. Did you mean FAKD"):
        catalog.get("method", "MTKD + FAKDD")


@pytest.mark.parametrize("name", ["StructuredKD + CRD", "FitNet + FAKD"])
def test_parameters_have_one_optimizer_and_the_student_is_saved_once(name: str) -> None:
    critic = {"critic_feat": 4}
    cls = catalog.get("method", name)
    options = {"StructuredKD": critic} if "StructuredKD" in name else {}
    method = make(name, terms={term: {} for term in cls.terms if term != "FAKD.channel"}, options=options)
    owned = [id(p) for group in method.param_groups().values() for p in group]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in method.parameters() if p.requires_grad}
    assert not [key for key in method.state_dict() if not key.startswith("student.") and "student." in key]
    assert not [key for key in method.state_dict() if "teachers." in key]
    assert ("critic" in method.param_groups()) == ("StructuredKD" in name)
    out = method(batch(), 0)
    assert set(out.losses) | set(out.critic) == set(method.active)
    (sum(out.losses.values()) + sum(out.critic.values())).backward()
    assert not [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]


def test_resume_is_bit_exact() -> None:
    name, options = "CRD + FitNet", {"CRD": {"positions": 20, "queue_size": 50}}
    straight = make(name, options=options)
    expected = run(straight, range(4), optimizers_of(straight))
    first = make(name, options=options)
    optimizers = optimizers_of(first)
    begun = run(first, range(2), optimizers)
    state = copy.deepcopy(first.state_dict())
    second = make(name, seed=9, options=options, teachers={"teacher": first.teachers["teacher"].net})
    resumed = optimizers_of(second)
    second.load_state_dict(state)
    for key, value in resumed.items():
        value.load_state_dict(copy.deepcopy(optimizers[key].state_dict()))
    assert begun + run(second, range(2, 4), resumed) == expected


def test_one_part_imitates_the_fused_image_and_another_a_network() -> None:
    torch.manual_seed(3)
    nets = {"a": edsr(12), "b": edsr(8)}
    fused = FusedTeacher(Ensemble(nets), MeanFusion(2))
    teachers = {"a": nets["a"], "mean": fused}
    method = make("MTKD + FAKD", teachers=teachers, options={"FAKD": {"teachers": ["a"]}})
    given = batch()
    out = method(given, 0)
    sr = method.student(given.lq)
    with torch.no_grad():
        mean, one = (nets["a"](given.lq) + nets["b"](given.lq)) / 2, nets["a"](given.lq)
    assert out.losses["MTKD.target"].item() == pytest.approx(
        catalog.get("loss", "WaveletLoss")()(sr, mean).item(), rel=1e-5
    )
    assert out.losses["FAKD.target"].item() == pytest.approx((sr - one).abs().mean().item(), rel=1e-5)


def test_a_stored_image_serves_the_part_that_imitates_one() -> None:
    target = batch().gt.flip(0)
    method = make("MTKD + FAKD")
    given = batch()._replace(target=target)
    out = method(given, 0)
    sr = method.student(given.lq)
    assert out.losses["MTKD.target"].item() == pytest.approx(
        catalog.get("loss", "WaveletLoss")()(sr, target).item(), rel=1e-5
    )
    asks = make("OutputKD + FAKD", options={"OutputKD": {"teachers": ["teacher"]}})
    image = asks.teachers["teacher"](given.lq)
    assert asks(given, 0).losses["OutputKD.target"].item() == pytest.approx(
        (asks.student(given.lq) - image).abs().mean().item(), rel=1e-5
    )
