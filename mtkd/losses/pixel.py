"""Pixel losses with BasicSR's names and values."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.losses.difference import difference

Reduction = Literal["mean", "sum"]


class L1Loss(nn.Module):
    """Mean (or sum) of |sr - target| over all elements.

    Args:
        reduction: "mean" over every element of the batch, or "sum".

    Example:
        >>> L1Loss()(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.25))
        tensor(0.5000)
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction: Reduction = _checked(reduction)

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Scalar >= 0 for two tensors of one shape; 0, with gradient 0, where they are equal."""
        return _reduce(difference(sr, target).abs(), self.reduction)


class MSELoss(nn.Module):
    """Mean (or sum) of (sr - target)^2 over all elements.

    Args:
        reduction: "mean" over every element of the batch, or "sum".

    Example:
        >>> MSELoss()(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.25))
        tensor(0.2500)
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction: Reduction = _checked(reduction)

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Scalar >= 0 for two tensors of one shape."""
        return _reduce(difference(sr, target).square(), self.reduction)


class CharbonnierLoss(nn.Module):
    """Mean (or sum) of sqrt((sr - target)^2 + eps) over all elements (Lai et al., CVPR 2017, arXiv 1704.03915).

    This is BasicSR's form: `eps` is added to the square as it is, where the paper adds eps^2. BasicSR's 1e-12 is hence
    the paper's 1e-6, and equal images give sqrt(eps), not 0. (`WaveletLoss` has another form, see there.)

    Args:
        eps: curvature near zero, in squared units of the image, > 0.
        reduction: "mean" over every element of the batch, or "sum".

    Example:
        >>> image = torch.rand(1, 3, 2, 2)
        >>> CharbonnierLoss(eps=1e-4)(image, image)  # sqrt(eps) at equality
        tensor(0.0100)
    """

    def __init__(self, *, eps: float = 1e-12, reduction: Reduction = "mean") -> None:
        super().__init__()
        if not eps > 0:
            raise MtkdError(f"CharbonnierLoss needs eps > 0 (its gradient is undefined at 0), got {eps}.")
        self.eps = eps
        self.reduction: Reduction = _checked(reduction)

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Scalar >= sqrt(eps) (times the number of elements for "sum") for two tensors of one shape."""
        return _reduce((difference(sr, target).square() + self.eps).sqrt(), self.reduction)


def _checked(reduction: Reduction) -> Reduction:
    if reduction not in get_args(Reduction):
        raise MtkdError(f"reduction is 'mean' or 'sum', got {reduction!r}: a loss returns one value.")
    return reduction


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    return values.mean() if reduction == "mean" else values.sum()
