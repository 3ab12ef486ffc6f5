"""The loss between two distributions of similarities among a set of vectors (PKT)."""

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


def _similarity_distribution(rows: Tensor) -> Tensor:
    rows = unit_vectors(rows, 1, eps=1e-7)
    similarity = (rows @ rows.mT + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def _rows(x: Tensor, grid: int) -> Tensor:
    """(N, C, H, W) maps to (N * grid * grid, C) pooled vectors; vectors stay as they are."""
    return F.adaptive_avg_pool2d(x, grid).movedim(1, -1).flatten(0, 2) if x.dim() == 4 else x
