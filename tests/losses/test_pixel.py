"""Pixel losses against BasicSR and numpy."""

from __future__ import annotations

import pytest
import torch

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd.contracts import MtkdError
from mtkd.losses.pixel import CharbonnierLoss, L1Loss, MSELoss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("ours", "name", "options"),
    [
        (L1Loss, "L1Loss", {}),
        (MSELoss, "MSELoss", {}),
        (CharbonnierLoss, "CharbonnierLoss", {}),
        (CharbonnierLoss, "CharbonnierLoss", {"eps": 1e-3}),
    ],
)
def test_value_and_gradient_are_those_of_basicsr(ours: type, name: str, options: dict, reduction: str) -> None:
    import basicsr.losses.basic_loss as theirs

    sr, target = torch.rand(2, 2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    sr.requires_grad_()
    values, grads = [], []
    for loss in (ours(reduction=reduction, **options), getattr(theirs, name)(reduction=reduction, **options)):
        value = loss(sr, target)
        values.append(value.detach())
        grads += torch.autograd.grad(value, sr)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*grads)


def test_charbonnier_is_the_root_of_eps_at_equality() -> None:
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    assert CharbonnierLoss(eps=0.04)(image, image).item() == pytest.approx(0.2)


def test_charbonnier_refuses_an_eps_without_a_gradient_at_zero() -> None:
    with pytest.raises(MtkdError, match="eps > 0"):
        CharbonnierLoss(eps=0.0)


@pytest.mark.parametrize("loss", [L1Loss, MSELoss, CharbonnierLoss])
def test_an_unknown_reduction_is_an_error(loss: type) -> None:
    with pytest.raises(MtkdError, match="none"):
        loss(reduction="none")
