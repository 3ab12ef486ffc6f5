"""The pieces methods are made of: frozen teachers, taps, terms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtkd.contracts import Batch, MtkdError
from mtkd.methods.base import Frozen, MethodConfig, frozen_parameters, tapped
from mtkd.methods.mtkd import MTKD
from mtkd.methods.supervised import Supervised
from tests.methods.setups import TASK, batch, edsr, rcan


class Greedy(nn.Module):
    """A network that works in place on its input, as spandrel's RCAN does."""

    scale = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(255)


def test_frozen_protects_the_callers_tensor() -> None:
    x = torch.rand(1, 3, 4, 4)
    before = x.clone()
    Frozen(Greedy())(x)
    assert torch.equal(x, before)


def test_frozen_ignores_train_and_follows_dtype() -> None:
    holder = nn.ModuleDict({"teacher": Frozen(edsr())})
    holder.train()
    holder.double()
    net = holder["teacher"].net
    assert not net.training
    assert next(net.parameters()).dtype == torch.float64
    assert list(holder.parameters()) == [] and not holder.state_dict()
    assert not holder["teacher"](torch.rand(1, 3, 5, 5, dtype=torch.float64)).requires_grad


def test_tapped_reads_a_module_and_leaves_no_hook() -> None:
    net, x = edsr(), torch.rand(1, 3, 6, 6)
    out, feats = tapped(net, ["body.0", "conv_after_body"], x)
    assert list(feats) == ["body.0", "conv_after_body"]
    assert feats["body.0"].shape == (1, 8, 6, 6) and feats["body.0"].requires_grad
    torch.testing.assert_close(out, net(x))
    assert not any(module._forward_hooks for module in net.modules())


def test_tapped_names_near_matches() -> None:
    with pytest.raises(MtkdError, match="conv_after_body"):
        tapped(edsr(), ["conv_after_bdy"], torch.rand(1, 3, 4, 4))


def test_frozen_parameters_stops_the_gradient_only_inside() -> None:
    critic, x = nn.Conv2d(3, 1, 1), torch.rand(1, 3, 2, 2, requires_grad=True)
    with frozen_parameters(critic):
        inside = critic(x).sum()
    (inside + critic(x.detach()).sum() * 0).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert critic.weight.grad is not None and not critic.weight.grad.any()


def test_unknown_term_is_an_error_that_lists_the_terms() -> None:
    with pytest.raises(MtkdError, match="pixel, target, spatial"):
        MTKD(edsr(), {"t": edsr()}, TASK, MethodConfig(terms={"pixl": {}}))


def test_target_prefers_the_stored_image_and_needs_one_teacher() -> None:
    method = MTKD(edsr(), {"a": edsr(), "b": rcan()}, TASK)
    given = batch()
    with pytest.raises(MtkdError, match="fusion: mean"):
        method(given, 0)
    stored = Batch(given.lq, given.gt, given.index, target=given.gt)
    assert set(method(stored, 0).losses) == {"pixel", "target"}


class Own(nn.Module):
    """A loss from outside; `kind` is what it gives."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, sr: torch.Tensor, target: torch.Tensor) -> object:
        apart = (sr - target).abs()
        mean = apart.mean()
        return {"number": mean, "vector of one": mean[None], "map": apart, "pair": (mean, None)}[self.kind]


@pytest.mark.parametrize(("kind", "told"), [("map", r"of shape \(3, 3, 32, 32\)"), ("pair", "gives tuple")])
def test_a_loss_from_outside_is_one_number(kind: str, told: str) -> None:
    def losses(kind: str) -> dict[str, torch.Tensor]:
        terms = {"pixel": {"type": f"{__name__}:Own", "kind": kind}}
        method = Supervised(edsr(), {}, TASK, MethodConfig(terms=terms))
        return method(batch(), 0).losses

    with pytest.raises(MtkdError, match=f"train.pixel_opt: .*Own.*{told}.* one number"):
        losses(kind)
    assert losses("vector of one")["pixel"].shape == losses("number")["pixel"].shape == ()


def test_supervised_is_basicsrs_pixel_loss() -> None:
    method = Supervised(edsr(), {}, TASK, MethodConfig(terms={"pixel": {"type": "MSELoss"}}))
    given = batch()
    out = method(given, 0)
    torch.testing.assert_close(out.losses["pixel"], nn.functional.mse_loss(out.sr, given.gt))
