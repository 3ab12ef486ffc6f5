"""The contrastive ratio and InfoNCE: formulas, gradients, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mtkd.contracts import MtkdError
from mtkd.losses.contrastive import contrastive_ratio_loss, info_nce_loss


def _sine(*shape: int) -> Tensor:
    return torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + 0.3).reshape(shape)


def _cosine(*shape: int) -> Tensor:
    return torch.cos(0.9 * torch.arange(math.prod(shape), dtype=torch.float64) + 0.1).reshape(shape)


ANCHOR, POSITIVE = _sine(2, 3, 4, 4), _cosine(2, 3, 4, 4)
NEGATIVES = 0.5 * _sine(3, 3, 4, 4).flip(0)


def test_ratio_is_the_published_codes() -> None:
    value = contrastive_ratio_loss(ANCHOR, POSITIVE, NEGATIVES)
    assert value.item() == pytest.approx(0.40400058429135516, rel=1e-12)
    assert (ANCHOR - POSITIVE).abs().mean().item() == pytest.approx(0.8071108806197973, rel=1e-12)


def test_layers_are_weighted_and_added() -> None:
    other = [_sine(2, 5, 2, 2), _cosine(2, 5, 2, 2), _cosine(4, 5, 2, 2).flip(0)]
    value = contrastive_ratio_loss([ANCHOR, other[0]], [POSITIVE, other[1]], [NEGATIVES, other[2]], weights=[0.25, 2])
    expected = 0.25 * 0.40400058429135516 + 2 * contrastive_ratio_loss(*other)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_negatives_may_be_each_images_own() -> None:
    own = torch.randn(4, 2, 3, 4, 4, dtype=torch.float64)
    distance = (own - ANCHOR).abs().sum(0).mean()
    expected = (POSITIVE - ANCHOR).abs().mean() / (distance + 1e-7)
    assert contrastive_ratio_loss(ANCHOR, POSITIVE, own).item() == pytest.approx(expected.item(), rel=1e-12)
    shared = NEGATIVES[:, None].expand(3, 2, 3, 4, 4)
    assert contrastive_ratio_loss(ANCHOR, POSITIVE, shared).item() == pytest.approx(0.40400058429135516, rel=1e-12)


def test_only_the_anchor_has_a_gradient_and_it_is_the_formulas() -> None:
    anchor, positive, negatives = (x.clone().requires_grad_() for x in (ANCHOR, POSITIVE, NEGATIVES))
    assert gradcheck(lambda x: contrastive_ratio_loss(x, positive, negatives), (anchor,))
    contrastive_ratio_loss(anchor, positive, negatives).backward()
    assert anchor.grad is not None
    assert anchor.grad.abs().sum() > 0
    assert positive.grad is None
    assert negatives.grad is None


def test_gradient_counts_more_negatives_than_a_byte_holds() -> None:
    anchor = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    negatives = torch.rand(300, 1, 2, 2, dtype=torch.float64) + 0.5
    assert gradcheck(lambda x: contrastive_ratio_loss(x, torch.ones_like(x), negatives), (anchor,))


def test_ratio_is_finite_at_equality_and_zero_features() -> None:
    anchor = ANCHOR.clone().requires_grad_()
    value = contrastive_ratio_loss(anchor, ANCHOR, NEGATIVES)
    value.backward()
    assert value.item() == 0
    assert anchor.grad is not None
    assert (anchor.grad == 0).all()
    anchor = torch.zeros(1, 3, 4, 4, requires_grad=True)
    value = contrastive_ratio_loss(anchor, torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    value.backward()
    assert value.item() == 0
    assert anchor.grad is not None
    assert anchor.grad.isfinite().all()


class _LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and func is not torch.ops.aten.detach.default:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.slow
def test_memory_does_not_grow_with_the_negatives() -> None:
    anchor = ANCHOR.float().requires_grad_()
    positive, negatives = POSITIVE.float(), torch.randn(100, 2, 3, 4, 4)
    saved: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x)
    with _LargestTensor() as largest, hooks:
        contrastive_ratio_loss(anchor, positive, negatives).backward()
    assert largest.elements <= anchor.numel()
    assert sum(x.numel() for x in saved) <= 4 * anchor.numel()


def test_ratio_of_half_precision_is_computed_in_float32() -> None:
    tensors = [x.bfloat16() for x in (ANCHOR, POSITIVE, NEGATIVES)]
    expected = contrastive_ratio_loss(*(x.double() for x in tensors))
    anchor = tensors[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = contrastive_ratio_loss(anchor, *tensors[1:])
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert anchor.grad is not None
    assert anchor.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "call",
    [
        lambda: contrastive_ratio_loss([ANCHOR], [POSITIVE, POSITIVE], [NEGATIVES]),
        lambda: contrastive_ratio_loss([ANCHOR], [POSITIVE], [NEGATIVES], weights=[1, 2]),
        lambda: contrastive_ratio_loss([], [], []),
        lambda: contrastive_ratio_loss(ANCHOR, POSITIVE, NEGATIVES[:0]),
        lambda: contrastive_ratio_loss(ANCHOR, POSITIVE, NEGATIVES[..., :2]),
        lambda: contrastive_ratio_loss(ANCHOR, POSITIVE[:1], NEGATIVES),
        lambda: contrastive_ratio_loss(ANCHOR, POSITIVE, torch.ones(4, 3, 3, 4, 4)),
        lambda: info_nce_loss(ANCHOR, POSITIVE),
        lambda: info_nce_loss(torch.ones(4, 3), torch.ones(3, 3)),
        lambda: info_nce_loss(torch.ones(4, 3), torch.ones(4, 3), torch.ones(5, 2)),
        lambda: info_nce_loss(torch.ones(4, 3), torch.ones(4, 3), temperature=0.0),
        lambda: info_nce_loss(torch.ones(4, 3), torch.ones(4, 3), mask=torch.zeros(4, 4)),
        lambda: info_nce_loss(torch.ones(4, 3), torch.ones(4, 3), torch.ones(5, 3), mask=torch.zeros(4, 4).bool()),
    ],
)
def test_what_does_not_fit_is_an_error(call: Any) -> None:
    with pytest.raises(MtkdError):
        call()


def test_info_nce_within_the_batch_is_a_classification_of_the_own_positive() -> None:
    a, p = _sine(5, 6), _cosine(5, 6)
    logits = F.normalize(a) @ F.normalize(p).T / 0.2
    expected = F.cross_entropy(logits, torch.arange(5))
    assert info_nce_loss(a, p, temperature=0.2).item() == pytest.approx(expected.item(), rel=1e-12)


def test_info_nce_with_a_queue_is_mocos() -> None:
    a, p, queue = _sine(5, 6), _cosine(5, 6), _sine(7, 6).flip(0)
    q, k = F.normalize(a), F.normalize(p)
    positive = torch.einsum("nc,nc->n", q, k)[:, None]
    logits = torch.cat([positive, torch.einsum("nc,kc->nk", q, F.normalize(queue))], 1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    assert info_nce_loss(a, p, queue).item() == pytest.approx(expected.item(), rel=1e-12)


def test_masked_negatives_count_for_nothing() -> None:
    a, p, queue = _sine(4, 6), _cosine(4, 6), _sine(7, 6).flip(0)
    mask = torch.zeros(4, 7, dtype=torch.bool)
    mask[:, 3:] = True
    expected = info_nce_loss(a, p, queue[:3])
    assert info_nce_loss(a, p, queue, mask=mask).item() == pytest.approx(expected.item(), rel=1e-12)
    # The positive stays even where the mask names it, so nothing is left to lose.
    assert info_nce_loss(a, p, mask=torch.ones(4, 4, dtype=torch.bool)).item() == 0


def test_info_nce_trains_anchor_and_positive_but_no_queue() -> None:
    a, p, queue = (x.requires_grad_() for x in (_sine(3, 4), _cosine(3, 4), _sine(5, 4).flip(0)))
    assert gradcheck(lambda x, y: info_nce_loss(x, y, temperature=0.5), (a, p))
    assert gradcheck(lambda x, y: info_nce_loss(x, y, queue.detach(), temperature=0.5), (a, p))
    info_nce_loss(a, p, queue).backward()
    assert a.grad is not None and a.grad.abs().sum() > 0
    assert p.grad is not None and p.grad.abs().sum() > 0
    assert queue.grad is None


def test_info_nce_is_finite_at_zero_rows_one_row_and_in_half_precision() -> None:
    a, p = _sine(3, 4), _cosine(3, 4)
    a[0] = 0
    a.requires_grad_()
    info_nce_loss(a, p).backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert a.grad.abs().max() < 100
    assert info_nce_loss(_sine(1, 4), _cosine(1, 4)).item() == 0
    halves = [x.half() for x in (_sine(3, 4), _cosine(3, 4), _sine(5, 4).flip(0))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = info_nce_loss(*halves)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(info_nce_loss(*(x.double() for x in halves)).item(), rel=1e-5)
