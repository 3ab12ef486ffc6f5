"""The on-line teacher: a shared tail, a mask that says where it is better, a block that learns to be better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.archs.swinir import SwinIR
from mtkd.contracts import MtkdError, Task
from mtkd.losses.features.elementwise import improvement_mask, masked_distance_loss
from mtkd.methods.base import MethodConfig
from mtkd.methods.online_teacher import OnlineTeacher, TeacherBlock, feature_channels, with_twin
from tests.methods.setups import SCALE, TASK, batch, edsr, fsrcnn, rcan, wake

ALL = {name: {} for name in OnlineTeacher.terms}


def swinir(upsampler: Any = "pixelshuffledirect") -> SwinIR:
    return SwinIR(
        img_size=8, window_size=8, embed_dim=6, depths=(2,), num_heads=(1,), upscale=SCALE, upsampler=upsampler
    )


def build(student: nn.Module | None = None, terms: Any = None, task: Task = TASK, **options: Any) -> OnlineTeacher:
    torch.manual_seed(0)
    options = {"num_feat": 8, "num_block": 1, **options}
    return OnlineTeacher(student or edsr(), {}, task, MethodConfig(terms=terms, options=options))


@pytest.mark.parametrize(
    ("make", "tail", "channels"),
    [
        (edsr, "upsample", 8),
        (rcan, "upsample", 8),
        (fsrcnn, "last_layer", 8),
        (swinir, "upsample", 6),
        (lambda: swinir("pixelshuffle"), "conv_before_upsample", 6),
    ],
)
def test_tail_runs_once_for_both_and_is_the_students(make: Callable[[], nn.Module], tail: str, channels: int) -> None:
    net, lq = make().eval(), torch.rand(2, 3, 8, 16)
    assert feature_channels(net, tail) == channels
    same = with_twin(net, tail, lq, lambda features: features)
    torch.testing.assert_close(same[:2], net(lq))
    torch.testing.assert_close(same[2:], net(lq))
    sr, other = with_twin(net, tail, lq, lambda features: 2 * features).chunk(2)
    torch.testing.assert_close(sr, net(lq))
    handle = net.get_submodule(tail).register_forward_pre_hook(lambda _m, x: (2 * x[0],))
    torch.testing.assert_close(other, net(lq))
    handle.remove()
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_teacher_that_is_better_by_the_margin_exactly_is_not_taken() -> None:
    gt = torch.zeros(1, 3, 1, 3)
    # Errors of 0.5 against 0.25: a quarter in three representable numbers, so that the tie is exact.
    sr, teacher_sr = torch.full_like(gt, 0.5), torch.full_like(gt, 0.25)
    teacher_sr[..., 1] -= 2**-20
    teacher_sr[..., 2] += 2**-20
    assert improvement_mask(sr, teacher_sr, gt, margin=0.25).tolist() == [[[[0.0, 1.0, 0.0]]]]


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 1.0])
def test_share_keeps_the_largest_gains_of_each_image(share: float) -> None:
    generator = np.random.default_rng(0)
    sr, teacher_sr, gt = generator.random((3, 2, 3, 5, 8))
    sr[1] = np.clip(sr[1] + 0.5, 0, 1)  # an image on which the teacher is better nearly everywhere
    mask = improvement_mask(*(torch.from_numpy(image) for image in (sr, teacher_sr, gt)), margin=0.01, share=share)
    gain = (np.abs(sr - gt) - np.abs(teacher_sr - gt)).mean(1)
    for found, own in zip(mask[:, 0].numpy(), gain, strict=True):
        kept = np.argsort(own, axis=None)[::-1][: max(1, round(share * own.size))]
        wanted = np.zeros(own.size)
        wanted[kept] = 1
        np.testing.assert_array_equal(found, wanted.reshape(own.shape) * (own > 0.01))


def test_share_follows_nowhere_where_the_teacher_is_worse() -> None:
    gt = torch.zeros(1, 3, 2, 2)
    assert not improvement_mask(gt, gt + 0.1, gt, margin=0.0, share=0.5).any()


def test_trying_out_the_tail_leaves_the_network_and_the_random_state_alone() -> None:
    net = swinir().train()
    net.norm.eval()
    before = torch.get_rng_state()
    feature_channels(net, "upsample")
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training and net.layers.training and not net.norm.training


class Bypassed(nn.Module):
    """An image-level skip goes around the tail."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tail = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(self.first(x))


@pytest.mark.parametrize(
    ("net", "tail", "text"),
    [
        (edsr(), "upsampler", "no module 'upsampler'.*upsample"),
        (edsr(), "", "no module ''"),
        (edsr(), "conv_after_body", "no chain of layers"),
        (edsr(), "body.0.relu.x", "no module"),
        (Bypassed(), "tail", "no chain of layers"),
        (rcan(), "body.0.residual_group.0.rcab.3.attention.1", "no chain of layers|last such map"),
    ],
)
def test_wrong_tails_are_errors(net: nn.Module, tail: str, text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        build(net, tail=tail)


def test_terms_are_the_documented_ones() -> None:
    method, given = build(terms=ALL, margin=-1.0), batch()
    assert {name: term.weight for name, term in method.terms.items()} == {
        "pixel": 1.0,
        "teacher_pixel": 1.0,
        "distill": 0.2,
        "image_distill": None,
        "image_control": None,
    }
    seen: list[Tensor] = []

    def twin(features: Tensor) -> Tensor:
        rms = features.square().mean((1, 2, 3), keepdim=True).sqrt()
        delta = method.block(features / rms, given.gt)
        seen.extend((features / rms, features / rms + delta))
        return features + rms * delta

    sr, teacher_sr = with_twin(method.student, "upsample", given.lq, twin).chunk(2)
    losses = method(given, 0).losses
    mask = improvement_mask(sr, teacher_sr, given.gt, margin=-1.0)
    assert mask.all()
    torch.testing.assert_close(losses["pixel"], F.l1_loss(sr, given.gt))
    torch.testing.assert_close(losses["teacher_pixel"], F.l1_loss(teacher_sr, given.gt))
    torch.testing.assert_close(losses["distill"], masked_distance_loss(*seen, mask=mask))
    torch.testing.assert_close(losses["image_distill"], F.l1_loss(sr, teacher_sr))
    torch.testing.assert_close(losses["image_control"], losses["pixel"])


def test_student_follows_only_where_the_teacher_is_better() -> None:
    out = build(terms=ALL, margin=0.5)(batch(), 0)
    assert out.logs["mask_fraction"] == 0
    for name in ("distill", "image_distill", "image_control"):
        assert out.losses[name] == 0
    sum(out.losses.values()).backward()


def test_distillation_trains_the_student_and_not_the_teacher() -> None:
    for term in ("distill", "image_distill"):
        method = build(terms=ALL, margin=-1.0)
        method(batch(), 0).losses[term].backward()
        assert all(p.grad is None or not p.grad.any() for p in method.block.parameters())
        assert method.student.conv_first.weight.grad.any()


def test_teacher_starts_where_the_student_is() -> None:
    logs = build()(batch(), 0).logs
    assert abs(float(logs["teacher_gain_db"])) < 0.5


def test_gradient_is_finite_where_teacher_and_student_agree() -> None:
    method = build(terms=ALL, margin=-1.0)
    with torch.no_grad():
        method.block.last.weight.zero_()
    sum(method(batch(), 0).losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("detach", [False, True])
def test_detach_student_keeps_the_teacher_out_of_the_body(detach: bool) -> None:
    method = build(detach_student=detach)
    method(batch(), 0).losses["teacher_pixel"].backward()
    body = method.student.conv_first.weight.grad
    assert (body is None or not body.any()) == detach
    assert method.student.conv_last.weight.grad.any()
    assert all(p.grad is not None for p in method.block.parameters())


def test_teacher_learns_to_be_better_and_the_mask_opens() -> None:
    method, given = build(code_channels=8, code_stride=1, num_feat=16, margin=0.002), batch(2, 8, 8)
    optimizer = torch.optim.Adam(method.block.parameters(), 5e-3)
    for step in range(40):
        method(given, step).losses["teacher_pixel"].backward()
        optimizer.step()
        method.zero_grad()
    logs = method(given, 40).logs
    assert logs["teacher_gain_db"] > 0.5
    assert logs["mask_fraction"] > 0.1


def test_teacher_sees_gt_through_the_bottleneck_alone() -> None:
    """Within one position of the code there are code_channels numbers, however many pixels of gt it covers."""
    block = TeacherBlock(8, SCALE, num_feat=8, num_block=1, code_channels=3, code_stride=4)
    code = block.encoder(F.pixel_unshuffle(torch.rand(1, 3, 32, 32), SCALE))
    assert code.shape == (1, 3, 4, 4)


def test_features_that_are_255_times_larger_give_the_same_distance() -> None:
    def distance(img_range: float) -> Tensor:
        net = edsr()
        net.img_range = img_range
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        return build(net, margin=-1.0)(batch(), 0).losses["distill"]

    torch.manual_seed(1)
    large = distance(255.0)
    torch.manual_seed(1)
    torch.testing.assert_close(distance(1.0), large, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [(8, 8), (11, 13)], ids=str)
def test_a_student_that_pads_inside(size: tuple[int, int]) -> None:
    net = swinir()
    wake(net)
    out = build(net, terms=ALL, margin=-1.0)(batch(2, *size), 0)
    sum(out.losses.values()).backward()
    assert all(torch.isfinite(value) for value in out.losses.values())


def test_block_is_not_deployed() -> None:
    method = build()
    assert method.deployable(method.student) is method.student
    assert not any("block" in key for key in method.student.state_dict())


def test_pixel_alone_is_plain_training() -> None:
    method, given = build(terms={"pixel": {}}), batch()
    out = method(given, 0)
    assert set(method.state_dict()) == {f"student.{key}" for key in method.student.state_dict()}
    torch.testing.assert_close(out.losses["pixel"], F.l1_loss(method.student(given.lq), given.gt))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"terms": {"pixel": {}, "distill": {}}}, "teacher_pixel_opt"),
        ({"code_channels": 0}, "code_channels"),
        ({"share": 0.0}, "share must be above 0"),
    ],
)
def test_wrong_options_are_errors(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        build(**changed)
