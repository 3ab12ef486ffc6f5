"""Adversarial losses for a critic that tells a student's image from a real one, as pure functions.

The critic's and the student's side of Wasserstein with gradient penalty, WGAN-GP (Gulrajani et al., arXiv 1704.00028):
the holistic term of structured distillation (Liu et al., CVPR 2019), which weighs both sides by 0.1.

Scores are the critic's answers (N, ...), high for real. D, the score of an image, is the mean of its answers in all
three: a critic that answers once for each patch and one that answers once for the image are treated alike. The critic's
side wants the student's image detached; the student's side wants the critic's parameters left out of its optimizer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.numerics import full_precision, upcast


@full_precision
def wasserstein_critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean D(fake) - mean D(real), to be used with `gradient_penalty`; unbounded below without it."""
    real_scores, fake_scores = upcast(real_scores, fake_scores)
    return fake_scores.mean() - real_scores.mean()


@full_precision
def wasserstein_student_loss(fake_scores: Tensor) -> Tensor:
    """-mean D(fake)."""
    return -upcast(fake_scores)[0].mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """WGAN-GP's penalty: mean over the batch of (|dD/dx| - 1)^2 at x = u * real + (1 - u) * fake, u uniform per image.

    D(x) is the mean of the image's scores, the function whose values the two losses compare.
    The unweighted scalar (published weight 10) is differentiable with respect to the critic's parameters; its backward
    pass differentiates the critic twice. The critic runs in float32 with autocast off, because gradients of gradients
    do not survive half precision. It must treat images one by one: batch normalisation makes the penalty meaningless.

    Args:
        critic: images (N, C, H, W) -> scores of any shape (N, ...).
        real: images; detached inside.
        fake: images of the same shape; detached inside.
        generator: source of u, on the images' device; the global one when None.

    Raises:
        MtkdError: shapes differ, or the critic's answer does not depend on the image.

    Example:
        >>> critic = lambda image: 3 * image[:, 0, 0, 0]
        >>> gradient_penalty(critic, torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)).item()  # (3 - 1)^2
        4.0
    """
    if real.shape != fake.shape:
        raise MtkdError(
            f"gradient_penalty mixes real and fake images and needs them in one shape; got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}."
        )
    return _penalty(real, fake, critic, generator)


@full_precision
def _penalty(
    real: Tensor, fake: Tensor, critic: Callable[[Tensor], Tensor], generator: torch.Generator | None
) -> Tensor:
    real, fake = upcast(real.detach(), fake.detach())
    u = torch.rand((len(real),) + (1,) * (real.dim() - 1), dtype=real.dtype, device=real.device, generator=generator)
    with torch.enable_grad():
        mixed = torch.lerp(fake, real, u).requires_grad_()
        scores = critic(mixed)
        if not scores.requires_grad:
            raise MtkdError("gradient_penalty found no gradient path from the critic's scores to its input images.")
        (gradient,) = torch.autograd.grad(scores.reshape(len(mixed), -1).mean(1).sum(), mixed, create_graph=True)
    # vector_norm, unlike the square root of a sum, keeps the backward pass finite where the gradient is exactly zero.
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()
