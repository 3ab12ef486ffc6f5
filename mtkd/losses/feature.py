"""Losses between a student's and a teacher's feature maps, as pure functions.

Every function takes `(student_features, teacher_features)`, float tensors (N, C, H, W) unless it says otherwise, and
returns one unweighted scalar. They hold in common:

- the teacher's tensor is detached inside; only the student's (and an estimator's) receives a gradient;
- half-precision input is computed in float32, also under autocast;
- gradients are finite everywhere. A vector of exactly zero has no direction, so where a formula divides by its norm it
  contributes to the value as published (as zero) and receives no gradient; published code gives NaN there;
- taps whose shapes cannot be compared are an `MtkdError`. Nothing is resized silently.

Values were checked against the methods' own code. Weights between these terms and a pixel loss depend on the image
range: FAKD's and CSD's published weights belong to images in 0..255 and are divided by 255 for [0, 1].
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.numerics import check_choice, full_precision, unit_vectors, upcast

PoolType = Literal["avg", "max"]
AttentionForm = Literal["fakd", "at"]
Statistic = Literal["mean", "power_mean", "max", "min"]
Norm = Literal["l1", "l2"]
Reduction = Literal["mean", "rows"]
Pdf = Literal["laplace", "gaussian"]

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
    student, teacher = _pair(
        "spatial_affinity_loss", student_features, teacher_features, "NHW", "it compares positions with positions"
    )
    student, teacher = _pooled(student, pool, pool_type), _pooled(teacher, pool, pool_type)
    return _affinity_distance(
        unit_vectors(student, 1, eps=1e-8).flatten(2), unit_vectors(teacher, 1, eps=1e-8).flatten(2), power=1
    )


@full_precision
def channel_affinity_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """FAKD's channel affinity (CA): mean over N, c, d of |cos(s_c, s_d) - cos(t_c, t_d)| over all pairs of channels.

    s_c is channel c as a vector over positions, divided by (its L2 norm + 1e-8). C must agree, H and W need not.

    Source: the CA transform of FAKD's code (He et al., ICIP 2020).

    Raises:
        MtkdError: N or C differ.
    """
    student, teacher = _pair(
        "channel_affinity_loss", student_features, teacher_features, "NC", "it compares channels with channels"
    )
    student, teacher = unit_vectors(student.flatten(2), 2, eps=1e-8), unit_vectors(teacher.flatten(2), 2, eps=1e-8)
    return _affinity_distance(student.mT, teacher.mT, power=1)


@full_precision
def instance_affinity_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """FAKD's instance affinity (IA): mean absolute difference of the batch's N x N Gram matrices, rows of unit L2 norm.

    The Gram matrix is of the flattened features themselves; its rows are normalised, not the features. Shapes behind N
    are free. A batch of one image always gives 0.

    Source: the IA transform of FAKD's code (He et al., ICIP 2020).

    Raises:
        MtkdError: N differs.
    """
    student, teacher = _pair(
        "instance_affinity_loss", student_features, teacher_features, "N", "it compares images with images", rows=True
    )
    return (_batch_gram(student) - _batch_gram(teacher)).abs().mean()


@full_precision
def similarity_preserving_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Similarity-preserving distillation (SP): `instance_affinity_loss` with the mean square instead of the mean L1.

    Source: Tung and Mori, ICCV 2019, in the form of RepDistiller (sum of squares / N^2). Random patches of one batch
    are nearly unrelated, so for super-resolution this is a weak signal.

    Raises:
        MtkdError: N differs.
    """
    student, teacher = _pair(
        "similarity_preserving_loss",
        student_features,
        teacher_features,
        "N",
        "it compares images with images",
        rows=True,
    )
    return (_batch_gram(student) - _batch_gram(teacher)).square().mean()


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
    student, teacher = _pair(
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
    student, teacher = _pair(
        "statistics_loss", student_features, teacher_features, "NHW", "it compares maps over positions"
    )
    student, teacher = (_statistic(x, statistic, 2 if power is None else power) for x in (student, teacher))
    if normalize:
        student, teacher = unit_vectors(student.flatten(1), 1, eps=1e-8), unit_vectors(teacher.flatten(1), 1, eps=1e-8)
    return F.l1_loss(student, teacher) if norm == "l1" else F.mse_loss(student, teacher)


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
    student, teacher = _pair(
        "pairwise_affinity_loss", student_features, teacher_features, "NHW", "it compares positions with positions"
    )
    student, teacher = _pooled(student, pool, pool_type), _pooled(teacher, pool, pool_type)
    student = unit_vectors(student, 1, eps=1e-8, detach_norm=detach_norm)
    return _affinity_distance(student.flatten(2), unit_vectors(teacher, 1, eps=1e-8).flatten(2), power=2)


@full_precision
def pkt_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    grid: int = 4,
    reduction: Reduction = "mean",
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
    student, teacher = _pair(
        "pkt_loss", student_features, teacher_features, "N", "it compares vectors with vectors", rows=True
    )
    check_choice("reduction of pkt_loss", reduction, Reduction)
    p, q = _similarity_distribution(_rows(teacher, grid)), _similarity_distribution(_rows(student, grid))
    divergence = (p * torch.log((p + 1e-7) / (q + 1e-7))).sum(1)
    return divergence.mean() / (len(p) if reduction == "mean" else 1)


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
    location, target = _pair(
        "vid_loss", student_features, teacher_features, "NCHW", "it is a likelihood of every element"
    )
    if scale.dim() != 4 or any(k not in (1, n) for k, n in zip(scale.shape, target.shape, strict=True)):
        raise MtkdError(
            f"vid_loss needs a scale for every element of the teacher's features {_shape(target)}, or one that "
            f"broadcasts to them, such as (N, C, 1, 1) or (N, 1, H, W); got {_shape(scale)}."
        )
    (scale,) = upcast(scale)
    if pdf == "laplace":
        b = 0.1 * scale + 1e-8
        loss = (torch.log(2 * b) + (target - location).abs() / b).mean()
    else:
        v = 0.001 * scale + 1e-8
        loss = (torch.log(v) / 2 + (target - location).square() / (2 * v)).mean()
    return loss + target.shape[1] * math.log(2 * math.pi) / 2 if constant else loss


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
    student, teacher = _pair(
        "hint_loss", student_features, teacher_features, "NCHW", "it compares element with element"
    )
    return F.mse_loss(student, teacher)


@torch.no_grad()
@full_precision
def improvement_mask(sr: Tensor, teacher_sr: Tensor, gt: Tensor, *, margin: float = 0.01) -> Tensor:
    """Where the teacher is better than the student by more than `margin`: (N, 1, H, W), 1 or 0, without gradient.

    m = 1[ mean_c |sr - gt| > mean_c |teacher_sr - gt| + margin ]; images (N, 3, H, W) in [0, 1], margin likewise.

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
            f"{_shape(sr)}, {_shape(teacher_sr)} and {_shape(gt)}."
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
    student, teacher = _pair(
        "masked_distance_loss", student_features, teacher_features, "NCHW", "it compares element with element"
    )
    n, c, h, w = student.shape
    whole = mask.dim() == 4 and mask.shape[-2] % h == 0 and mask.shape[-1] % w == 0
    if not whole or mask.shape[:2] != (n, 1):
        raise MtkdError(
            f"masked_distance_loss needs a mask (N, 1, H, W) as high and wide as the features {_shape(student)}, or a "
            f"whole multiple of them; got {_shape(mask)}."
        )
    (mask,) = upcast(mask.detach())
    if mask.shape[-2:] != (h, w):
        mask = F.avg_pool2d(mask, (mask.shape[-2] // h, mask.shape[-1] // w))
    distance = torch.linalg.vector_norm(teacher - student, dim=1, keepdim=True) / math.sqrt(c)
    return (distance * mask).mean()


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


def _similarity_distribution(rows: Tensor) -> Tensor:
    rows = unit_vectors(rows, 1, eps=1e-7)
    similarity = (rows @ rows.mT + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def _rows(x: Tensor, grid: int) -> Tensor:
    """(N, C, H, W) maps to (N * grid * grid, C) pooled vectors; vectors stay as they are."""
    return F.adaptive_avg_pool2d(x, grid).movedim(1, -1).flatten(0, 2) if x.dim() == 4 else x


def _statistic(x: Tensor, statistic: str, power: int) -> Tensor:
    if statistic == "mean":
        return x.mean(1) ** power
    if statistic == "power_mean":
        return (x**power).mean(1)
    return x.amax(1) if statistic == "max" else x.amin(1)


def _pooled(x: Tensor, pool: int | None, pool_type: PoolType) -> Tensor:
    check_choice("pool_type", pool_type, PoolType)
    if pool is None:
        return x
    return (F.avg_pool2d if pool_type == "avg" else F.max_pool2d)(x, pool, ceil_mode=True)


def _pair(
    loss: str, student: Tensor, teacher: Tensor, agree: str, why: str, *, rows: bool = False
) -> tuple[Tensor, Tensor]:
    """Both features in float32 or better, the teacher's detached, after checking the axes named in `agree`."""
    dims = (2, 4) if rows else (4,)
    if student.dim() not in dims or teacher.dim() not in dims:
        expected = "(N, C, H, W) maps or (R, C) rows" if rows else "(N, C, H, W) maps"
        raise MtkdError(f"{loss} takes {expected}; got {_shape(student)} and {_shape(teacher)}.")
    axes = {"N": "batch size", "C": "channels", "H": "height", "W": "width"}
    differ = [axes[axis] for axis in agree if student.shape["NCHW".index(axis)] != teacher.shape["NCHW".index(axis)]]
    if differ or student.dim() != teacher.dim():
        hint = " Put a 1x1 convolution behind the student's tap." if differ == ["channels"] else ""
        raise MtkdError(
            f"{loss} cannot compare student features {_shape(student)} with teacher features {_shape(teacher)}: "
            f"{why}, and their {' and '.join(differ) or 'number of axes'} differ. Choose taps that agree.{hint}"
        )
    student, teacher = upcast(student, teacher.detach())
    return student, teacher


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))
