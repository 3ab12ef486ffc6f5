"""Structured distillation: its terms, and the critic that trains beside the student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd.archs.critics import SelfAttention, SelfAttentionCritic
from mtkd.contracts import MtkdError
from mtkd.losses.features.affinity import pairwise_affinity_loss
from mtkd.methods.base import MethodConfig, tapped
from mtkd.methods.structured import StructuredKD
from tests.methods.setups import TASK, batch, edsr

SIDES = ("holistic", "pixel")
ADVERSARIAL: dict[str, dict[str, Any]] = {"holistic": {}, "critic": {}, "penalty": {}}


def structured(terms: Mapping[str, Any] | None = None, **options: Any) -> StructuredKD:
    torch.manual_seed(0)
    options = {"critic_feat": 4, **options} if terms else options
    return StructuredKD(edsr(), {"teacher": edsr(12)}, TASK, MethodConfig(terms=terms, options=options))


def deep(net: nn.Module, lq: Tensor) -> Tensor:
    _, found = tapped(net, ["conv_after_body", "conv_first"], lq)
    return found["conv_after_body"] + found["conv_first"]


def test_by_default_there_is_no_critic() -> None:
    method = structured()
    assert method.active == ("pixel", "target", "pairwise")
    assert list(method.param_groups()) == ["main"]
    assert not [name for name in method.state_dict() if not name.startswith("student.")]
    assert not method(batch(), 0).critic


@pytest.mark.parametrize(("pool", "pool_type"), [(2, "avg"), (1, "avg"), (4, "max")])
def test_terms_are_their_formulas(pool: int, pool_type: str) -> None:
    given = batch()
    method = structured({"target": {}, "pairwise": {"pool": pool, "pool_type": pool_type}})
    teacher = method.teachers["teacher"]
    losses = method(given, 0).losses
    torch.testing.assert_close(losses["target"], (method.student(given.lq) - teacher(given.lq)).abs().mean())
    expected = pairwise_affinity_loss(
        deep(method.student, given.lq), deep(teacher.net, given.lq), pool=pool, pool_type=pool_type
    )
    torch.testing.assert_close(losses["pairwise"], expected)


def test_several_taps_add_up() -> None:
    taps = ["body.0", "body.1"]
    given, terms = batch(), {"pairwise": {}}
    both = structured(terms, student_taps=taps, teacher_taps=taps)(given, 0).losses["pairwise"]
    alone = [structured(terms, student_taps=[t], teacher_taps=[t])(given, 0).losses["pairwise"] for t in taps]
    torch.testing.assert_close(both, sum(alone))


@pytest.mark.parametrize("kept", [["holistic"], ["critic", "penalty"], ["holistic", "critic"]])
def test_the_critic_comes_as_a_whole(kept: list[str]) -> None:
    with pytest.raises(MtkdError, match="train.holistic_opt, train.critic_opt, train.penalty_opt together"):
        structured({"pixel": {}, **{name: {} for name in kept}})


@pytest.mark.slow
@pytest.mark.parametrize("real", ["teacher", "gt"])
def test_the_critic_learns_what_is_real(real: str) -> None:
    method = structured(ADVERSARIAL, real=real)
    # A teacher whose images are brighter, so that there is something to tell apart.
    method.teachers["teacher"].net.conv_last.bias.data += 200.0
    optimizer = torch.optim.Adam(method.param_groups()["critic"], lr=3e-3, betas=(0.0, 0.9))
    given = batch(2, 8, 8)
    gaps = []
    for step in range(15):
        torch.manual_seed(step)
        critic = method(given, step).critic
        optimizer.zero_grad()
        (critic["critic"] + 10 * critic["penalty"]).backward()
        optimizer.step()
        gaps.append(critic["critic"].item())
    assert gaps[-1] < min(0.0, gaps[0] - 1e-3)


def test_holistic_term_is_the_negative_score_of_sr() -> None:
    method = structured(ADVERSARIAL, conditional=False).eval()
    out = method(batch(), 0)
    torch.testing.assert_close(out.losses["holistic"], -method.critic(out.sr).mean())


@pytest.mark.parametrize("side", [8, 16, 48])
def test_strength_of_the_holistic_term_does_not_depend_on_the_crop(side: int) -> None:
    method, given = structured({"pixel": {}, **ADVERSARIAL}, conditional=False), batch(2, side, side)
    # A critic of which each patch answers by itself, with a gradient of norm 1: what a penalty of 0 asks for.
    critic = nn.Conv2d(3, 1, 16, 16)
    with torch.no_grad():
        critic.weight /= critic.weight.norm()
    method.critic = critic
    out = method(given, 0)
    assert out.critic["penalty"].item() == pytest.approx(0, abs=1e-10)
    holistic, pixel = (torch.autograd.grad(out.losses[name], out.sr, retain_graph=True)[0] for name in SIDES)
    assert (holistic.norm() / pixel.norm()).item() == pytest.approx(16 * math.sqrt(3), rel=1e-4)


@pytest.mark.parametrize("conditional", [True, False])
def test_condition_decides_whether_the_score_depends_on_lq(conditional: bool) -> None:
    method = structured(ADVERSARIAL, conditional=conditional).eval()
    image, lq = torch.rand(1, 3, 16, 16), torch.rand(2, 1, 3, 16, 16)
    conditions = lq if conditional else (None, None)
    scores = [method._score(image, condition) for condition in conditions]
    assert torch.equal(*scores) != conditional
    assert method.critic.body[0].weight.shape[1] == (6 if conditional else 3)


def test_unknown_choice_names_the_choices() -> None:
    with pytest.raises(MtkdError, match="'teacher', 'gt'"):
        structured(real="student")


@pytest.mark.parametrize(("size", "scores"), [((16, 16), (1, 1)), ((22, 26), (1, 1)), ((64, 32), (4, 2))])
def test_critic_scores_patches_of_any_size(size: tuple[int, int], scores: tuple[int, int]) -> None:
    assert SelfAttentionCritic(num_feat=2)(torch.rand(2, 3, *size)).shape == (2, 1, *scores)


def test_critic_refuses_images_it_cannot_see() -> None:
    with pytest.raises(MtkdError, match="16 pixels"):
        SelfAttentionCritic(num_feat=2)(torch.rand(1, 3, 15, 40))


def test_critic_judges_images_one_by_one() -> None:
    torch.manual_seed(0)
    critic = SelfAttentionCritic(num_feat=4).double().eval()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(critic(images)[1:2], critic(images[1:2]))


def test_self_attention_is_attention() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(16).double().eval()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.gamma.fill_(0.5)
    query, key, value = (part(x).flatten(2).mT for part in (layer.query, layer.key, layer.value))
    attended = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    torch.testing.assert_close(layer(x), x + 0.5 * attended.mT.view_as(x))


def test_the_critic_has_the_size_its_description_says() -> None:
    """Convolutions and attention heads of the docstring at width 64, and one gamma per attention."""
    convs = [(3, 64, 16), (64, 128, 16), (128, 256, 16), (256, 512, 16), (512, 1, 9)]
    heads = [(256, 32, 1), (256, 32, 1), (256, 256, 1), (512, 64, 1), (512, 64, 1), (512, 512, 1)]
    expected = sum(before * after * kernel + after for before, after, kernel in convs + heads) + 2
    assert sum(p.numel() for p in SelfAttentionCritic().parameters()) == expected
