"""DCKD: its terms written a second time, the history student, and what happens without VQGAN's weights."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.losses.vqgan import VQGANEncoder, VQGANFeatures, code_distribution_loss
from mtkd.methods import dckd
from mtkd.methods.base import MethodConfig
from mtkd.methods.dckd import DCKD, History, noisy
from mtkd.training.loop import train
from tests.methods.setups import TASK, batch, edsr
from tests.runs import make_images, make_teachers, run_options

EVERYTHING: dict[str, dict[str, Any]] = {name: {} for name in DCKD.terms}


def build(terms: dict[str, dict[str, Any]] | None = None, **options: Any) -> DCKD:
    torch.manual_seed(0)
    return DCKD(edsr(), {"teacher": edsr(12)}, TASK, MethodConfig(terms=terms, options=options)).train()


def inverted(x: Tensor, ops: Tensor) -> Tensor:
    """F^-1 of one image, the last operation first."""
    invert, vertical, horizontal, transpose = ops.tolist()
    x = x.transpose(-2, -1) if transpose else x
    x = x.flip(-1) if horizontal else x
    x = x.flip(-2) if vertical else x
    return 1 - x if invert else x


def turned(x: Tensor, ops: Tensor) -> Tensor:
    invert, vertical, horizontal, transpose = ops.tolist()
    x = 1 - x if invert else x
    x = x.flip(-2) if vertical else x
    x = x.flip(-1) if horizontal else x
    return x.transpose(-2, -1) if transpose else x


def test_without_vqgan_it_is_output_distillation_with_label_consistency(monkeypatch: pytest.MonkeyPatch) -> None:
    method, given = build(), batch(16)
    assert method.active == ("pixel", "target", "consistency")
    assert not [key for key in method.state_dict() if not key.startswith("student.")]
    ops = torch.tensor([[i >> k & 1 for k in range(4)] for i in range(16)], dtype=torch.bool)
    asked: list[float] = []
    monkeypatch.setattr(dckd, "draw_ops", lambda n, p, **_: asked.append(p) or ops)
    losses = method(given, 0).losses
    teacher, sr = method.teachers["teacher"], method.student(given.lq)
    torch.testing.assert_close(losses["pixel"], (sr - given.gt).abs().mean())
    torch.testing.assert_close(losses["target"], (sr - teacher(given.lq)).abs().mean())
    answers = [inverted(teacher(turned(lq, op)[None])[0], op) for lq, op in zip(given.lq, ops, strict=True)]
    torch.testing.assert_close(losses["consistency"], (sr - torch.stack(answers)).abs().mean())
    assert asked == [0.5]


def test_contrast_and_distribution_are_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    method, given = build(EVERYTHING, vqgan="random", negatives=2), batch(2)
    shifts = iter((0.1, -0.2))
    monkeypatch.setattr(dckd, "noisy", lambda lq: (lq + next(shifts)).clamp(0, 1))
    method(given, 0)
    with torch.no_grad():
        for parameter in method.history.past.parameters():
            parameter.mul_(1.1)
    shifts = iter((0.1, -0.2))
    losses = method(given, 0).losses
    vqgan, lq = VQGANFeatures("random"), given.lq
    sr, target = method.student(lq), method.teachers["teacher"](lq)
    negatives = [method.history.past(x) for x in (lq, (lq + 0.1).clamp(0, 1), (lq - 0.2).clamp(0, 1))]
    a, p, *n = ([x.double() for x in vqgan.levels(image)] for image in (sr, target, *negatives))
    expected = 0.0
    for i, weight in enumerate((0.03125, 0.0625, 0.125, 0.25, 1.0)):
        away = torch.stack([(a[i] - other[i]).abs() for other in n]).sum(0).mean()
        expected += weight * (a[i] - p[i]).abs().mean() / (away + 1e-7)
    torch.testing.assert_close(losses["contrast"].double(), expected, rtol=1e-5, atol=0)
    wanted = code_distribution_loss(vqgan.distances(sr), vqgan.distances(target))
    torch.testing.assert_close(losses["distribution"], wanted)


def step_towards(net: nn.Module, step: int) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()) + 7.0 * step + i).view_as(parameter))


def tensors(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone().double() for parameter in net.parameters()]


def test_history_follows_the_average_at_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' loop: a step, the average, and a refreshment when the number of steps is a multiple."""
    monkeypatch.setattr(dckd, "PHASE", 6)
    student = edsr()
    history = History(student, average_decay=0.9, decay=0.1, refresh=[2, 3])
    # Weights that were loaded after the method was built.
    step_towards(student, 99)
    average, past = tensors(student), tensors(student)
    history.follow(student, 0)
    for done in range(1, 16):
        step_towards(student, done)
        average = [0.9 * a + 0.1 * s for a, s in zip(average, tensors(student), strict=True)]
        if done % (2, 3, 3)[(done - 1) // 6] == 0:
            past = [0.1 * p + 0.9 * a for p, a in zip(past, average, strict=True)]
        for _ in range(2):  # as a step of two batches asks
            history.follow(student, done)
        for found, expected in ((history.average, average), (history.past, past)):
            for x, y in zip(tensors(found), expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_history_is_resumed_where_it_stopped() -> None:
    def steps(method: DCKD, several: range) -> None:
        for step in several:
            torch.manual_seed(step)
            method.history.follow(method.student, step)
            step_towards(method.student, step)

    whole = build(EVERYTHING, vqgan="random", refresh=[2])
    steps(whole, range(7))
    first = build(EVERYTHING, vqgan="random", refresh=[2])
    steps(first, range(4))
    second = build(EVERYTHING, vqgan="random", refresh=[2])
    # As the trial of `compile`, which takes a step and is undone.
    second.load_state_dict(first.state_dict())
    second.history.follow(second.student, 4)
    second.load_state_dict(first.state_dict())
    steps(second, range(4, 7))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_former_students_stay_in_eval_mode_and_out_of_the_optimizer() -> None:
    method = build(EVERYTHING, vqgan="random").train()
    assert method.student.training
    assert not any(module.training for module in method.history.modules())
    own = {id(p) for p in method.student.parameters()}
    assert {id(p) for group in method.param_groups().values() for p in group} == own


def test_noise_is_gaussian_clipped_and_grey_for_half_of_the_images() -> None:
    torch.manual_seed(0)
    noise = (noisy(torch.full((400, 3, 32, 32), 0.5)) - 0.5).double()
    deviations = noise.flatten(1).std(1) * 255
    assert 0.9 < deviations.min() < 1.6 and 29 < deviations.max() < 31
    assert deviations.mean().item() == pytest.approx(15.5, abs=1.2)
    grey = (noise[:, 0] == noise[:, 1]).flatten(1).all(1)
    assert 160 < int(grey.sum()) < 240
    assert (noise[grey].amax((1, 2, 3)) > 0).all()
    edge = noisy(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 64, 64))
    assert edge.min() == 0 and edge.max() == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: build({"contrast": {}}), r"contrast compare .*vqgan: zoo:vqgan_f16_1024.*remove train.contrast_opt"),
        (lambda: build({"pixel": {}, "distribution": {}}), "train.distribution_opt; the other terms need none"),
        (lambda: build(EVERYTHING, vqgan="nowhere/vqgan.ckpt"), "not at nowhere"),
        (lambda: build(probability=1.5), "probability"),
        (lambda: build(negatives=-1), "negatives"),
        (lambda: build(refresh=()), "refresh"),
        (lambda: build(refresh=(0,)), "refresh"),
        (lambda: DCKD(edsr(), {}, TASK), "1 teacher image"),
    ],
)
def test_wrong_setups_are_errors(call: Any, text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        call()


def test_a_trained_student_runs_without_teacher_and_vqgan() -> None:
    student = edsr()
    net = DCKD(student, {}, TASK, MethodConfig(terms={})).predictor(student)
    assert net is student


@pytest.mark.slow
def test_a_file_of_taming_transformers_becomes_the_zoos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of Lightning's class beside the weights, and everything else that such a file holds."""
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    state = VQGANEncoder().state_dict()
    path = tmp_path / "last.ckpt"
    name = "pytorch_lightning.callbacks.model_checkpoint"
    modules = [".".join(name.split(".")[: i + 1]) for i in range(3)]
    callback = type("ModelCheckpoint", (), {"__module__": name})
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setitem(sys.modules, module, types.ModuleType(module))
        sys.modules[name].ModelCheckpoint = callback  # pyright: ignore[reportAttributeAccessIssue]
        whole = {**state, "decoder.conv_in.weight": torch.zeros(2), "loss.logvar": torch.zeros(())}
        torch.save({"state_dict": whole, "epoch": 3, "callbacks": {callback: {"best": 1.0}}}, path)
    converted = zoo.import_file(zoo.entry("vqgan_f16_1024"), path)
    found = VQGANFeatures(converted).net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    assert zoo.read_checkpoint(converted).state.keys() == state.keys()


@pytest.mark.slow
def test_a_run_with_former_students_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    images, teachers = make_images(tmp_path / "images"), make_teachers(tmp_path / "teachers")

    def run(name: str, steps: int) -> dict[str, Tensor]:
        terms = {f"{term}_opt": {} for term in DCKD.terms}
        options = run_options(
            tmp_path,
            images=images,
            name=name,
            model_type="DCKD",
            teachers={"edsr": teachers["edsr"]},
            method={"vqgan": "random", "refresh": [2], "negatives": 1},
            logger={"print_freq": 1, "save_checkpoint_freq": 3},
            train={**terms, "total_iter": steps, "scheduler": {"type": "MultiStepLR", "milestones": [100]}},
        )
        weights = train(options, auto_resume=True)
        average = torch.load(weights, weights_only=True)["params_ema"]
        state = torch.load(weights.parents[1] / "training_states" / f"{steps}.state", weights_only=True)["method"]
        return average | {key: value for key, value in state.items() if key.startswith("history.")}

    whole = run("whole", 6)
    run("parts", 3)
    resumed = run("parts", 6)
    assert whole.keys() == resumed.keys() and any(key.startswith("history.past") for key in whole)
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
