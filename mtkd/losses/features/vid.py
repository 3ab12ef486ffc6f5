"""The likelihood of the teacher's features under a density that the student predicts (PISR)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.features.pairs import pair, shape
from mtkd.losses.numerics import check_choice, full_precision, upcast

Pdf = Literal["laplace", "gaussian"]


@full_precision
def vid_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    scale: Tensor,
    pdf: Pdf = "laplace",
    constant: bool = False,
) -> Tensor:
    """PISR's variational information distillation: negative log-likelihood of the teacher's features.

    - Laplace: b = 0.1 * scale + 1e-8, mean of log(2b) + |f_T - mu| / b;
    - Gaussian: v = 0.001 * scale + 1e-8, mean of log(v) / 2 + (f_T - mu)^2 / (2v).

    At mu == f_T only the logarithm is left, so the loss may be negative.

    Args:
        student_features: mu (N, C, H, W), the estimator's location head on the student's features.
        teacher_features: f_T (N, C, H, W).
        scale: softplus output of the estimator's scale head, positive; (N, C, H, W) or anything that broadcasts to it
            ((N, C, 1, 1) per channel, (N, 1, H, W) per position, (N, 1, 1, 1)). It receives a gradient.
        constant: add C * log(2 pi) / 2 as PISR's code does for both densities. It has no gradient and is not the
            constant of either density; it serves to compare logged values.

    Source: Lee et al., "Learning with Privileged Information for Efficient Image Super-Resolution", ECCV 2020,
    arXiv 2007.07524.

    Raises:
        MtkdError: shapes of location and target differ, or the scale does not broadcast to them.
    """
    check_choice("pdf of vid_loss", pdf, Pdf)
    location, target = pair(
        "vid_loss", student_features, teacher_features, "NCHW", "it is a likelihood of every element"
    )
    if scale.dim() != 4 or any(k not in (1, n) for k, n in zip(scale.shape, target.shape, strict=True)):
        raise MtkdError(
            f"vid_loss needs a scale for every element of the teacher's features {shape(target)}, or one that "
            f"broadcasts to them, such as (N, C, 1, 1) or (N, 1, H, W); got {shape(scale)}."
        )
    (scale,) = upcast(scale)
    if pdf == "laplace":
        b = 0.1 * scale + 1e-8
        loss = (torch.log(2 * b) + (target - location).abs() / b).mean()
    else:
        v = 0.001 * scale + 1e-8
        loss = (torch.log(v) / 2 + (target - location).square() / (2 * v)).mean()
    return loss + target.shape[1] * math.log(2 * math.pi) / 2 if constant else loss
