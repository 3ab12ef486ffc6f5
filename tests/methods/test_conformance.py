"""What every method of the catalog must hold. A new catalog line is tested by adding its entry to setups.py."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtkd import catalog
from mtkd.methods.base import Method
from mtkd.training.optim import build_optimizer
from tests.methods import setups
from tests.methods.setups import SETUPS, batch, build

METHODS = list(catalog.METHODS)


def student_terms(method: Method) -> list[str]:
    return [name for name in method.active if not method.terms[name].critic]


def critic_terms(method: Method) -> list[str]:
    return [name for name in method.active if method.terms[name].critic]


def run(method: Method, steps: range, optimizers: dict[str, torch.optim.Optimizer]) -> list[float]:
    """One step as the loop does it: one backward over student and critic terms, every optimizer stepped."""
    totals = []
    for step in steps:
        torch.manual_seed(1000 + step)
        out = method(batch(seed=step), step)
        total = sum(out.losses.values()) + sum(out.critic.values())
        total.backward()
        totals.append(total.item())
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    return totals


def optimizers_of(method: Method) -> dict[str, torch.optim.Optimizer]:
    return {
        name: build_optimizer(parameters, {"type": "Adam", "lr": 1e-3})
        for name, parameters in method.param_groups().items()
    }


def test_every_method_has_a_setup() -> None:
    assert set(SETUPS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_has_a_section_of_its_own_in_the_docs(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert [heading for heading in headings if name in heading.split()], f"docs/methods.md lacks a section `## {name}`"


@pytest.mark.parametrize("name", METHODS)
def test_emits_exactly_its_terms(name: str) -> None:
    method = build(name)
    out = method(batch(), 0)
    assert list(out.losses) == student_terms(method)
    assert list(out.critic) == critic_terms(method)
    for value in [*out.losses.values(), *out.critic.values()]:
        assert value.shape == () and torch.isfinite(value)
    for value in out.logs.values():
        assert value.shape == () and not value.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_a_term_that_reaches_a_part_of_the_student_says_so(name: str) -> None:
    for term in student_terms(build(name)):
        method = build(name)
        method(batch(), 0).losses[term].backward()
        partly = any(parameter.grad is None for parameter in method.student.parameters())
        assert partly is method.terms[term].partial, term


@pytest.mark.parametrize("name", [name for name in METHODS if catalog.get("method", name).gt_terms is not None])
def test_a_method_that_says_so_needs_no_gt_without_the_terms_that_read_it(name: str) -> None:
    images = batch()
    expected, out = (
        build(name, without=catalog.get("method", name).gt_terms)(images._replace(gt=gt), 0) for gt in (images.gt, None)
    )
    assert out.losses and out.losses.keys() == expected.losses.keys()
    assert all(torch.equal(value, expected.losses[term]) for term, value in out.losses.items())


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_has_one_optimizer(name: str) -> None:
    method = build(name)
    owned = [id(p) for group in method.param_groups().values() for p in group]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in method.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", METHODS)
def test_every_term_reaches_what_it_trains_and_nothing_else(name: str) -> None:
    method = build(name)
    groups = method.param_groups()
    critic = {id(p) for p in groups.get("critic", [])}
    for term in method.active:
        method.zero_grad()
        out = method(batch(), 0)
        {**out.losses, **out.critic}[term].backward()
        reached = {id(p) for p in method.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if method.terms[term].critic:
            assert reached and reached <= critic, f"{term} must train the critic alone"
        else:
            assert reached & {id(p) for p in method.student.parameters()}, f"{term} gives the student no gradient"
            assert not reached & critic, f"{term} must not train the critic"


@pytest.mark.parametrize("name", METHODS)
def test_all_terms_together_train_every_parameter(name: str) -> None:
    method = build(name)
    out = method(batch(), 0)
    (sum(out.losses.values()) + sum(out.critic.values())).backward()
    idle = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@pytest.mark.parametrize("name", METHODS)
def test_teachers_stay_frozen_untouched_and_unsaved(name: str) -> None:
    method = build(name)
    nets = {key: teacher.net for key, teacher in method.teachers.items()}
    before = {key: copy.deepcopy(net.state_dict()) for key, net in nets.items()}
    run(method, range(2), optimizers_of(method))
    saved = set(method.state_dict())
    for key, net in nets.items():
        assert not net.training
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())
        for entry, value in net.state_dict().items():
            assert torch.equal(value, before[key][entry])
        inside = {id(p) for p in net.parameters()}
        assert not inside & {id(p) for p in method.parameters()}
    assert not any(entry.startswith("teachers.") for entry in saved)


@pytest.mark.parametrize("name", METHODS)
def test_batch_is_not_changed_in_place(name: str) -> None:
    method, given = build(name), batch()
    kept = [value.clone() for value in given if isinstance(value, Tensor)]
    method(given, 0)
    for value, before in zip([v for v in given if isinstance(v, Tensor)], kept, strict=True):
        assert torch.equal(value, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_resume_is_bit_exact(name: str) -> None:
    straight = build(name)
    expected = run(straight, range(4), optimizers_of(straight))

    first = build(name)
    optimizers = optimizers_of(first)
    begun = run(first, range(2), optimizers)
    state = copy.deepcopy(first.state_dict())
    states = {key: copy.deepcopy(value.state_dict()) for key, value in optimizers.items()}

    second = build(name)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    resumed = optimizers_of(second)
    second.load_state_dict(state)
    for key, value in resumed.items():
        value.load_state_dict(states[key])
    ended = run(second, range(2, 4), resumed)

    assert begun + ended == expected
    for key, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_deployed_weights_load_into_a_plain_network(name: str) -> None:
    method = build(name)
    deployed = method.deployable(method.student)
    plain = (SETUPS[name].plain or SETUPS[name].student)()
    plain.load_state_dict(deployed.state_dict(), strict=True)


@pytest.mark.parametrize("name", METHODS)
def test_predictor_maps_lq_to_sr(name: str) -> None:
    method = build(name)
    with torch.no_grad():
        sr = method.predictor(method.student).eval()(torch.rand(1, 3, 13, 9))
    assert sr.shape == (1, 3, 13 * setups.SCALE, 9 * setups.SCALE)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [(1, 16, 16), (2, 11, 13)], ids=["batch-1", "odd"])
def test_batch_of_one_and_odd_sizes(name: str, size: tuple[int, int, int]) -> None:
    out = build(name)(batch(*size), 0)
    (sum(out.losses.values()) + sum(out.critic.values())).backward()
    assert all(torch.isfinite(value) for value in [*out.losses.values(), *out.critic.values()])


@pytest.mark.parametrize("name", METHODS)
def test_runs_in_double(name: str) -> None:
    out = build(name).double()(batch(dtype=torch.float64), 0)
    for value in [*out.losses.values(), *out.critic.values()]:
        assert value.dtype == torch.float64


@pytest.mark.parametrize("name", METHODS)
def test_runs_under_bf16_autocast(name: str) -> None:
    method = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = method(batch(), 0)
        total = sum(out.losses.values()) + sum(out.critic.values())
    total.backward()
    assert torch.isfinite(total)
