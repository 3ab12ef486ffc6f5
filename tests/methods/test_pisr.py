"""PISR: what the terms are, where the student starts, and the way from step 1 to step 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtkd.archs.swinir import SwinIR
from mtkd.contracts import MtkdError
from mtkd.losses.features.vid import vid_loss
from mtkd.methods.base import MethodConfig
from mtkd.methods.pisr import PISR, Estimator, PISRTeacher
from mtkd.training.loop import train
from mtkd.training.resume import _restore_own
from tests.methods.setups import SCALE, TASK, batch, edsr, fsrcnn, privileged
from tests.runs import make_images, run_options


def pisr(student: nn.Module | None = None, teacher: nn.Module | None = None, **options: Any) -> PISR:
    teacher = teacher or privileged()
    return PISR(student or fsrcnn(), {"privileged": teacher}, TASK, MethodConfig(options=options))


def test_estimator_has_the_published_size() -> None:
    assert sum(p.numel() for p in Estimator(56, 56).parameters()) == 12_770


@pytest.mark.parametrize(
    ("scale_of", "shape"),
    [("element", (2, 5, 4, 3)), ("channel", (2, 5, 1, 1)), ("position", (2, 1, 4, 3)), ("image", (2, 1, 1, 1))],
)
def test_scale_belongs_to_what_was_asked_for(scale_of: Any, shape: tuple[int, ...]) -> None:
    location, scale = Estimator(3, 5, scale_of)(torch.randn(2, 3, 4, 3))
    assert location.shape == (2, 5, 4, 3)
    assert scale.shape == shape and (scale > 0).all()


@pytest.mark.parametrize(
    ("scale_of", "parameters"), [("element", 6_385), ("channel", 6_385), ("position", 3_250), ("image", 3_250)]
)
def test_scale_head_has_the_published_size(scale_of: Any, parameters: int) -> None:
    assert sum(p.numel() for p in Estimator(56, 56, scale_of).scale.parameters()) == parameters


@pytest.mark.parametrize("scale_of", ["element", "channel", "position", "image"])
def test_scale_is_two_convolutions_a_mean_and_softplus(scale_of: Any) -> None:
    torch.manual_seed(0)
    estimator, x = Estimator(3, 5, scale_of).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    first, slope, last = (part.state_dict() for part in estimator.scale)
    hidden = torch.einsum("oi,nihw->nohw", first["weight"][..., 0, 0], x) + first["bias"][:, None, None]
    hidden = torch.where(hidden > 0, hidden, hidden * slope["weight"])
    answer = torch.einsum("oi,nihw->nohw", last["weight"][..., 0, 0], hidden) + last["bias"][:, None, None]
    if scale_of in ("channel", "image"):
        answer = answer.mean((2, 3), keepdim=True)
    torch.testing.assert_close(estimator(x)[1], torch.log1p(answer.exp()))


@pytest.mark.parametrize("scale_of", ["element", "channel"])
def test_estimators_of_earlier_runs_load(scale_of: Any) -> None:
    shapes = [("0.weight", (5, 3, 1, 1)), ("0.bias", (5,)), ("1.weight", (1,)), ("2.weight", (5, 5, 1, 1))]
    shapes.append(("2.bias", (5,)))
    state = {f"{head}.{key}": torch.ones(shape) for head in ("location", "scale") for key, shape in shapes}
    Estimator(3, 5, scale_of).load_state_dict(state, strict=True)


@pytest.mark.parametrize("scale_of", ["position", "image"])
def test_states_with_the_former_scale_head_are_refused_with_both_shapes(scale_of: Any) -> None:
    method = pisr(scale_of=scale_of)
    own = {key: value for key, value in method.state_dict().items() if not key.startswith("student.")}
    former = own | {"estimator.scale.0.weight": torch.zeros(1, 8, 1, 1)}
    with pytest.raises(
        MtkdError, match=r"estimator.scale.0.weight of PISR is \(1, 8, 1, 1\).*here \(8, 8, 1, 1\).*version"
    ):
        _restore_own(method, former, Path("10.state"), "PISR")
    _restore_own(method, own, Path("10.state"), "PISR")


@pytest.mark.parametrize("precision", [None, "fp32", "bf16"])
@pytest.mark.parametrize("student_in_bf16", [False, True])
def test_teacher_runs_in_its_own_precision(precision: str | None, student_in_bf16: bool) -> None:
    torch.manual_seed(0)
    method, given = pisr(), batch()
    frozen = method.teachers["privileged"]
    frozen.precision = precision
    seen: dict[str, torch.dtype] = {}
    for key, module in (("student", method.student), ("teacher", frozen.net.decoder), ("code", frozen.net.encoder)):
        tap = module[3] if key == "code" else module.expanding
        tap.register_forward_hook(lambda _m, _x, out, key=key: seen.__setitem__(key, out.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=student_in_bf16):
        method(given, 0)
    own = torch.bfloat16 if student_in_bf16 else torch.float32
    wanted = {None: own, "fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert seen == {"student": own, "teacher": wanted, "code": wanted}


def test_teacher_terms_are_the_papers() -> None:
    method, given = PISRTeacher(privileged(), {}, TASK), batch()
    assert {name: term.weight for name, term in method.terms.items()} == {"pixel": 1.0, "imitation": 1e-4}
    out = method(given, 0)
    code = method.student.encoder(given.gt)
    assert code.shape == given.lq.shape
    torch.testing.assert_close(out.losses["imitation"], (code - given.lq).abs().mean())
    torch.testing.assert_close(out.losses["pixel"], (method.student.decoder(code) - given.gt).abs().mean())


def test_imitation_trains_the_encoder_alone() -> None:
    method = PISRTeacher(privileged(), {}, TASK)
    method(batch(), 0).losses["imitation"].backward()
    assert all(p.grad is not None for p in method.student.encoder.parameters())
    assert all(p.grad is None for p in method.student.decoder.parameters())


def test_student_starts_as_the_decoder() -> None:
    teacher = privileged()
    student = pisr(teacher=teacher).student
    for key, value in teacher.decoder.state_dict().items():
        assert torch.equal(student.state_dict()[key], value)
    own = fsrcnn()
    before = own.feature_extraction[0].weight.clone()
    assert torch.equal(pisr(own, teacher, init_from_teacher=False).student.feature_extraction[0].weight, before)


def test_student_terms_are_the_papers() -> None:
    method, given = pisr(), batch()
    assert {name: term.weight for name, term in method.terms.items()} == {"pixel": 1.0, "vid": 1e-6}
    seen: dict[str, torch.Tensor] = {}
    teacher = method.teachers["privileged"].net
    for key, net in (("student", method.student), ("teacher", teacher.decoder)):
        net.expanding.register_forward_hook(lambda _m, _x, out, key=key: seen.__setitem__(key, out))
    out = method(given, 0)
    location, scale = method.estimator(seen["student"])
    expected = vid_loss(location, seen["teacher"], scale=scale, pdf="laplace")
    torch.testing.assert_close(out.losses["vid"], expected)
    with torch.no_grad():
        teacher.decoder(teacher.encoder(given.gt))
    assert not seen["teacher"].requires_grad
    torch.testing.assert_close(vid_loss(location, seen["teacher"], scale=scale), expected)


def test_teacher_looks_at_gt_and_not_at_lq() -> None:
    method, given = pisr(), batch()
    plain = method(given, 0).losses["vid"]
    other = method(given._replace(gt=given.gt.flip(-1)), 0).losses["vid"]
    assert not torch.allclose(plain, other)


def test_density_is_an_option_of_the_term() -> None:
    def value(pdf: str) -> torch.Tensor:
        torch.manual_seed(0)
        terms = {"pixel": {}, "vid": {"pdf": pdf}}
        return PISR(fsrcnn(), {"t": privileged()}, TASK, MethodConfig(terms=terms))(batch(), 0).losses["vid"]

    assert not torch.allclose(value("laplace"), value("gaussian"))
    with pytest.raises(MtkdError, match="pdf"):
        value("cauchy")


@pytest.mark.parametrize("student", ["edsr", "swinir"])
def test_another_student_of_another_width(student: str) -> None:
    net = (
        edsr(10)
        if student == "edsr"
        else SwinIR(
            img_size=8,
            window_size=8,
            embed_dim=6,
            depths=(1,),
            num_heads=(1,),
            upscale=SCALE,
            upsampler="pixelshuffledirect",
        )
    )
    method = pisr(net, init_from_teacher=False)
    out = method(batch(2, 11, 13), 0)
    out.losses["vid"].backward()
    assert net.conv_first.weight.grad.any() and torch.isfinite(out.losses["vid"])
    assert method.estimator.location[0].in_channels == (10 if student == "edsr" else 6)
    assert method.estimator.location[2].out_channels == 8


def test_taps_may_be_named() -> None:
    method = pisr(student_taps=["mapping.0"], teacher_taps=["expanding"])
    assert method.estimator.location[0].in_channels == 4
    assert torch.isfinite(method(batch(), 0).losses["vid"])


def test_without_vid_there_is_no_estimator() -> None:
    method = PISR(fsrcnn(), {"t": privileged()}, TASK, MethodConfig(terms={"pixel": {}}))
    assert list(method(batch(), 0).losses) == ["pixel"]
    assert set(method.state_dict()) == {f"student.{key}" for key in method.student.state_dict()}


def test_a_trained_student_runs_without_the_teacher_and_keeps_its_weights() -> None:
    student = fsrcnn()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    for teachers in ({}, {"privileged": privileged()}):
        net = PISR(student, teachers, TASK, MethodConfig(terms={})).predictor(student)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: pisr(edsr()), "init_from_teacher: false"),
        (lambda: pisr(teacher=edsr()), r"teachers.privileged.network \(EDSR\)"),
        (lambda: PISRTeacher(edsr(), {}, TASK), r"network_g \(EDSR\)"),
        (lambda: PISR(fsrcnn(), {}, TASK), "exactly one"),
        (lambda: PISR(fsrcnn(), {"a": privileged(), "b": privileged()}, TASK), "exactly one"),
        (lambda: pisr(student_taps=["mapping.0", "expanding"]), "one tap"),
        (lambda: pisr(teacher_taps=["expandin"]), "expanding"),
        (lambda: pisr(teacher_taps=["last_layer"]), "16 x 16"),
    ],
)
def test_wrong_setups_are_errors(call: Any, text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        call()


def test_step_2_reads_what_step_1_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    images = make_images(tmp_path / "images")
    small = {"type": "FSRCNN", "num_feat": 4, "num_shrink": 2, "num_map": 1}
    teacher = {"type": "PrivilegedTeacher", "decoder": small, "encoder_feat": 4, "encoder_shrink": 2}
    steps = {"total_iter": 2}
    first = train(
        run_options(tmp_path, images=images, name="one", model_type="PISRTeacher", network_g=teacher, train=steps)
    )
    section = {"privileged": {"network": teacher, "pretrain": str(first)}}
    second = train(
        run_options(
            tmp_path, images=images, name="two", model_type="PISR", network_g=small, teachers=section, train=steps
        )
    )
    rows = [json.loads(line) for line in (second.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert {"pixel", "vid"} <= set(rows[-1]["losses"])
    taught = torch.load(first, weights_only=True)["params_ema"]
    student = torch.load(second, weights_only=True)["params"]
    for key, value in student.items():
        # Two steps of Adam move a weight by 2 * lr at most.
        assert (value - taught[f"decoder.{key}"]).abs().max() < 3e-3
