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
def improvement_mask(sr: Tensor, teacher_sr: Tensor, gt: Tensor, *, margin: float = 0.01, share: float = 1.0) -> Tensor:
    """Where the teacher is better than the student by more than `margin`: (N, 1, H, W), 1 or 0, without gradient.

    m = 1[ mean_c |sr - gt| > mean_c |teacher_sr - gt| + margin ]; images (N, 3, H, W) in [0, 1], margin too. With
    `share` below 1, only those of them that are among that share of their image's pixels, those with the largest gain.

    Source: RIFE's privileged distillation (Huang et al., ECCV 2022, arXiv 2011.06294), margin 0.01. Errors of
    super-resolved images average 0.02 to 0.03, so a smaller margin is worth trying there. `share` is ours.

    Raises:
        MtkdError: shapes differ, or `share` is not in (0, 1].

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
    check_share(share)
    sr, teacher_sr, gt = upcast(sr, teacher_sr, gt)
    error, teacher_error = ((image - gt).abs().mean(1, keepdim=True) for image in (sr, teacher_sr))
    better = error > teacher_error + margin
    if share < 1:
        gain = error - teacher_error
        # By sorting: torch's kthvalue is refused on CUDA in deterministic runs.
        ordered = gain.flatten(1).sort(1, descending=True).values
        least = ordered[:, max(1, round(share * ordered.shape[1])) - 1]
        better &= gain >= least.view(-1, 1, 1, 1)
    return better.to(sr.dtype)


def check_share(share: float) -> None:
    """Raises MtkdError when `share` is no share of the pixels, (0, 1]."""
    if not 0 < share <= 1:
        raise MtkdError(f"share must be above 0 and at most 1, got {share}; 1 leaves all pixels to the margin.")


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
