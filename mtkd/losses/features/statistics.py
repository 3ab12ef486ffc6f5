"""Losses between maps over positions: energies or statistics, taken over the channels, so that widths may differ."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.features.pairs import Norm, pair
from mtkd.losses.numerics import check_choice, full_precision, unit_vectors

AttentionForm = Literal["fakd", "at"]

Statistic = Literal["mean", "power_mean", "max", "min"]


@full_precision
def attention_loss(student_features: Tensor, teacher_features: Tensor, *, form: AttentionForm = "fakd") -> Tensor:
    """Attention transfer: distance of the channel-wise energy maps, each divided by its L2 norm over H and W.

    - `form="fakd"`: A = sum_c F^2, divided by (norm + 1e-6), mean absolute difference (FAKD's AT transform);
    - `form="at"`: A = mean_c F^2, divided by its norm, mean squared difference (RepDistiller).

    The two differ by orders of magnitude, so weights do not carry over. Widths may differ; H and W must agree.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928.

    Raises:
        MtkdError: N, H or W differ.
    """
    student, teacher = pair(
        "attention_loss", student_features, teacher_features, "NHW", "it compares maps over positions"
    )
    check_choice("form of attention_loss", form, AttentionForm)
    # The channel mean of the "at" form is the channel sum up to a factor that the division by the norm removes.
    eps = 1e-6 if form == "fakd" else 0.0
    student = unit_vectors(student.square().sum(1).flatten(1), 1, eps=eps)
    teacher = unit_vectors(teacher.square().sum(1).flatten(1), 1, eps=eps)
    return F.l1_loss(student, teacher) if form == "fakd" else F.mse_loss(student, teacher)


@full_precision
def statistics_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    statistic: Statistic = "mean",
    power: int | None = None,
    norm: Norm = "l1",
    normalize: bool = False,
) -> Tensor:
    """SRKD: distance of a statistic taken over the channels at every position.

    - `"mean"`: (mean_c F)^p, the power of the mean; with p = 2 the paper's best;
    - `"power_mean"`: mean_c F^p, the mean of the power;
    - `"max"`, `"min"`: over the channels; gradients reach one channel per position.

    Widths may differ, which is why the method needs no regressor; H and W must agree.

    Args:
        power: p, 2 when None. `"max"` and `"min"` have none.
        norm: mean absolute or mean squared difference. The paper does not say which it used.
        normalize: divide each image's map by its L2 norm, which takes away that the loss grows with the features'
            scale to the power p. A deviation: with p = 2 it comes close to `attention_loss`.

    Source: Gao et al., "Image Super-Resolution Using Knowledge Distillation", ACCV 2018.

    Raises:
        MtkdError: N, H or W differ, or a power is given for max or min.
    """
    check_choice("statistic of statistics_loss", statistic, Statistic)
    check_choice("norm of statistics_loss", norm, Norm)
    if statistic in ("max", "min") and power not in (None, 1):
        raise MtkdError(
            f"statistics_loss takes no power with statistic={statistic!r}, got power={power}; leave it out."
        )
    student, teacher = pair(
        "statistics_loss", student_features, teacher_features, "NHW", "it compares maps over positions"
    )
    student, teacher = (_statistic(x, statistic, 2 if power is None else power) for x in (student, teacher))
    if normalize:
        student, teacher = unit_vectors(student.flatten(1), 1, eps=1e-8), unit_vectors(teacher.flatten(1), 1, eps=1e-8)
    return F.l1_loss(student, teacher) if norm == "l1" else F.mse_loss(student, teacher)


def _statistic(x: Tensor, statistic: str, power: int) -> Tensor:
    if statistic == "mean":
        return x.mean(1) ** power
    if statistic == "power_mean":
        return (x**power).mean(1)
    return x.amax(1) if statistic == "max" else x.amin(1)
