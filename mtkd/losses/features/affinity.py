"""Losses between affinities: cosines among positions, channels or images, compared between the networks.

Affinities among positions are HW x HW. They are made a block of rows at a time and never exist as a whole.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd.losses.features.pairs import Norm, pair
from mtkd.losses.numerics import check_choice, full_precision, unit_vectors

PoolType = Literal["avg", "max"]

BLOCK_ELEMENTS = 1 << 21
"""Elements of one block of affinities: 8 MiB of float32, large enough for a GPU, small enough for a CPU's cache."""


@full_precision
def spatial_affinity_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    pool: int | None = None,
    pool_type: PoolType = "avg",
) -> Tensor:
    """FAKD's spatial affinity (SA): mean over N, i, j of |cos(s_i, s_j) - cos(t_i, t_j)| over all pairs of positions.

    s_i is the channel vector at position i, divided by (its L2 norm + 1e-8). Widths may differ; H and W must agree.
    The HW x HW affinities exist a block of rows at a time in both passes, and the gradient is made in the forward pass,
    so memory grows with HW and not with its square. Not differentiable twice.

    Args:
        pool: side of the pooling window (stride the same, partial windows at the border kept) before the affinity,
            which is FAKD's PSA; None compares all positions.
        pool_type: how PSA pools.

    Source: He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image Super-Resolution",
    ICIP 2020. FAKD sums the taps and weighs the sum by 10 beside L1 on 0..255 images.

    Raises:
        MtkdError: N, H or W differ.

    Example:
        >>> student, teacher = torch.rand(2, 8, 6, 6), torch.rand(2, 32, 6, 6)
        >>> bool(spatial_affinity_loss(student, teacher) > 0)
        True
        >>> bool(spatial_affinity_loss(student, 3 * student) < 1e-6)  # angles alone count
        True
    """
    student, teacher = pair(
        "spatial_affinity_loss", student_features, teacher_features, "NHW", "it compares positions with positions"
    )
    student, teacher = _pooled(student, pool, pool_type), _pooled(teacher, pool, pool_type)
    return _affinity_distance(
        unit_vectors(student, 1, eps=1e-8).flatten(2), unit_vectors(teacher, 1, eps=1e-8).flatten(2), power=1
    )


@full_precision
def pairwise_affinity_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    pool: int | None = 2,
    pool_type: PoolType = "avg",
    detach_norm: bool = False,
) -> Tensor:
    """Structured distillation's pair-wise term: mean over N, i, j of (cos(s_i, s_j) - cos(t_i, t_j))^2 of pooled nodes.

    s_i is the channel vector of node i, divided by (its L2 norm + 1e-8). Widths may differ; H and W must agree.
    Computed in blocks as `spatial_affinity_loss`, so that `pool=None` is affordable.

    Args:
        pool: side of the pooling window (stride the same, partial windows kept). The paper's segmentation nets pool to
            2 x 2 nodes, far too coarse for super-resolution: 2 at 48 x 48 leaves 576 nodes. None takes every position.
        pool_type: the paper averages, its code takes the maximum.
        detach_norm: treat the norms as constants in the gradient, as the authors' code does. The value is the same; the
            gradient keeps a radial part that the formula does not have.

    Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv 1903.04197.

    Raises:
        MtkdError: N, H or W differ.
    """
    student, teacher = pair(
        "pairwise_affinity_loss", student_features, teacher_features, "NHW", "it compares positions with positions"
    )
    student, teacher = _pooled(student, pool, pool_type), _pooled(teacher, pool, pool_type)
    student = unit_vectors(student, 1, eps=1e-8, detach_norm=detach_norm)
    return _affinity_distance(student.flatten(2), unit_vectors(teacher, 1, eps=1e-8).flatten(2), power=2)


@full_precision
def channel_affinity_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """FAKD's channel affinity (CA): mean over N, c, d of |cos(s_c, s_d) - cos(t_c, t_d)| over all pairs of channels.

    s_c is channel c as a vector over positions, divided by (its L2 norm + 1e-8). C must agree, H and W need not.

    Source: the CA transform of FAKD's code (He et al., ICIP 2020).

    Raises:
        MtkdError: N or C differ.
    """
    student, teacher = pair(
        "channel_affinity_loss", student_features, teacher_features, "NC", "it compares channels with channels"
    )
    student, teacher = unit_vectors(student.flatten(2), 2, eps=1e-8), unit_vectors(teacher.flatten(2), 2, eps=1e-8)
    return _affinity_distance(student.mT, teacher.mT, power=1)


@full_precision
def instance_affinity_loss(student_features: Tensor, teacher_features: Tensor, *, norm: Norm = "l1") -> Tensor:
    """FAKD's instance affinity (IA): mean absolute difference of the batch's N x N Gram matrices, rows of unit L2 norm.

    The Gram matrix is of the flattened features themselves; its rows are normalised, not the features. Shapes behind N
    are free. A batch of one image always gives 0.

    Args:
        norm: "l1" as above; "l2" is the mean square, which is similarity-preserving distillation (SP).

    Sources: the IA transform of FAKD's code (He et al., ICIP 2020); SP: Tung and Mori, "Similarity-Preserving Knowledge
    Distillation", ICCV 2019, arXiv 1907.09682, the square over N^2 as in RepDistiller, whose published weight is 3000.

    Raises:
        MtkdError: N differs.
    """
    check_choice("norm of instance_affinity_loss", norm, Norm)
    student, teacher = pair(
        "instance_affinity_loss", student_features, teacher_features, "N", "it compares images with images", rows=True
    )
    difference = _batch_gram(student) - _batch_gram(teacher)
    return difference.abs().mean() if norm == "l1" else difference.square().mean()


class _AffinityDistance(torch.autograd.Function):
    """mean over batch, i, j of |s_i . s_j - t_i . t_j| ** power, in blocks of rows i.

    The loss is a scalar, so its gradient is known in the forward pass up to a factor: what is saved for the backward
    pass is one tensor as large as the student's features. Affinities are symmetric, so row i starts at column i and
    what lies right of the block's diagonal square counts twice.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, power: int) -> Tensor:
        batch, _, n = student.shape
        rows = max(16, BLOCK_ELEMENTS // (batch * n))
        total = student.new_zeros(())
        grad = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            own, right = slice(start, stop), slice(start, n)
            difference = student[..., own].mT @ student[..., right]
            # Two products, not one of concatenated features: equal inputs then give exactly 0 and not rounding noise.
            difference -= teacher[..., own].mT @ teacher[..., right]
            diagonal = difference[..., : stop - start]
            total += 2 * _power_sum(difference, power) - _power_sum(diagonal, power)
            if grad is not None:
                slope = difference.sign_() if power == 1 else difference.mul_(2)
                grad[..., own] += student[..., right] @ slope.mT
                grad[..., stop:] += student[..., own] @ slope[..., stop - start :]
        if grad is not None:
            ctx.save_for_backward(grad.mul_(2 / (batch * n * n)))
        return total / (batch * n * n)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad_output * grad, None, None


def _affinity_distance(student: Tensor, teacher: Tensor, *, power: int) -> Tensor:
    """`_AffinityDistance` of (N, C, K) vectors, K of them."""
    return _AffinityDistance.apply(student, teacher, power)  # pyright: ignore[reportReturnType]


def _power_sum(x: Tensor, power: int) -> Tensor:
    # Row by row: a float32 norm over millions of elements at once is off by 1e-3 on a CPU.
    return (torch.linalg.vector_norm(x, power, dim=-1) ** power).sum()


def _batch_gram(x: Tensor) -> Tensor:
    x = x.flatten(1)
    return unit_vectors(x @ x.mT, 1)


def _pooled(x: Tensor, pool: int | None, pool_type: PoolType) -> Tensor:
    check_choice("pool_type", pool_type, PoolType)
    if pool is None:
        return x
    return (F.avg_pool2d if pool_type == "avg" else F.max_pool2d)(x, pool, ceil_mode=True)
