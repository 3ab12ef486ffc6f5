"""Contrastive losses: CSD's ratio of distances and InfoNCE over embeddings, as pure functions.

Half-precision input is computed in float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.numerics import full_precision, unit_vectors, upcast

Layers = Tensor | Sequence[Tensor]


def contrastive_ratio_loss(
    anchor: Layers,
    positive: Layers,
    negatives: Layers,
    *,
    weights: Sequence[float] | None = None,
    eps: float = 1e-7,
) -> Tensor:
    """CSD's contrastive term: sum over layers j of w_j * A_j / (B_j + eps).

    A_j = mean |positive_j - anchor_j|, B_j = mean over elements of the sum over k of |negative_jk - anchor_j|. B_j sums
    over the K negatives and does not average, as published, so the loss shrinks about as 1 / K. It is 0 at
    anchor == positive. Negatives are visited one by one in the forward pass and only their summed signs are kept for
    the backward pass, so memory does not grow with K. Not differentiable twice.

    Args:
        anchor: the student's features, (N, C, H, W) or one tensor per layer. Only they receive a gradient.
        positive: the teacher's, shaped alike.
        negatives: (K, C, H, W), shared by the whole batch as in CSD, or (K, N, C, H, W), each image's own; one tensor
            per layer.
        weights: one per layer, 1 when None. CSD: VGG-19 relu1_1 to relu5_1 with 1/32, 1/16, 1/8, 1/4, 1.
        eps: keeps the ratio finite where all negatives equal the anchor.

    Source: Wang et al., "Towards Compact Single Image Super-Resolution via Contrastive Self-distillation", IJCAI 2021,
    arXiv 2105.11683, with the detached teacher of its published command. Its weight 200 stands beside L1 on 0..255
    images (0.784 on [0, 1]), with features of 0..255 images in both cases.

    Raises:
        MtkdError: numbers of layers or weights differ, shapes do not fit, or there is no negative.

    Example:
        >>> anchor, positive = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
        >>> contrastive_ratio_loss(anchor, positive, negatives=torch.full((2, 3, 4, 4), 2.0))  # 1 / (2 + 2)
        tensor(0.2500)
    """
    anchors, positives, all_negatives = _layers(anchor), _layers(positive), _layers(negatives)
    weights = [1.0] * len(anchors) if weights is None else weights
    if not len(anchors) == len(positives) == len(all_negatives) == len(weights) > 0:
        raise MtkdError(
            "contrastive_ratio_loss needs anchor, positive, negatives and weights for the same layers; got "
            f"{len(anchors)}, {len(positives)}, {len(all_negatives)} and {len(weights)}."
        )
    layers = zip(weights, anchors, positives, all_negatives, strict=True)
    terms = [w * _ratio(a, p, n, eps) for w, a, p, n in layers]
    return torch.stack(terms).sum()


@full_precision
def info_nce_loss(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.07,
    mask: Tensor | None = None,
) -> Tensor:
    """InfoNCE: mean over rows i of -log( exp(a_i . p_i / t) / (exp(a_i . p_i / t) + sum_j exp(a_i . n_j / t)) ).

    All rows are divided by their L2 norm first (zero rows stay zero). The positive stands in the denominator. CRD's
    symmetric form is the sum of this loss and the same with anchor and positive exchanged.

    Args:
        anchor: (R, D) embeddings.
        positive: (R, D), row i belongs to anchor i. It receives a gradient too, because its projection head may be in
            training; detach it where it is not.
        negatives: (Q, D), for instance a queue, detached inside; None takes the other rows of `positive`.
        temperature: t, above 0.
        mask: bool (R, Q), or (R, R) without `negatives`; True leaves a pair out as a false negative, for instance a
            neighbour whose receptive field overlaps the anchor's. The positive pair is never left out.

    Source: van den Oord et al., arXiv 1807.03748; temperature of CRD (Tian et al., ICLR 2020, arXiv 1910.10699), whose
    own NCE with a memory indexed by image does not carry over to random crops.

    Raises:
        MtkdError: shapes do not fit, the mask is not bool, or the temperature is not positive.

    Example:
        >>> info_nce_loss(torch.eye(2), torch.eye(2), temperature=1.0)  # log(1 + 1/e)
        tensor(0.3133)
    """
    if anchor.dim() != 2 or anchor.shape != positive.shape:
        raise MtkdError(
            "info_nce_loss needs anchor and positive embeddings of one shape (R, D); got "
            f"{tuple(anchor.shape)} and {tuple(positive.shape)}."
        )
    if negatives is not None and (negatives.dim() != 2 or negatives.shape[1] != anchor.shape[1]):
        raise MtkdError(
            f"info_nce_loss needs negatives (Q, {anchor.shape[1]}) beside embeddings {tuple(anchor.shape)}; got "
            f"{tuple(negatives.shape)}."
        )
    if not temperature > 0:
        raise MtkdError(f"info_nce_loss divides by the temperature, which must be above 0; got {temperature}.")
    anchor, positive = (unit_vectors(x, 1) for x in upcast(anchor, positive))
    agreement = (anchor * positive).sum(1, keepdim=True)
    if negatives is None:
        others = anchor @ positive.mT
        left_out = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    else:
        (negatives,) = upcast(negatives.detach())
        others = anchor @ unit_vectors(negatives, 1).to(anchor.dtype).mT
        left_out = None
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != others.shape:
            raise MtkdError(
                f"info_nce_loss needs a bool mask {tuple(others.shape)}, True for pairs to leave out; got "
                f"{mask.dtype} {tuple(mask.shape)}."
            )
        left_out = mask if left_out is None else mask | left_out
    if left_out is not None:
        others = others.masked_fill(left_out, -torch.inf)
    logits = torch.cat([agreement, others], 1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@full_precision
def _ratio(anchor: Tensor, positive: Tensor, negatives: Tensor, eps: float) -> Tensor:
    fits = negatives.dim() > 0 and negatives.shape[1:] in (anchor.shape, anchor.shape[1:])
    if anchor.shape != positive.shape or not fits or len(negatives) == 0:
        raise MtkdError(
            "contrastive_ratio_loss needs anchor and positive of one shape (N, C, H, W) and one or more negatives, "
            f"(K, C, H, W) or (K, N, C, H, W); got {tuple(anchor.shape)}, {tuple(positive.shape)} and "
            f"{tuple(negatives.shape)}."
        )
    anchor, positive = upcast(anchor, positive.detach())
    distance = _SummedDistance.apply(anchor, negatives.detach())
    return F.l1_loss(anchor, positive) / (distance + eps)


class _SummedDistance(torch.autograd.Function):
    """mean over elements of sum over k of |negatives[k] - anchor|, with one difference in memory at a time."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, negatives: Tensor) -> Tensor:
        total = anchor.new_zeros(())
        # A sum of K signs fits a byte up to K = 127, a quarter of the memory of float32.
        signs = torch.zeros_like(anchor, dtype=torch.int8 if len(negatives) < 128 else torch.int16)
        for negative in negatives:
            difference = anchor - negative
            total += difference.abs().sum()
            signs += difference.sign_().to(signs.dtype)
        ctx.save_for_backward(signs)
        ctx.dtype = anchor.dtype
        return total / anchor.numel()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (signs,) = ctx.saved_tensors
        return signs.to(ctx.dtype) * (grad_output / signs.numel()), None


def _layers(features: Layers) -> Sequence[Tensor]:
    return [features] if isinstance(features, Tensor) else features
