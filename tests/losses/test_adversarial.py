"""Wasserstein losses and the gradient penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.losses.adversarial import (
    gradient_penalty,
    wasserstein_critic_loss,
    wasserstein_student_loss,
)

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])


def _critic(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 1)
    ).to(dtype)


def _images(n: int = 3) -> tuple[Tensor, Tensor]:
    real, fake = torch.rand(2, n, 3, 9, 9, dtype=torch.float64)
    return real, fake


def test_values_are_the_formulas() -> None:
    assert wasserstein_critic_loss(REAL, FAKE).item() == pytest.approx(-2 / 3 - 0.5)
    assert wasserstein_student_loss(FAKE).item() == pytest.approx(2 / 3)


def test_a_better_critic_has_a_lower_loss_and_a_better_student_too() -> None:
    real, fake = (torch.zeros(2, requires_grad=True) for _ in range(2))
    wasserstein_critic_loss(real, fake).backward()
    assert real.grad is not None and (real.grad < 0).all()
    assert fake.grad is not None and (fake.grad > 0).all()
    fake = torch.zeros(2, requires_grad=True)
    wasserstein_student_loss(fake).backward()
    assert fake.grad is not None and (fake.grad < 0).all()


def test_penalty_is_of_the_function_whose_values_are_compared() -> None:
    """An independent penalty: image by image, the gradient of what the student's loss calls D."""
    critic, (real, fake) = _critic(), _images()
    value = gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(3))
    shares = torch.rand((3, 1, 1, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = 0.0
    for share, one, other in zip(shares, real, fake, strict=True):
        x = (share * one + (1 - share) * other)[None].requires_grad_()
        scores = critic(x)
        assert scores.numel() > 1
        (-wasserstein_student_loss(scores)).backward()
        assert x.grad is not None
        expected += (x.grad.square().sum().sqrt().item() - 1) ** 2 / 3
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("slope", [0.0, 1.0, 3.0])
def test_penalty_of_a_linear_critic_is_known(slope: float) -> None:
    direction = torch.randn(3 * 9 * 9, dtype=torch.float64)
    direction = slope * direction / direction.norm()
    value = gradient_penalty(
        lambda x: x.flatten(1) @ direction.to(x.dtype) if slope else 0 * x.sum((1, 2, 3)), *_images()
    )
    assert value.item() == pytest.approx((slope - 1) ** 2, abs=1e-12)


def test_penalty_asks_the_critic_between_real_and_fake() -> None:
    real, fake = _images()
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(1))
    share = ((seen[0] - fake) / (real - fake)).flatten(1)
    torch.testing.assert_close(share, share[:, :1].expand_as(share))
    assert ((share >= 0) & (share <= 1)).all()
    assert len(share[:, 0].unique()) == 3


@pytest.mark.slow
def test_penalty_gradient_of_the_critic_agrees_with_finite_differences() -> None:
    critic, (real, fake) = _critic(), _images(2)
    names, values = zip(*critic.named_parameters(), strict=True)

    def penalty(*parameters: Tensor) -> Tensor:
        def call(x: Tensor) -> Tensor:
            return torch.func.functional_call(critic, dict(zip(names, parameters, strict=True)), (x,))

        return gradient_penalty(call, real, fake, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(penalty, values)
    assert sum(g.abs().sum() for g in torch.autograd.grad(penalty(*values), values, allow_unused=True) if g is not None)


def test_penalty_lets_no_gradient_into_the_images_and_is_finite_at_a_flat_critic() -> None:
    critic, images = _critic(), _images()
    for x in images:
        x.requires_grad_()
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    value = gradient_penalty(critic, *images)
    value.backward()
    assert value.item() == 1
    assert all(x.grad is None for x in images)
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())


def test_penalty_works_under_no_grad_and_in_float32_under_autocast() -> None:
    critic = _critic(torch.float32)
    real, fake = (x.bfloat16() for x in _images())
    generator = torch.Generator()
    expected = gradient_penalty(critic, real.float(), fake.float(), generator=generator.manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = gradient_penalty(critic, real, fake, generator=generator.manual_seed(0))
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    with torch.no_grad():
        assert gradient_penalty(critic, real, fake, generator=generator.manual_seed(0)).item() == expected.item()


def test_half_precision_scores_are_averaged_in_float32() -> None:
    scores = torch.full((4096,), 100.0, dtype=torch.float16)
    assert wasserstein_critic_loss(scores, -scores).item() == -200
    assert wasserstein_student_loss(scores).item() == -100


def test_unequal_images_and_an_indifferent_critic_are_errors() -> None:
    real, fake = _images()
    with pytest.raises(MtkdError, match="one shape"):
        gradient_penalty(_critic(), real, fake[:1])
    with pytest.raises(MtkdError, match="no gradient path"):
        gradient_penalty(lambda x: torch.zeros(len(x)), real, fake)
