"""DUKD: operations and their inverse, the images it makes, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError, Task
from mtkd.data.resize import imresize
from mtkd.methods.base import MethodConfig
from mtkd.methods.dukd import DUKD, draw_ops, restored, transformed
from tests.methods.setups import SCALE, TASK, batch, edsr

SUBSETS = list(product([False, True], repeat=4))


def dukd(terms: Mapping[str, Any] | None = None, student: nn.Module | None = None, **options: Any) -> DUKD:
    torch.manual_seed(0)
    return DUKD(student or edsr(), {"teacher": edsr(12)}, TASK, MethodConfig(terms=terms, options=options))


class Seen(nn.Module):
    """Nearest-neighbour upscaling that keeps what it was given."""

    scale = SCALE

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return self.gain * x.repeat_interleave(SCALE, -2).repeat_interleave(SCALE, -1)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_restored_undoes_every_subset(subset: tuple[bool, ...]) -> None:
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    ops = torch.tensor([subset, subset])
    changed = transformed(x, ops)
    torch.testing.assert_close(restored(changed, ops), x)
    assert torch.equal(changed, x) != any(subset)


def test_all_subsets_in_one_batch_are_undone_image_by_image() -> None:
    x, ops = torch.rand(16, 3, 4, 4, dtype=torch.float64), torch.tensor(SUBSETS)
    torch.testing.assert_close(restored(transformed(x, ops), ops), x)
    alone = [transformed(x[i : i + 1], ops[i : i + 1]) for i in range(16)]
    assert torch.equal(transformed(x, ops), torch.cat(alone))


def test_the_order_of_undoing_matters() -> None:
    """Repeating the order, as the authors' code does, fails exactly where transposition meets one flip alone."""
    x = torch.rand(16, 3, 4, 4, dtype=torch.float64)
    ops = torch.tensor(SUBSETS)
    wrong = transformed(transformed(x, ops), ops)
    fails = [not torch.allclose(wrong[i], x[i]) for i in range(16)]
    assert fails == [transpose and vertical != horizontal for _, vertical, horizontal, transpose in SUBSETS]


@pytest.mark.parametrize(
    ("column", "operation"),
    [
        (0, lambda x: 1 - x),
        (1, lambda x: x.flip(-2)),
        (2, lambda x: x.flip(-1)),
        (3, lambda x: x.transpose(-1, -2)),
    ],
)
def test_operations_are_what_they_are_called(column: int, operation: Callable[[Tensor], Tensor]) -> None:
    x, ops = torch.rand(1, 3, 4, 4), torch.zeros(1, 4, dtype=torch.bool)
    ops[0, column] = True
    assert torch.equal(transformed(x, ops), operation(x))


def test_ops_are_drawn_with_their_probability() -> None:
    torch.manual_seed(0)
    ops = draw_ops(4000, 0.3, device="cpu")
    torch.testing.assert_close(ops.float().mean(0), torch.full((4,), 0.3), atol=0.03, rtol=0)
    assert draw_ops(50, 1.0, device="cpu", transpose=False).all(0).tolist() == [True, True, True, False]
    assert not draw_ops(50, 0.0, device="cpu").any()


def test_tiles_are_distinct_pieces_of_their_own_gt() -> None:
    method, given = dukd(tiles=3), batch(2, 4, 6)
    tiles = method._tiles(given)
    assert tiles.shape == (6, 3, 4, 6)
    for image in range(2):
        grid = [given.gt[image, :, y : y + 4, x : x + 6] for y in (0, 4) for x in (0, 6)]
        found = [
            next(place for place, piece in enumerate(grid) if torch.equal(piece, tile))
            for tile in tiles[3 * image : 3 * image + 3]
        ]
        assert len(set(found)) == 3


def test_zoom_out_is_matlabs_bicubic_of_lq() -> None:
    given = batch(2, 9, 8)
    student = Seen()
    method = dukd({"zoom_out": {}}, student)
    losses = method(given, 0).losses
    label = given.lq[..., :8, :]
    assert torch.equal(student.inputs[-1], imresize(label, 1 / SCALE))
    expected = (Seen()(imresize(label, 1 / SCALE)) - label).abs().mean()
    torch.testing.assert_close(losses["zoom_out"], expected)


def test_zoom_out_target_is_the_teachers_image_of_the_smaller_lq() -> None:
    given = batch(2, 8, 8)
    method = dukd({"zoom_out_target": {}})
    smaller = imresize(given.lq, 1 / SCALE)
    expected = (method.student(smaller) - method.teachers["teacher"](smaller)).abs().mean()
    torch.testing.assert_close(method(given, 0).losses["zoom_out_target"], expected)


def test_zoom_in_compares_the_restored_answer_with_the_teachers() -> None:
    """All four operations always on: the student sees changed tiles, the teacher the tiles themselves."""
    given, student = batch(2, 4, 4), Seen()
    method = dukd({"zoom_in": {}}, student, consistency=1.0)
    torch.manual_seed(3)
    tiles = method._tiles(given)
    torch.manual_seed(3)
    value = method(given, 0).losses["zoom_in"]
    torch.testing.assert_close(student.inputs[0][2:], (1 - tiles).flip(-2).flip(-1).mT)
    answer = tiles.repeat_interleave(SCALE, -2).repeat_interleave(SCALE, -1)
    torch.testing.assert_close(value, (answer - method.teachers["teacher"](tiles)).abs().mean())


def test_pixel_and_target_are_those_of_output_distillation() -> None:
    method, given = dukd(), batch()
    out = method(given, 0)
    sr = method.student(given.lq)
    torch.testing.assert_close(out.sr, sr)
    torch.testing.assert_close(out.losses["pixel"], (sr - given.gt).abs().mean())
    torch.testing.assert_close(out.losses["target"], (sr - method.teachers["teacher"](given.lq)).abs().mean())


def test_terms_that_are_off_cost_no_pass() -> None:
    student = Seen()
    dukd({"pixel": {}, "target": {}}, student)(batch(2, 4, 4), 0)
    assert [len(x) for x in student.inputs] == [2]


def test_more_tiles_than_there_are_is_refused() -> None:
    with pytest.raises(MtkdError, match="scale\\^2 = 4 tiles"):
        dukd(tiles=5)
    assert DUKD(edsr(), {"t": edsr()}, Task(3, 8, 100), MethodConfig(options={"tiles": 9})).options.tiles == 9


@pytest.mark.parametrize(("option", "value"), [("tiles", 0), ("consistency", 1.5), ("consistency", -0.1)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(MtkdError, match=option):
        dukd(**{option: value})
