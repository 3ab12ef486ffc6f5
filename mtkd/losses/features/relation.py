"""Losses between the relations among the vectors of a set: similarities (PKT), distances and angles (RKD)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd.losses.features.pairs import pair
from mtkd.losses.numerics import check_choice, full_precision, unit_vectors

PairReduction = Literal["mean", "rows"]


@full_precision
def pkt_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    grid: int = 4,
    reduction: PairReduction = "mean",
) -> Tensor:
    """Probabilistic knowledge transfer (PKT): divergence of the similarity distributions among a set of vectors.

    k_ij = (cos(x_i, x_j) + 1) / 2, rows divided by their sums: p (teacher) and q (student);
    the loss is sum over i, j of p_ij * log((p_ij + 1e-7) / (q_ij + 1e-7)), over R^2 or R for R vectors.

    Args:
        student_features: (R, C) vectors, or (N, C, H, W) maps, which are average-pooled to `grid` x `grid` cells per
            image: R = N * grid^2 vectors, the same places in both networks. C, H and W may differ between the networks.
        teacher_features: the same for the teacher.
        reduction: "mean" divides by R^2 as RepDistiller does (published weight 30000, which depends on R); "rows"
            divides by R, the mean divergence of a row, whose weight does not depend on R.

    Source: Passalis and Tefas, ECCV 2018, in the form of RepDistiller.

    Raises:
        MtkdError: numbers of vectors differ.
    """
    student, teacher = pair(
        "pkt_loss", student_features, teacher_features, "N", "it compares vectors with vectors", rows=True
    )
    check_choice("reduction of pkt_loss", reduction, PairReduction)
    p, q = _similarity_distribution(_rows(teacher, grid)), _similarity_distribution(_rows(student, grid))
    divergence = (p * torch.log((p + 1e-7) / (q + 1e-7))).sum(1)
    return divergence.mean() / (len(p) if reduction == "mean" else 1)


@full_precision
def rkd_distance_loss(student_features: Tensor, teacher_features: Tensor, *, grid: int = 4) -> Tensor:
    """Relational knowledge distillation (RKD), distances: mean over i, j of h(|s_i - s_j| / m_S - |t_i - t_j| / m_T).

    h is the smooth L1 (x^2 / 2 where |x| < 1, |x| - 1/2 beyond); m is the mean of a network's distances above 0, which
    takes the units of its features away. The mean is over all R^2 pairs, i = j among them.

    Args:
        student_features: (R, C) vectors, or (N, C, H, W) maps, which are average-pooled to `grid` x `grid` cells per
            image as in `pkt_loss`. C, H and W may differ between the networks.
        teacher_features: the same for the teacher.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, in the form of RepDistiller
    (published weight 25). Equal vectors get no gradient; RepDistiller counts their distance as 1e-6.

    Raises:
        MtkdError: numbers of vectors differ.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> rkd_distance_loss(points, 7 * points).item()  # shapes alone count
        0.0
    """
    student, teacher = pair(
        "rkd_distance_loss", student_features, teacher_features, "N", "it compares vectors with vectors", rows=True
    )
    return F.smooth_l1_loss(_relative_distances(_rows(student, grid)), _relative_distances(_rows(teacher, grid)))


@full_precision
def rkd_angle_loss(
    student_features: Tensor, teacher_features: Tensor, *, grid: int = 4, sample: int | None = None
) -> Tensor:
    """RKD, angles: mean over i, j, k of h(cos of the angle at s_i between s_j and s_k, minus the teacher's).

    h is the smooth L1. All R^3 triples count, those with a vector twice among them.

    Args:
        student_features: (R, C) vectors, or (N, C, H, W) maps as in `rkd_distance_loss`.
        teacher_features: the same for the teacher.
        sample: at most so many vectors, drawn at random from torch's generator, the same of both networks; the loss
            takes sample^2 * C and sample^3 numbers of memory. None for all.

    Source: Park et al., CVPR 2019, arXiv 1904.05068, in the form of RepDistiller (published weight 50). Equal vectors
    have no direction from one to the other: cosine 0 and no gradient.

    Raises:
        MtkdError: numbers of vectors differ.
    """
    student, teacher = pair(
        "rkd_angle_loss", student_features, teacher_features, "N", "it compares vectors with vectors", rows=True
    )
    student, teacher = _rows(student, grid), _rows(teacher, grid)
    if sample is not None and sample < len(student):
        chosen = torch.rand(len(student), device=student.device).topk(sample, sorted=False).indices
        student, teacher = student[chosen], teacher[chosen]
    return F.smooth_l1_loss(_cosines_at_corners(student), _cosines_at_corners(teacher))


def _relative_distances(rows: Tensor) -> Tensor:
    """(R, R) distances over the mean of those above 0; all 0 where every vector is the same."""
    # From differences, one by one: the product form |a|^2 + |b|^2 - 2ab loses small distances to rounding.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    count = (distances > 0).sum()
    return distances / torch.where(count == 0, torch.inf, distances.sum() / count)


def _cosines_at_corners(rows: Tensor) -> Tensor:
    """(R, R, R): [i, j, k] is the cosine between rows[j] - rows[i] and rows[k] - rows[i]."""
    directions = unit_vectors(rows[None] - rows[:, None], 2)
    return directions @ directions.mT


def _similarity_distribution(rows: Tensor) -> Tensor:
    rows = unit_vectors(rows, 1, eps=1e-7)
    similarity = (rows @ rows.mT + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def _rows(x: Tensor, grid: int) -> Tensor:
    """(N, C, H, W) maps to (N * grid * grid, C) pooled vectors; vectors stay as they are."""
    return F.adaptive_avg_pool2d(x, grid).movedim(1, -1).flatten(0, 2) if x.dim() == 4 else x
