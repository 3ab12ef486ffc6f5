"""Values of the feature losses on sines and cosines in float64, against their formulas written out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mtkd.contracts import MtkdError
from mtkd.losses.features import affinity
from mtkd.losses.features.affinity import (
    channel_affinity_loss,
    instance_affinity_loss,
    pairwise_affinity_loss,
    spatial_affinity_loss,
)
from mtkd.losses.features.elementwise import hint_loss, improvement_mask, masked_distance_loss
from mtkd.losses.features.relation import pkt_loss, rkd_angle_loss, rkd_distance_loss
from mtkd.losses.features.statistics import attention_loss, statistics_loss
from mtkd.losses.features.vid import vid_loss


def _wave(fn: Callable[[Tensor], Tensor], step: float, phase: float, shape: tuple[int, ...]) -> Tensor:
    return fn(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase).reshape(shape)


def s(*shape: int) -> Tensor:
    return _wave(torch.sin, 0.7, 0.3, shape)


def t(*shape: int) -> Tensor:
    return _wave(torch.cos, 0.9, 0.1, shape)


SAME = (s(2, 3, 4, 4), t(2, 3, 4, 4))
WIDER = (s(2, 3, 4, 4), t(2, 5, 4, 4))
ROWS = (s(4, 6), t(4, 6))
TOLERANCE = 1e-6


def _vid(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return vid_loss(student, teacher, scale=teacher.detach().abs() + 0.1, **options)


def _masked(student: Tensor, teacher: Tensor) -> Tensor:
    return masked_distance_loss(student, teacher, mask=torch.ones_like(teacher[:, :1]))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """(R, C) -> (R, R), from one pair of vectors after the other."""
    return np.array([[u @ v / math.sqrt(u @ u) / math.sqrt(v @ v) for v in vectors] for u in vectors])


def _nodes(image: np.ndarray, window: int, pool: Callable[..., np.ndarray] = np.mean) -> np.ndarray:
    """(C, H, W) -> (positions, C) of windows side by side."""
    _, h, w = image.shape
    cells = [(y, x) for y in range(0, h, window) for x in range(0, w, window)]
    return np.stack([pool(image[:, y : y + window, x : x + window], axis=(1, 2)) for y, x in cells])


def _over_images(one: Callable[[np.ndarray, np.ndarray], Any]) -> Callable[[np.ndarray, np.ndarray], float]:
    """The mean over all elements of what `one` makes of an image's student and teacher features."""
    return lambda a, b: float(np.mean([one(x, y) for x, y in zip(a, b, strict=True)]))


def _affinities(window: int, power: int, pool: Callable[..., np.ndarray] = np.mean) -> Any:
    return _over_images(
        lambda a, b: np.abs(_cosines(_nodes(a, window, pool)) - _cosines(_nodes(b, window, pool))) ** power
    )


def _gram(features: np.ndarray) -> np.ndarray:
    rows = features.reshape(len(features), -1)
    gram = np.array([[(a * b).sum() for b in rows] for a in rows])
    return np.stack([row / math.sqrt((row * row).sum()) for row in gram])


def _energy(features: np.ndarray) -> np.ndarray:
    energy = (features**2).sum(axis=0)
    return energy / math.sqrt((energy**2).sum())


def _divergence(a: np.ndarray, b: np.ndarray) -> float:
    q, p = ((_cosines(rows) + 1) / 2 for rows in (a, b))
    q, p = (similarity / similarity.sum(axis=1, keepdims=True) for similarity in (q, p))
    return float(np.mean(p * np.log((p + 1e-7) / (q + 1e-7))))


def _huber(x: np.ndarray) -> float:
    return float(scipy.special.huber(1, x).mean())


def _distances(a: np.ndarray, b: np.ndarray) -> float:
    """scipy's distances of each pair once; the full matrix has each twice and zeros between."""
    own, others = (scipy.spatial.distance.pdist(rows) for rows in (a, b))
    return 2 * len(own) * _huber(own / own.mean() - others / others.mean()) / len(a) ** 2


def _angles(a: np.ndarray, b: np.ndarray) -> float:
    """One triple after the other; a corner that is also an end has no angle."""

    def cosine(rows: np.ndarray, i: int, j: int, k: int) -> float:
        if i in (j, k):
            return 0.0
        return 1 - scipy.spatial.distance.cosine(rows[j] - rows[i], rows[k] - rows[i])

    corners = list(itertools.product(range(len(a)), repeat=3))
    return _huber(np.array([cosine(a, *corner) - cosine(b, *corner) for corner in corners]))


# The formulas of the docstrings once more: in numpy, one pair after the other, and without the small numbers that keep
# divisors from zero.
@pytest.mark.parametrize(
    ("loss", "inputs", "options", "by_hand"),
    [
        (spatial_affinity_loss, WIDER, {}, _affinities(1, 1)),
        (spatial_affinity_loss, SAME, {}, _affinities(1, 1)),
        (spatial_affinity_loss, WIDER, {"pool": 2}, _affinities(2, 1)),
        (
            channel_affinity_loss,
            SAME,
            {},
            _over_images(lambda a, b: np.abs(_cosines(a.reshape(3, -1)) - _cosines(b.reshape(3, -1)))),
        ),
        (instance_affinity_loss, WIDER, {}, lambda a, b: np.abs(_gram(a) - _gram(b)).mean()),
        (instance_affinity_loss, ROWS, {}, lambda a, b: np.abs(_gram(a) - _gram(b)).mean()),
        (instance_affinity_loss, ROWS, {"norm": "l2"}, lambda a, b: ((_gram(a) - _gram(b)) ** 2).mean()),
        (rkd_distance_loss, ROWS, {}, _distances),
        (rkd_angle_loss, ROWS, {}, _angles),
        (attention_loss, WIDER, {"form": "fakd"}, _over_images(lambda a, b: np.abs(_energy(a) - _energy(b)))),
        (attention_loss, WIDER, {"form": "at"}, _over_images(lambda a, b: (_energy(a) - _energy(b)) ** 2)),
        (statistics_loss, WIDER, {"norm": "l1"}, _over_images(lambda a, b: np.abs(a.mean(0) ** 2 - b.mean(0) ** 2))),
        (statistics_loss, WIDER, {"norm": "l2"}, _over_images(lambda a, b: (a.mean(0) ** 2 - b.mean(0) ** 2) ** 2)),
        (pkt_loss, ROWS, {}, _divergence),
        (pairwise_affinity_loss, WIDER, {"pool": None}, _affinities(1, 2)),
        (pairwise_affinity_loss, WIDER, {"pool": 2, "pool_type": "max"}, _affinities(2, 2, np.max)),
    ],
)
def test_value_is_the_formulas(
    loss: Callable[..., Tensor], inputs: tuple[Tensor, Tensor], options: dict[str, Any], by_hand: Callable[..., float]
) -> None:
    expected = by_hand(*(features.numpy() for features in inputs))
    assert loss(*inputs, **options).item() == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("pdf", ["laplace", "gaussian"])
def test_vid_value_is_the_negative_logarithm_of_the_density(pdf: Any) -> None:
    location, target = SAME[0], 0.5 * SAME[0]
    scale = SAME[1].abs() + 0.1
    value = vid_loss(location, target, scale=scale, pdf=pdf, constant=True)
    # What the code of the paper adds is the constant of three Gaussians, for one density as for the other.
    added = 1.5 * math.log(2 * math.pi)
    if pdf == "laplace":
        density = torch.distributions.Laplace(location, 0.1 * scale + 1e-8)
    else:
        density = torch.distributions.Normal(location, (0.001 * scale + 1e-8).sqrt())
        added -= 0.5 * math.log(2 * math.pi)
    assert value.item() == pytest.approx(added - density.log_prob(target).mean().item(), rel=1e-12)
    without = vid_loss(location, target, scale=scale, pdf=pdf)
    assert (value - without).item() == pytest.approx(1.5 * math.log(2 * math.pi), rel=1e-12)


def test_masked_distance_value_is_the_definitions() -> None:
    image, teacher_image = 0.5 * s(2, 3, 4, 4) + 0.5, 0.5 * t(2, 3, 4, 4) + 0.5
    gt = 0.5 * s(2, 3, 4, 4).flip(-1) + 0.5
    mask = improvement_mask(image, teacher_image, gt)
    assert mask.shape == (2, 1, 4, 4)
    x, y, z = (images.numpy() for images in (image, teacher_image, gt))
    better = np.abs(x - z).mean(1) > np.abs(y - z).mean(1) + 0.01
    assert 0 < better.sum() < better.size and (mask[:, 0].numpy() == better).all()
    student, teacher = s(2, 4, 4, 4), t(2, 4, 4, 4)
    value = masked_distance_loss(student, teacher, mask=mask)
    distance = np.sqrt(((teacher - student).numpy() ** 2).mean(1))
    assert value.item() == pytest.approx(np.where(better, distance, 0).mean(), rel=1e-12)


STATISTICS: dict[tuple[str, int], Callable[[np.ndarray], np.ndarray]] = {
    ("mean", 1): lambda x: x.mean(1),
    ("mean", 2): lambda x: x.mean(1) ** 2,
    ("power_mean", 2): lambda x: (x**2).mean(1),
    ("max", 1): lambda x: x.max(1),
    ("min", 1): lambda x: x.min(1),
}


@pytest.mark.parametrize(("statistic", "power"), STATISTICS)
def test_statistics_are_taken_over_the_channels(statistic: Any, power: int) -> None:
    student = s(2, 3, 4, 4)
    options = {} if statistic in ("max", "min") else {"power": power}
    # From a map of zeros the mean absolute difference is the mean absolute map.
    value = statistics_loss(student, torch.zeros(2, 5, 4, 4), statistic=statistic, **options)
    expected = np.abs(STATISTICS[statistic, power](student.numpy())).mean()
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_hint_is_the_mean_square() -> None:
    assert hint_loss(*SAME).item() == pytest.approx((SAME[0] - SAME[1]).square().mean().item(), rel=1e-14)


CASES = {
    "spatial": spatial_affinity_loss,
    "spatial_pooled": lambda a, b: spatial_affinity_loss(a, b, pool=2),
    "channel": channel_affinity_loss,
    "instance": instance_affinity_loss,
    "attention_fakd": attention_loss,
    "attention_at": lambda a, b: attention_loss(a, b, form="at"),
    "mean": statistics_loss,
    "mean_cubed": lambda a, b: statistics_loss(a, b, power=3, norm="l2"),
    "mean_normalized": lambda a, b: statistics_loss(a, b, normalize=True),
    "power_mean": lambda a, b: statistics_loss(a, b, statistic="power_mean"),
    "max": lambda a, b: statistics_loss(a, b, statistic="max"),
    "min": lambda a, b: statistics_loss(a, b, statistic="min"),
    "pairwise": pairwise_affinity_loss,
    "pairwise_unpooled": lambda a, b: pairwise_affinity_loss(a, b, pool=None),
    "pkt": pkt_loss,
    "pkt_rows": lambda a, b: pkt_loss(a, b, grid=2, reduction="rows"),
    "rkd_distance": rkd_distance_loss,
    "rkd_angle": lambda a, b: rkd_angle_loss(a, b, grid=2),
    "instance_squared": lambda a, b: instance_affinity_loss(a, b, norm="l2"),
    "vid_laplace": _vid,
    "vid_gaussian": lambda a, b: _vid(a, b, pdf="gaussian"),
    "hint": hint_loss,
    "masked": _masked,
}
every_loss = pytest.mark.parametrize("loss", CASES.values(), ids=CASES.keys())
OVER_THE_BATCH = {instance_affinity_loss, CASES["instance_squared"]}


@every_loss
def test_gradient_agrees_with_finite_differences(loss: Callable[..., Tensor]) -> None:
    student, teacher = s(2, 3, 4, 4).requires_grad_(), t(2, 3, 4, 4)
    assert gradcheck(loss, (student, teacher))


@every_loss
def test_student_has_a_gradient_and_the_teacher_none(loss: Callable[..., Tensor]) -> None:
    student, teacher = s(2, 3, 4, 4).requires_grad_(), t(2, 3, 4, 4).requires_grad_()
    value = loss(student, teacher)
    assert value.shape == ()
    assert value.requires_grad
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@every_loss
@pytest.mark.parametrize("student_too", [False, True], ids=["teacher", "both"])
@pytest.mark.parametrize("whole", [False, True], ids=["one_position", "everything"])
def test_gradient_is_finite_and_moderate_at_zero_vectors(
    loss: Callable[..., Tensor], student_too: bool, whole: bool
) -> None:
    student, teacher = s(2, 3, 4, 4), t(2, 3, 4, 4)
    for features in (student, teacher) if student_too else (teacher,):
        features[(...,) if whole else (..., 0, 0)] = 0
    student.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # Dividing by eps alone would give 1e6 and more; a Gaussian's gradient is as large as 1 / variance, up to 1e4 here.
    assert student.grad.abs().max() < (2e4 if _name(loss) == "vid_gaussian" else 10)


@every_loss
def test_is_zero_at_equality(loss: Callable[..., Tensor]) -> None:
    student = s(2, 3, 4, 4).float().requires_grad_()
    value = loss(student, student.detach().clone())
    value.backward()
    if loss is _vid or loss is CASES["vid_gaussian"]:
        factor = 0.1 if loss is _vid else 0.001
        scale = factor * (student.detach().double().abs() + 0.1) + 1e-8
        expected = (torch.log(2 * scale) if loss is _vid else torch.log(scale) / 2).mean().item()
    else:
        expected = 0.0
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() <= 1e-6  # rounding of float32


@every_loss
def test_takes_a_batch_of_one(loss: Callable[..., Tensor]) -> None:
    student, teacher = s(1, 3, 4, 4).requires_grad_(), t(1, 3, 4, 4)
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # One image has nothing to be compared with.
    assert (student.grad.abs().max() < 1e-15) == (loss in OVER_THE_BATCH)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_under_autocast(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    student, teacher = s(2, 3, 4, 4).to(dtype), t(2, 3, 4, 4).to(dtype)
    expected = loss(student.double(), teacher.double())
    student.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = loss(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    # vid's scale is made in the caller's half precision, so it alone is rounded before the loss sees it.
    assert value.item() == pytest.approx(expected.item(), rel=1e-2 if "vid" in _name(loss) else 1e-5)
    assert student.grad is not None
    assert student.grad.dtype == dtype
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def _name(loss: Callable[..., Tensor]) -> str:
    return next(name for name, case in CASES.items() if case is loss)


@every_loss
def test_does_not_depend_on_memory_format_or_order_of_the_batch(loss: Callable[..., Tensor]) -> None:
    student, teacher = s(3, 3, 4, 4), t(3, 3, 4, 4)
    expected = loss(student, teacher).item()
    last = loss(
        student.to(memory_format=torch.channels_last).requires_grad_(), teacher.to(memory_format=torch.channels_last)
    )
    last.backward()
    assert last.item() == pytest.approx(expected, rel=1e-12)
    order = torch.tensor([2, 0, 1])
    assert loss(student[order], teacher[order]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["spatial", "attention_at", "pkt", "rkd_distance", "rkd_angle", "vid_laplace", "masked"]
)
def test_compiles_without_a_graph_break_to_the_same_value_and_gradient(name: str) -> None:
    loss = CASES[name]
    student, teacher = s(2, 3, 4, 4).requires_grad_(), t(2, 3, 4, 4)
    expected = loss(student, teacher)
    (grad,) = torch.autograd.grad(expected, student)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(student, teacher)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, student)[0], grad)


@pytest.mark.parametrize(
    "loss",
    [
        spatial_affinity_loss,
        attention_loss,
        statistics_loss,
        pairwise_affinity_loss,
        pkt_loss,
        rkd_distance_loss,
        rkd_angle_loss,
        instance_affinity_loss,
    ],
)
def test_widths_may_differ(loss: Callable[..., Tensor]) -> None:
    student = s(2, 3, 4, 4).requires_grad_()
    loss(student, t(2, 8, 4, 4)).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "loss", [channel_affinity_loss, pkt_loss, rkd_distance_loss, rkd_angle_loss, instance_affinity_loss]
)
def test_sizes_may_differ_where_the_formula_allows(loss: Callable[..., Tensor]) -> None:
    assert loss(s(2, 3, 4, 4), t(2, 3, 8, 6)).isfinite()


@pytest.mark.parametrize(
    ("loss", "shape", "names"),
    [
        (spatial_affinity_loss, (2, 3, 4, 6), "width"),
        (pairwise_affinity_loss, (2, 3, 8, 4), "height"),
        (attention_loss, (1, 3, 4, 4), "batch size"),
        (statistics_loss, (2, 3, 8, 8), "height and width"),
        (channel_affinity_loss, (2, 5, 4, 4), "channels"),
        (hint_loss, (2, 5, 4, 4), "channels"),
        (_vid, (2, 5, 4, 4), "channels"),
        (_masked, (2, 3, 4, 2), "width"),
        (instance_affinity_loss, (3, 3, 4, 4), "batch size"),
        (pkt_loss, (3, 3, 4, 4), "batch size"),
        (rkd_distance_loss, (3, 3, 4, 4), "batch size"),
        (rkd_angle_loss, (3, 3, 4, 4), "batch size"),
    ],
)
def test_taps_that_cannot_be_compared_are_named_with_the_reason(
    loss: Callable[..., Tensor], shape: tuple[int, ...], names: str
) -> None:
    with pytest.raises(MtkdError, match=f"it (compares|is) .*their {names} differ") as caught:
        loss(s(2, 3, 4, 4), t(*shape))
    assert "(2, 3, 4, 4)" in str(caught.value)
    assert str(shape) in str(caught.value)


def test_wrong_rank_is_an_error() -> None:
    with pytest.raises(MtkdError, match=r"takes \(N, C, H, W\) maps"):
        spatial_affinity_loss(s(2, 16, 3), t(2, 16, 3))
    with pytest.raises(MtkdError, match="number of axes"):
        pkt_loss(s(2, 16), t(2, 16, 2, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: attention_loss(*SAME, form="sum"),  # pyright: ignore[reportArgumentType]
        lambda: statistics_loss(*SAME, statistic="median"),  # pyright: ignore[reportArgumentType]
        lambda: statistics_loss(*SAME, norm="L1"),  # pyright: ignore[reportArgumentType]
        lambda: statistics_loss(*SAME, statistic="max", power=2),
        lambda: pairwise_affinity_loss(*SAME, pool_type="mean"),  # pyright: ignore[reportArgumentType]
        lambda: instance_affinity_loss(*ROWS, norm="L2"),  # pyright: ignore[reportArgumentType]
        lambda: pkt_loss(*ROWS, reduction="sum"),  # pyright: ignore[reportArgumentType]
        lambda: vid_loss(*SAME, scale=SAME[1].abs(), pdf="normal"),  # pyright: ignore[reportArgumentType]
        lambda: vid_loss(*SAME, scale=torch.ones(2, 2, 4, 4)),
        lambda: masked_distance_loss(*SAME, mask=torch.ones(2, 1, 6, 6)),
        lambda: masked_distance_loss(*SAME, mask=torch.ones(2, 3, 4, 4)),
        lambda: improvement_mask(SAME[0], SAME[1], WIDER[1]),
    ],
)
def test_options_outside_their_set_are_errors(call: Callable[[], Tensor]) -> None:
    with pytest.raises(MtkdError):
        call()


def _dense(student: Tensor, teacher: Tensor, power: int) -> Tensor:
    u, v = ((x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8)).flatten(2) for x in (student, teacher))
    return (u.mT @ u - v.mT @ v).abs().pow(power).mean()


@pytest.mark.parametrize("block", [1, 16 * 5, 1000, 1 << 30])
@pytest.mark.parametrize("power", [1, 2])
def test_blocks_are_the_dense_formula_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, block: int, power: int
) -> None:
    monkeypatch.setattr(affinity, "BLOCK_ELEMENTS", block)
    student, teacher = torch.randn(2, 5, 7, 9, dtype=torch.float64), torch.randn(2, 8, 7, 9, dtype=torch.float64)
    student.requires_grad_()
    loss = spatial_affinity_loss if power == 1 else lambda a, b: pairwise_affinity_loss(a, b, pool=None)
    value, expected = loss(student, teacher), _dense(student, teacher, power)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    grads = [torch.autograd.grad(3 * x, student)[0] for x in (value, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-16)


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned, in the forward or the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("loss", [spatial_affinity_loss, lambda a, b: pairwise_affinity_loss(a, b, pool=None)])
def test_no_tensor_grows_with_the_square_of_the_positions(
    monkeypatch: pytest.MonkeyPatch, loss: Callable[..., Tensor]
) -> None:
    batch, width, positions = 2, 3, 24 * 24
    monkeypatch.setattr(affinity, "BLOCK_ELEMENTS", 40_000)
    student, teacher = torch.randn(batch, width, 24, 24, requires_grad=True), torch.randn(batch, width, 24, 24)
    saved = []
    with (
        _LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
    ):
        loss(student, teacher).backward()
    assert largest.elements <= 40_000 < batch * positions**2 / 10
    assert max(x.numel() for x in saved) <= batch * width * positions


def test_pair_wise_norm_can_be_a_constant_of_the_gradient() -> None:
    student, teacher = s(2, 3, 4, 4).requires_grad_(), t(2, 5, 4, 4)
    u = student / student.detach().norm(dim=1, keepdim=True)
    v = F.normalize(teacher, dim=1)
    expected = (u.flatten(2).mT @ u.flatten(2) - v.flatten(2).mT @ v.flatten(2)).square().mean()
    value = pairwise_affinity_loss(student, teacher, pool=None, detach_norm=True)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    grads = [torch.autograd.grad(x, student)[0] for x in (value, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-12)
    plain = torch.autograd.grad(pairwise_affinity_loss(student, teacher, pool=None), student)[0]
    assert (plain - grads[0]).abs().max() > 1e-3


def test_pkt_pools_maps_to_the_same_cells_in_both_networks() -> None:
    student, teacher = s(2, 3, 8, 8), t(2, 5, 4, 4)
    rows = [F.avg_pool2d(x, x.shape[-1] // 2).permute(0, 2, 3, 1).reshape(8, x.shape[1]) for x in (student, teacher)]
    value = pkt_loss(student, teacher, grid=2)
    assert value.item() == pytest.approx(pkt_loss(*rows).item(), rel=1e-12)
    assert pkt_loss(student, teacher, grid=2, reduction="rows").item() == pytest.approx(8 * value.item(), rel=1e-12)


def test_published_implementations_give_these_numbers() -> None:
    """What RepDistiller's RKDLoss (25 and 50) and Similarity gave on these vectors."""
    both = 25 * rkd_distance_loss(*ROWS) + 50 * rkd_angle_loss(*ROWS)
    assert both.item() == pytest.approx(11.283275875195056, rel=1e-12)
    assert instance_affinity_loss(*ROWS, norm="l2").item() == pytest.approx(0.45142120004537656, rel=1e-12)


def test_rkd_takes_the_vectors_of_pkt_and_a_sample_of_angles() -> None:
    student, teacher = s(2, 3, 8, 8), t(2, 5, 4, 4)
    rows = [F.avg_pool2d(x, x.shape[-1] // 2).permute(0, 2, 3, 1).reshape(8, x.shape[1]) for x in (student, teacher)]
    for loss in (rkd_distance_loss, rkd_angle_loss):
        assert loss(student, teacher, grid=2).item() == pytest.approx(loss(*rows).item(), rel=1e-12)
    torch.manual_seed(0)
    chosen = torch.rand(8).topk(5).indices
    torch.manual_seed(0)
    sampled = rkd_angle_loss(student, teacher, grid=2, sample=5)
    assert sampled.item() == pytest.approx(rkd_angle_loss(*(x[chosen] for x in rows)).item(), rel=1e-12)
    assert rkd_angle_loss(*rows, sample=8).item() == rkd_angle_loss(*rows).item()


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_rkd_is_finite_where_vectors_are_equal(loss: Callable[..., Tensor]) -> None:
    student, teacher = s(4, 6), t(4, 6)
    student[1], teacher[3] = student[0], teacher[2]
    value = loss(student.requires_grad_(), teacher)
    value.backward()
    assert value.isfinite() and student.grad is not None
    assert student.grad.isfinite().all() and student.grad.abs().max() < 10


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 4, 4), (2, 1, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("pdf", ["laplace", "gaussian"])
def test_vid_scale_may_be_coarser_and_receives_a_gradient(shape: tuple[int, ...], pdf: Any) -> None:
    scale = torch.rand(shape, dtype=torch.float64) + 0.5
    full = scale.expand(2, 3, 4, 4)
    value = vid_loss(*SAME, scale=scale.requires_grad_(), pdf=pdf)
    assert value.item() == pytest.approx(vid_loss(*SAME, scale=full, pdf=pdf).item(), rel=1e-12)
    value.backward()
    assert scale.grad is not None
    assert (scale.grad != 0).all()


def test_vid_is_a_density_up_to_a_constant() -> None:
    value = vid_loss(*SAME, scale=torch.full((2, 3, 4, 4), 3.0, dtype=torch.float64))
    laplace = torch.distributions.Laplace(SAME[0], 0.3 + 1e-8)
    assert value.item() == pytest.approx(-laplace.log_prob(SAME[1]).mean().item(), rel=1e-12)
    value = vid_loss(*SAME, scale=torch.full((2, 3, 4, 4), 3.0, dtype=torch.float64), pdf="gaussian")
    normal = torch.distributions.Normal(SAME[0], math.sqrt(0.003 + 1e-8))
    expected = -normal.log_prob(SAME[1]).mean().item() - math.log(2 * math.pi) / 2
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_mask_at_gt_size_is_pooled_to_features_at_lq_size() -> None:
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    mask[:, :, :2, :2] = 1
    mask[:, :, 2, 0] = 1
    student = s(2, 3, 4, 4).requires_grad_()
    value = masked_distance_loss(student, t(2, 3, 4, 4), mask=mask)
    distance = (student - t(2, 3, 4, 4)).square().mean(1).sqrt()
    expected = (distance[:, 0, 0] + 0.25 * distance[:, 1, 0]).sum() / 32
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    value.backward()
    assert student.grad is not None
    assert (student.grad[:, :, 2:] == 0).all()


def test_improvement_mask_asks_for_the_margin() -> None:
    gt = torch.full((1, 3, 1, 3), 0.5)
    teacher = gt + 0.02
    student = gt - torch.tensor([0.025, 0.035, 0.001])
    assert improvement_mask(student.requires_grad_(), teacher, gt).tolist() == [[[[0, 1, 0]]]]
    assert improvement_mask(student, teacher, gt, margin=0.0).tolist() == [[[[1, 1, 0]]]]
    assert not improvement_mask(student, teacher, gt).requires_grad
