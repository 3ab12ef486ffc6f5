"""CRD: what is contrasted with what, and what the queue holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd.archs.edsr import EDSR
from mtkd.contracts import Batch, MtkdError
from mtkd.methods.base import MethodConfig
from mtkd.methods.crd import CRD
from tests.methods.setups import TASK, batch, edsr


def crd(*, student: nn.Module | None = None, teacher: nn.Module | None = None, **options: Any) -> CRD:
    torch.manual_seed(0)
    options = {"positions": 6, "queue_size": 8, "radius": 1, "embed_dim": 5, **options}
    return CRD(student or edsr(), {"teacher": teacher or edsr(12)}, TASK, MethodConfig(options=options))


def on_images(given: Batch, *index: int) -> Batch:
    return given._replace(index=torch.tensor(index))


@torch.no_grad()
def by_hand(anchor: Tensor, positive: Tensor, others: Tensor, left_out: Tensor, temperature: float) -> float:
    total = 0.0
    for i in range(len(anchor)):
        own = math.exp(float(anchor[i] @ positive[i]) / temperature)
        rest = sum(
            math.exp(float(anchor[i] @ others[j]) / temperature) for j in range(len(others)) if not left_out[i, j]
        )
        total -= math.log(own / (own + rest))
    return total / len(anchor)


def test_value_is_the_formula_of_the_docstring() -> None:
    method, temperature = crd(temperature=0.5).double(), 0.5
    method(on_images(batch(2, 8, 8, seed=5, dtype=torch.float64), 6, 7), 0)
    queues = method.queue_student.clone(), method.queue_teacher.clone()
    given = on_images(batch(2, 8, 8, dtype=torch.float64), 0, 1)

    torch.manual_seed(4)
    places = method._places(torch.empty(2, 1, 8, 8))
    torch.manual_seed(4)
    value = method(given, 1).losses["contrast"]

    rows = {}
    networks = {"student": method.student, "teacher": method.teachers["teacher"].net}
    for name, net in networks.items():
        head = method.student_head if name == "student" else method.teacher_head
        x = net.conv_first((given.lq - net.mean) * net.img_range)
        deep = net.conv_after_body(net.body(x)) + x
        vectors = [deep[n, :, p // 8, p % 8] for n in range(2) for p in places[n].tolist()]
        rows[name] = nn.functional.normalize(head(torch.stack(vectors)), dim=1)
    flat = [(n, p // 8, p % 8) for n in range(2) for p in places[n].tolist()]
    near = [[a[0] == b[0] and max(abs(a[1] - b[1]), abs(a[2] - b[2])) <= 1 for b in flat] for a in flat]
    left_out = torch.cat([torch.tensor(near), torch.zeros(12, 8, dtype=torch.bool)], 1)
    s, t = rows["student"], rows["teacher"]
    expected = by_hand(s, t, torch.cat([t, queues[1]]), left_out, temperature) + by_hand(
        t, s, torch.cat([s, queues[0]]), left_out, temperature
    )
    assert float(value) == pytest.approx(expected, rel=1e-9)


def test_student_and_teacher_are_read_at_the_same_positions() -> None:
    torch.manual_seed(1)
    net = edsr()
    twin = edsr()
    twin.load_state_dict(net.state_dict())
    method = crd(student=net, teacher=twin)
    method.teacher_head.load_state_dict(method.student_head.state_dict())
    assert float(method(batch(), 0).logs["agreement"]) == pytest.approx(1.0, abs=1e-6)


def test_positions_of_an_image_are_distinct_and_at_most_all() -> None:
    places = crd(positions=50)._places(torch.empty(3, 1, 4, 5))
    assert places.shape == (3, 20)
    assert all(sorted(row) == list(range(20)) for row in places.tolist())


def test_neighbours_and_other_crops_of_the_same_image_are_no_negatives() -> None:
    method = crd(queue_size=3, radius=1)
    method.queue_image.copy_(torch.tensor([4, 9, -1]))
    # Two positions in each of three crops of 4 x 4; the first and the last crop come from image 4.
    places = torch.tensor([[0, 5], [0, 15], [3, 12]])
    left_out = method._left_out(places, 4, torch.tensor([4, 4, 2, 2, 4, 4]))
    assert left_out.int().tolist() == [
        [1, 1, 0, 0, 1, 1, 1, 0, 1],
        [1, 1, 0, 0, 1, 1, 1, 0, 1],
        [0, 0, 1, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 0, 0, 1],
        [1, 1, 0, 0, 1, 0, 1, 0, 1],
        [1, 1, 0, 0, 0, 1, 1, 0, 1],
    ]


def test_queue_is_a_ring_of_the_newest_embeddings() -> None:
    method = crd(queue_size=8, positions=3)
    fills, images = [], []
    for step in range(3):
        fills.append(float(method(on_images(batch(1, 8, 8, seed=step), step), step).logs["queue_fill"]))
        images.append(method.queue_image.tolist())
    assert fills == pytest.approx([3 / 8, 6 / 8, 1.0])
    assert images == [[0, 0, 0, -1, -1, -1, -1, -1], [0, 0, 0, 1, 1, 1, -1, -1], [2, 0, 0, 1, 1, 1, 2, 2]]
    assert int(method.queue_next) == 1
    for queue in (method.queue_student, method.queue_teacher):
        torch.testing.assert_close(queue.norm(dim=1), torch.ones(8))


def test_a_batch_larger_than_the_queue_keeps_its_last_rows() -> None:
    method = crd(queue_size=4, positions=6)
    method(on_images(batch(2, 8, 8), 3, 5), 0)
    assert method.queue_image.tolist() == [5, 5, 5, 5]


def test_an_empty_queue_counts_for_nothing() -> None:
    given = batch()
    values = []
    for size in (0, 1000):
        method = crd(queue_size=size)
        torch.manual_seed(2)
        values.append(method(given, 0).losses["contrast"])
    torch.testing.assert_close(*values)
    assert "queue_fill" not in crd(queue_size=0)(given, 0).logs


def test_a_filled_queue_makes_the_task_harder() -> None:
    method, given = crd(queue_size=200), on_images(batch(), 0, 1, 2)
    torch.manual_seed(2)
    before = method(on_images(given, 3, 4, 5), 0).losses["contrast"]
    torch.manual_seed(2)
    assert method(given, 1).losses["contrast"] > before


def test_teacher_head_learns_only_when_asked() -> None:
    learnt, frozen = crd(), crd(train_teacher_head=False)
    assert any(p is learnt.teacher_head.weight for p in learnt.param_groups()["main"])
    assert not any(p is frozen.teacher_head.weight for p in frozen.param_groups()["main"])
    sum(frozen(batch(), 0).losses.values()).backward()
    assert frozen.teacher_head.weight.grad is None
    assert frozen.student_head.weight.grad.abs().sum() > 0


def test_without_contrast_nothing_is_added_to_the_run() -> None:
    method = CRD(edsr(), {"teacher": edsr(12)}, TASK, MethodConfig(terms={"pixel": {}, "target": {}}))
    assert [name for name, _ in method.named_children()] == ["student", "teachers", "criteria"]
    assert list(method(batch(), 0).losses) == ["pixel", "target"]


def test_maps_of_other_sizes_cannot_be_compared() -> None:
    with pytest.raises(MtkdError, match="positions with positions"):
        crd(student_taps=["conv_after_body"], teacher_taps=["upsample"])


@pytest.mark.parametrize(
    ("option", "value"), [("positions", 0), ("temperature", 0.0), ("queue_size", -1), ("radius", -1)]
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(MtkdError, match=option):
        crd(**{option: value})


def test_contrast_brings_the_student_closer_to_the_teacher() -> None:
    method = crd(positions=16, queue_size=64, temperature=0.2)
    assert isinstance(method.student, EDSR)
    optimizer = torch.optim.Adam(method.param_groups()["main"], lr=2e-3)
    agreement = []
    for step in range(30):
        torch.manual_seed(step)
        out = method(on_images(batch(2, 8, 8, seed=step), step % 8, (step + 1) % 8), step)
        optimizer.zero_grad()
        out.losses["contrast"].backward()
        optimizer.step()
        agreement.append(float(out.logs["agreement"]))
    assert sum(agreement[-5:]) / 5 > sum(agreement[:5]) / 5 + 0.2
