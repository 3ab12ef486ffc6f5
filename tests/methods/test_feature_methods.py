"""FitNet, AT, PKT, SRKD and FAKD: their terms are the formulas on the right taps, and wrong taps fail at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd.archs.edsr import EDSR
from mtkd.archs.rcan import RCAN
from mtkd.archs.swinir import SwinIR
from mtkd.config import load_options
from mtkd.contracts import MtkdError
from mtkd.losses.features.affinity import channel_affinity_loss, instance_affinity_loss, spatial_affinity_loss
from mtkd.losses.features.elementwise import hint_loss
from mtkd.losses.features.relation import pkt_loss
from mtkd.losses.features.statistics import attention_loss, statistics_loss
from mtkd.methods.at import AT
from mtkd.methods.base import Method, MethodConfig, tapped
from mtkd.methods.fakd import FAKD, fakd_taps
from mtkd.methods.fitnet import FitNet
from mtkd.methods.pkt import PKT
from mtkd.methods.srkd import SRKD
from mtkd.methods.taps import deep_features, middle, thirds
from mtkd.training.loop import train
from tests.methods.setups import SCALE, TASK, batch, edsr, rcan
from tests.runs import make_images, make_teachers, run_options

ROOT = Path(__file__).parents[2]
RECIPES = [
    path for name in ("SRKD", "FAKD", "FitNet", "AT", "PKT") for path in (ROOT / "options/train" / name).glob("*.yml")
]
SINGLE = [SRKD, FitNet, AT, PKT]


def swinir() -> SwinIR:
    return SwinIR(
        img_size=16,
        embed_dim=8,
        depths=(1, 1, 1),
        num_heads=(2, 2, 2),
        window_size=8,
        mlp_ratio=1,
        upscale=SCALE,
        upsampler="pixelshuffledirect",
    )


def build(
    cls: type[Method],
    student: nn.Module,
    *teachers: nn.Module,
    terms: dict[str, dict[str, Any]] | None = None,
    **options: Any,
) -> Method:
    named = {f"t{i}": net for i, net in enumerate(teachers)}
    return cls(student, named, TASK, MethodConfig(terms=terms, options=options))


def maps(net: nn.Module, names: list[str], x: Tensor) -> list[Tensor]:
    return list(tapped(net, names, x)[1].values())


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected)
    assert actual > 0


# Where the papers look.


def wide(blocks: int) -> EDSR:
    return edsr(width=4, blocks=blocks)


def groups(number: int) -> RCAN:
    return RCAN(num_feat=4, num_group=number, num_block=1, squeeze_factor=4, upscale=SCALE)


def test_srkd_takes_the_papers_blocks() -> None:
    assert thirds(wide(10)) == ["body.3", "body.6", "body.9"]
    assert thirds(wide(3)) == ["body.0", "body.1", "body.2"]


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (wide(16), ["body.4", "body.9"]),
        (wide(32), ["body.9", "body.20"]),
        (groups(10), ["body.2", "body.6"]),
        (wide(2), ["body.0", "body.1"]),
        (wide(1), ["body.0", "body.0"]),
        (swinir(), ["layers.0", "layers.1"]),
    ],
    ids=["EDSR-16", "EDSR-32", "RCAN-10", "EDSR-2", "EDSR-1", "SwinIR-3"],
)
def test_fakd_takes_its_codes_taps(net: nn.Module, expected: list[str]) -> None:
    assert fakd_taps(net) == [*expected, "conv_after_body + conv_first"]


def test_middle_is_the_end_of_the_first_half() -> None:
    assert middle(wide(16)) == ["body.7"] and middle(wide(1)) == ["body.0"]


def test_a_sum_is_what_the_upsampler_gets() -> None:
    net, given = edsr(), batch()
    seen: list[Tensor] = []
    net.upsample.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method = build(PKT, net, edsr())
    _, (found,) = method.taps.student.read(net, given.lq)
    assert deep_features(net) == ["conv_after_body + conv_first"]
    torch.testing.assert_close(found, seen[-1])


# Terms are the loss functions on those taps.


def test_srkd_is_its_statistic_at_each_level() -> None:
    student, teacher, given = edsr(), rcan(12), batch()
    method = build(SRKD, student, teacher, terms={name: {} for name in SRKD.terms})
    out = method(given, 0)
    own, other = maps(student, thirds(student), given.lq), maps(teacher, thirds(teacher), given.lq)
    # Both have two blocks, of which the second ends two thirds.
    assert len(own) == 2
    for level, i in (("low", 0), ("mid", 1), ("high", 1)):
        close(out.losses[level], statistics_loss(own[i], other[i], statistic="mean", power=2))


def test_srkd_passes_its_options_on() -> None:
    student, teacher, given = edsr(), edsr(12), batch()
    options = {"statistic": "power_mean", "power": 3, "norm": "l2", "normalize": True}
    out = build(SRKD, student, teacher, **options)(given, 0)
    (own,), (other,) = maps(student, ["body.0"], given.lq), maps(teacher, ["body.0"], given.lq)
    close(out.losses["low"], statistics_loss(own, other, **options))


def test_fakd_is_its_affinities_summed_over_the_taps() -> None:
    student, teacher, given = edsr(), edsr(blocks=3), batch()
    method = build(FAKD, student, teacher, terms={name: {} for name in FAKD.terms} | {"pooled": {"pool": 4}})
    out = method(given, 0)
    taps = ["body.0", "body.1", "conv_first", "conv_after_body"]

    def read(net: nn.Module) -> list[Tensor]:
        low, mid, shallow, end = maps(net, taps, given.lq)
        return [low, mid, end + shallow]

    pairs = list(zip(read(student), read(teacher), strict=True))
    for name, loss, options in (
        ("spatial", spatial_affinity_loss, {}),
        ("pooled", spatial_affinity_loss, {"pool": 4}),
        ("channel", channel_affinity_loss, {}),
        ("instance", instance_affinity_loss, {}),
        ("attention", attention_loss, {"form": "fakd"}),
    ):
        close(out.losses[name], sum((loss(s, t, **options) for s, t in pairs), torch.zeros(())))
    close(out.losses["target"], (out.sr - teacher(given.lq)).abs().mean())
    close(out.losses["pixel"], (out.sr - given.gt).abs().mean())


def test_fakds_weights_belong_to_images_up_to_one() -> None:
    weights = {name: term.weight for name, term in FAKD.terms.items() if term.weight is not None}
    assert weights == {"pixel": 0.5, "target": 0.5, "spatial": pytest.approx(10 / 255)}


@pytest.mark.parametrize("form", ["at", "fakd"])
def test_at_is_its_form_summed_over_thirds(form: Any) -> None:
    student, teacher, given = edsr(blocks=3), rcan(), batch()
    out = build(AT, student, teacher, form=form)(given, 0)
    own = maps(student, ["body.0", "body.1", "body.2"], given.lq)
    first, last = maps(teacher, ["body.0", "body.1"], given.lq)
    expected = sum((attention_loss(s, t, form=form) for s, t in zip(own, (first, last, last), strict=True)))
    close(out.losses["attention"], torch.as_tensor(expected))


def test_pkt_compares_patches_of_the_last_features() -> None:
    student, teacher, given = edsr(), rcan(12), batch()
    out = build(PKT, student, teacher, grid=3)(given, 0)
    own, other = (sum(maps(net, ["conv_after_body", "conv_first"], given.lq)) for net in (student, teacher))
    close(out.losses["similarity"], pkt_loss(own, other, grid=3, reduction="rows"))


def test_fitnet_regresses_the_teachers_middle() -> None:
    student, teacher, given = edsr(), edsr(12, blocks=4), batch()
    method = build(FitNet, student, teacher, normalize=False)
    (regressor,) = method.get_submodule("regressors").children()
    assert isinstance(regressor, nn.Conv2d) and regressor.weight.shape == (12, 8, 1, 1)
    (own,), (other,) = maps(student, ["body.0"], given.lq), maps(teacher, ["body.1"], given.lq)
    close(method(given, 0).losses["hint"], hint_loss(regressor(own), other))


def test_normalised_fitnet_does_not_see_the_size_of_features() -> None:
    given, values = batch(), []
    for size in (1.0, 300.0):
        torch.manual_seed(0)
        student, teacher = edsr(), edsr(12)
        for net, factor in ((student, size), (teacher, 1 / size)):
            net.body[0].register_forward_hook(lambda _m, _in, out, factor=factor: out * factor)
        method = build(FitNet, student, teacher)
        values.append(method(given, 0).losses["hint"].detach())
    torch.testing.assert_close(*values)
    assert 0.1 < values[0] < 10


def test_fitnet_without_its_term_makes_no_regressor() -> None:
    method = build(FitNet, edsr(), edsr(12), terms={"pixel": {}})
    assert not list(method.get_submodule("regressors").children()) and list(method(batch(), 0).losses) == ["pixel"]


# Teachers.


def test_fakd_draws_one_teacher_and_takes_image_and_features_from_it() -> None:
    student, given = edsr(), batch()
    teachers = [edsr(12), rcan(), edsr(8)]
    method = build(FAKD, student, *teachers)
    images = [teacher(given.lq) for teacher in teachers]
    alone = [build(FAKD, student, teacher)(given, 0).losses["spatial"] for teacher in teachers]
    drawn = []
    for step in range(24):
        torch.manual_seed(step)
        out = method(given, step)
        distances = torch.stack([(out.sr - image).abs().mean() for image in images])
        match = [i for i in range(3) if torch.isclose(out.losses["target"], distances[i])]
        assert len(match) == 1
        torch.testing.assert_close(out.losses["spatial"], alone[match[0]])
        drawn.append(match[0])
    assert set(drawn) == {0, 1, 2}
    torch.manual_seed(5)
    again = method(given, 5).losses["target"]
    torch.manual_seed(5)
    assert torch.equal(method(given, 5).losses["target"], again)


def test_fakd_runs_only_the_drawn_teacher_and_runs_it_once() -> None:
    teachers, calls = [edsr(12), rcan()], []
    method = build(FAKD, edsr(), *teachers)
    for i, teacher in enumerate(teachers):
        teacher.register_forward_hook(lambda *_, i=i: calls.append(i))
    method(batch(), 0)
    assert len(calls) == 1


def test_fakd_takes_taps_for_each_teacher() -> None:
    student, given = edsr(), batch()
    method = build(
        FAKD,
        student,
        swinir(),
        rcan(),
        student_taps=["body.1"],
        teacher_taps={"t0": ["layers.2"], "t1": ["body.1"]},
    )
    assert method.taps.teachers["t0"].names == ("layers.2",)
    assert torch.isfinite(method(given, 0).losses["spatial"])
    with pytest.raises(MtkdError, match="'swin'.*t0, t1"):
        build(FAKD, student, swinir(), rcan(), teacher_taps={"swin": ["layers.2"]})


@pytest.mark.parametrize("cls", SINGLE)
def test_others_take_exactly_one_teacher(cls: type[Method]) -> None:
    with pytest.raises(MtkdError, match=r"one teacher, and 2 are declared \(t0, t1\)"):
        build(cls, edsr(), edsr(), rcan())
    with pytest.raises(MtkdError, match="one teacher, and 0"):
        build(cls, edsr())


@pytest.mark.parametrize("cls", [*SINGLE, FAKD])
@pytest.mark.parametrize("teacher", [swinir, lambda: rcan(12)], ids=["SwinIR", "RCAN"])
def test_families_widths_and_padding_may_differ(cls: type[Method], teacher: Any) -> None:
    # SwinIR pads 13 x 11 to 16 x 16 inside.
    method = build(cls, edsr(), teacher())
    out = method(batch(2, 13, 11), 0)
    feature_terms = [value for name, value in out.losses.items() if name not in ("pixel", "target")]
    assert feature_terms
    for value in feature_terms:
        method.zero_grad()
        value.backward(retain_graph=True)
        grads = [p.grad for p in method.student.parameters() if p.grad is not None]
        assert grads and all(torch.isfinite(grad).all() for grad in grads)
        assert any(grad.abs().sum() > 0 for grad in grads)


def test_a_padded_map_is_cut_to_the_positions_of_lq() -> None:
    net, lq = swinir(), torch.rand(1, 3, 13, 11)
    method = build(AT, net, edsr())
    _, found = method.taps.student.read(net, lq)
    (whole,) = maps(net, ["layers.0"], lq)
    assert whole.shape[-2:] == (16, 16)
    assert torch.equal(found[0], whole[..., :13, :11])


# What is wrong fails when the method is built.


@pytest.mark.parametrize("cls", [*SINGLE, FAKD])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_wrong_tap_is_an_error_at_construction(cls: type[Method], whose: str) -> None:
    with pytest.raises(MtkdError, match=f"method.{whose}_taps: EDSR has no module 'body.7'.*body.1"):
        build(cls, edsr(), edsr(), **{f"{whose}_taps": ["body.7"] * 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_taps": ["body.0"]}, "1 .body.0., the teacher 't0' 3"),
        ({"student_taps": []}, "method.student_taps is empty"),
        ({"teacher_taps": ["conv_first + conv_last"], "student_taps": ["body.0"]}, "sum 'conv_first . conv_last'"),
        ({"teacher_taps": ["upsample"], "student_taps": ["body.0"]}, "tap 'body.0' with the tap 'upsample'.*height"),
    ],
    ids=["numbers", "empty", "sum", "sizes"],
)
def test_taps_that_do_not_fit_are_errors_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MtkdError, match=message):
        build(AT, edsr(), edsr(), **options)


def test_fakds_channels_need_equal_widths() -> None:
    build(FAKD, edsr(), edsr(12))
    with pytest.raises(MtkdError, match="'channel'.*'body.0' of the teacher 't0'.*channels"):
        build(FAKD, edsr(), edsr(12), terms={"pixel": {}, "channel": {}})


def test_srkd_has_three_taps() -> None:
    with pytest.raises(MtkdError, match="SRKD has 3 taps, and method.student_taps names 1"):
        build(SRKD, edsr(), edsr(), student_taps=["body.0"], teacher_taps=["body.0"])


def test_srkds_wrong_statistic_is_an_error_at_construction() -> None:
    with pytest.raises(MtkdError, match="max"):
        build(SRKD, edsr(), edsr(), statistic="max", power=2)


def test_a_network_without_recommended_taps_needs_names() -> None:
    foreign = edsr()
    del foreign.feature_names
    with pytest.raises(MtkdError, match="Name them under method.student_taps.*conv_after_body"):
        build(AT, foreign, edsr())
    build(AT, foreign, edsr(), student_taps=["body.0"], teacher_taps=["body.1"])


def test_building_leaves_the_student_and_the_generator_as_they_were() -> None:
    student = swinir().train()
    student.layers[0].eval()
    teacher = edsr()
    before = torch.get_rng_state()
    build(AT, student, teacher)
    assert student.training and not student.layers[0].training and student.layers[1].training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize(("name", "members"), [("FAKD", 2), ("FitNet", 1)])
def test_a_run_resumes_exactly_with_its_draws_and_regressors(tmp_path: Path, name: str, members: int) -> None:
    images, teachers = make_images(tmp_path / "images"), make_teachers(tmp_path / "teachers")
    chosen = dict(list(teachers.items())[:members])

    def run(folder: str, total: int, *, auto_resume: bool = False) -> dict[str, Tensor]:
        options = run_options(
            tmp_path / folder, images=images, model_type=name, teachers=chosen, train={"total_iter": total}
        )
        return torch.load(train(options, auto_resume=auto_resume), weights_only=True)["params"]

    straight = run("straight", 6)
    run("stopped", 4)
    resumed = run("stopped", 6, auto_resume=True)
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_load(path: Path) -> None:
    options = load_options(path)
    assert options.model_type == path.parent.name and options.name.startswith(options.model_type)
    assert len(options.teachers) == 1


def test_every_method_has_a_recipe() -> None:
    assert {path.parent.name for path in RECIPES} == {"SRKD", "FAKD", "FitNet", "AT", "PKT"}
