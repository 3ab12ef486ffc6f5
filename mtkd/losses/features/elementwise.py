"""Losses between maps of one shape, element by element: FitNet's hint, and a distance under a mask of positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.features.pairs import pair, shape
from mtkd.losses.numerics import full_precision, upcast


@full_precision
def hint_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """FitNet's hint: mean squared difference of (regressed) student features and teacher features of one shape.

    Source: Romero et al., "FitNets", ICLR 2015, arXiv 1412.6550, as the mean over elements (RepDistiller).

    Raises:
        MtkdError: shapes differ; a 1x1 convolution on the student's tap makes the widths equal.

    Example:
        >>> hint_loss(torch.full((2, 8, 4, 4), 0.5), torch.zeros(2, 8, 4, 4))
        tensor(0.2500)
    """
    student, teacher = pair("hint_loss", student_features, teacher_features, "NCHW", "it compares element with element")
    return F.mse_loss(student, teacher)


@torch.no_grad()
@full_precision
def improvement_mask(sr: Tensor, teacher_sr: Tensor, gt: Tensor, *, margin: float = 0.01) -> Tensor:
    """Where the teacher is better than the student by more than `margin`: (N, 1, H, W), 1 or 0, without gradient.

    m = 1[ mean_c |sr - gt| > mean_c |teacher_sr - gt| + margin ]; images (N, 3, H, W) in [0, 1], margin too.

    Source: RIFE's privileged distillation (Huang et al., ECCV 2022, arXiv 2011.06294), margin 0.01. Errors of
    super-resolved images average 0.02 to 0.03, so a smaller margin is worth trying there.

    Raises:
        MtkdError: shapes differ.

    Example:
        >>> sr, teacher_sr, gt = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]), torch.zeros(2)
        >>> improvement_mask(*(row.expand(1, 3, 1, 2) for row in (sr, teacher_sr, gt)))
        tensor([[[[1., 0.]]]])
    """
    if not sr.shape == teacher_sr.shape == gt.shape:
        raise MtkdError(
            "improvement_mask needs the student's image, the teacher's image and the ground truth in one shape; got "
            f"{shape(sr)}, {shape(teacher_sr)} and {shape(gt)}."
        )
    sr, teacher_sr, gt = upcast(sr, teacher_sr, gt)
    error, teacher_error = ((image - gt).abs().mean(1, keepdim=True) for image in (sr, teacher_sr))
    return (error > teacher_error + margin).to(sr.dtype)


@full_precision
def masked_distance_loss(student_features: Tensor, teacher_features: Tensor, *, mask: Tensor) -> Tensor:
    """RIFE's distillation term: mean over all positions of mask * sqrt(mean_c (f_T - f_S)^2); masked ones count as 0.

    Positions where the features are equal receive no gradient, where RIFE's code gives NaN.

    Args:
        mask: (N, 1, H, W) weights in [0, 1], such as `improvement_mask`; detached. A mask that is a whole number of
            times as high and wide as the features (features at lq size) is average-pooled to them.

    Source: Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation", ECCV 2022.

    Raises:
        MtkdError: shapes of the features differ, or the mask cannot be pooled to them.
    """
    student, teacher = pair(
        "masked_distance_loss", student_features, teacher_features, "NCHW", "it compares element with element"
    )
    n, c, h, w = student.shape
    whole = mask.dim() == 4 and mask.shape[-2] % h == 0 and mask.shape[-1] % w == 0
    if not whole or mask.shape[:2] != (n, 1):
        raise MtkdError(
            f"masked_distance_loss needs a mask (N, 1, H, W) as high and wide as the features {shape(student)}, or a "
            f"whole multiple of them; got {shape(mask)}."
        )
    (mask,) = upcast(mask.detach())
    if mask.shape[-2:] != (h, w):
        mask = F.avg_pool2d(mask, (mask.shape[-2] // h, mask.shape[-1] // w))
    distance = torch.linalg.vector_norm(teacher - student, dim=1, keepdim=True) / math.sqrt(c)
    return (distance * mask).mean()
