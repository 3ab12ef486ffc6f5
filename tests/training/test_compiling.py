"""Compiled runs: the same numbers as without, taps included, and a word where compiling fails."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from mtkd import catalog
from mtkd.archs.edsr import EDSR
from mtkd.methods.base import Frozen, tapped
from mtkd.runtime.compiling import compile_networks
from mtkd.training import loop as train_module
from mtkd.training.compiled import compile_run
from mtkd.training.loop import train
from tests.methods.setups import batch, build
from tests.runs import make_images, make_teachers, run_options

pytestmark = pytest.mark.slow


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch):
    """Trace networks into graphs and run these without code generation, which takes minutes on a small machine."""
    graphs = []
    real = nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(nn.Module, "compile", lambda net, mode=None, dynamic=None: real(net, backend=backend))
    yield graphs
    torch.compiler.reset()


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line).get("losses") for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model_type", ["SRModel", "FAKD"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path: Path, traced: list, model_type: str) -> None:
    settings = {"images": make_images(tmp_path / "images"), "model_type": model_type, "train": {"total_iter": 4}}
    if model_type == "FAKD":
        settings["teachers"] = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    for name in ("plain", "compiled"):
        train(run_options(tmp_path, name=name, compile=name == "compiled", **settings))
    assert traced
    log = next((tmp_path / "experiments/compiled").glob("train*.log")).read_text()
    assert "compile: EDSR compiled in" in log
    plain, compiled = (losses(tmp_path / "experiments" / name) for name in ("plain", "compiled"))
    assert len(plain) == len(compiled) > 0
    for a, b in zip(plain, compiled, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_finished_run_compiles_nothing(tmp_path: Path, traced: list) -> None:
    options = run_options(tmp_path, compile=True, train={"total_iter": 2})
    train(options)
    traced.clear()
    train(options, auto_resume=True)
    assert not traced
    text = "".join(log.read_text() for log in (tmp_path / "experiments/tiny").glob("train*.log"))
    assert "is finished" in text and text.count("compile:") == 1


def test_gradients_accumulate_although_graphs_overwrite_theirs(tmp_path: Path, traced: list) -> None:
    images, weights = make_images(tmp_path / "images"), []
    for overwriting in (False, True):
        options = run_options(
            tmp_path,
            images=images,
            name=f"run{overwriting}",
            compile=True,
            train={"accumulate": 3},
        )
        run = train_module.prepare(options)
        for parameter in run.method.parameters() if overwriting else ():
            # As a CUDA graph does, which gives its results in the same memory in every run.
            memory = torch.empty_like(parameter)
            parameter.register_hook(lambda grad, memory=memory: memory.copy_(grad).detach())
        train_module.train_step(run, 0, run.batches())
        run.close()
        weights.append(run.method.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["graphs", "reduce-overhead"])
@pytest.mark.parametrize("model_type", ["SRModel", "DUKD"])
def test_a_run_in_cuda_graphs_has_the_losses_of_a_plain_one(tmp_path: Path, model_type: str, mode: str) -> None:
    settings = {
        "images": make_images(tmp_path / "images"),
        "model_type": model_type,
        "num_gpu": 1,
        "tf32": False,
        "train": {"total_iter": 6, "accumulate": 2},
    }
    if model_type == "DUKD":
        settings["teachers"] = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    for name, compiling in (("plain", False), ("graphs", mode)):
        train(run_options(tmp_path, name=name, compile=compiling, **settings))
    log = next((tmp_path / "experiments/graphs").glob("train*.log")).read_text()
    assert "compile: EDSR compiled in" in log
    plain, graphs = (losses(tmp_path / "experiments" / name) for name in ("plain", "graphs"))
    assert len(plain) == len(graphs) > 0
    for a, b in zip(plain, graphs, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    torch.compiler.reset()


def test_many_networks_of_one_class_are_all_compiled(traced: list) -> None:
    for width in range(2, 12):
        net = EDSR(num_feat=width, num_block=1, upscale=2)
        compile_networks([net], partial(net, torch.rand(1, 3, 8, 8)), log=lambda line: None)
    assert len(traced) == 10


def test_a_network_that_cannot_be_compiled_trains_uncompiled_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph, inputs):
        raise RuntimeError("no working compiler was found")

    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda net, mode=None, dynamic=None: real(net, backend=broken))
    settings = {"images": make_images(tmp_path / "images"), "train": {"total_iter": 4}}
    for name in ("plain", "compiled"):
        train(run_options(tmp_path, name=name, compile=name == "compiled", **settings))
    log = next((tmp_path / "experiments/compiled").glob("train*.log")).read_text()
    assert "EDSR cannot be compiled here and runs uncompiled" in log
    assert "no working compiler was found" in log
    plain, compiled = (losses(tmp_path / "experiments" / name) for name in ("plain", "compiled"))
    assert plain == compiled


def test_a_run_through_the_real_compiler_has_the_losses_of_a_plain_one(tmp_path: Path) -> None:
    settings = {"images": make_images(tmp_path / "images"), "train": {"total_iter": 4}}
    for name in ("plain", "compiled"):
        train(run_options(tmp_path, name=name, compile=name == "compiled", **settings))
    plain, compiled = (losses(tmp_path / "experiments" / name) for name in ("plain", "compiled"))
    for a, b in zip(plain, compiled, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("name", list(catalog.METHODS))
def test_every_method_trains_with_compiled_networks(name: str, traced: list) -> None:
    values = []
    for compiling in (False, True):
        method = build(name)
        if compiling:
            networks = [method.student, *(teacher.net for teacher in method.teachers.values())]
            assert compile_networks(networks, lambda: None, log=lambda line: None)
        torch.manual_seed(7)
        out = method(batch(), 0)
        total = sum(out.losses.values()) + sum(out.critic.values())
        total.backward()
        gradient = torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])
        values.append((total.detach(), gradient))
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-5)


def test_compiled_networks_give_whatever_taps_are_asked_for(traced: list) -> None:
    torch.manual_seed(0)
    net = EDSR(num_feat=4, num_block=3, upscale=2)
    lq = torch.rand(2, 3, 8, 8)
    wanted = {taps: tapped(net, taps, lq) for taps in (("body.0",), ("body.1", "conv_first"), ())}
    assert compile_networks([net], lambda: net(lq), log=lambda line: None)
    for _ in range(2):
        for taps, (sr, feats) in wanted.items():
            found, found_feats = tapped(net, taps, lq)
            torch.testing.assert_close(found, sr)
            assert found_feats.keys() == feats.keys()
            for name in feats:
                torch.testing.assert_close(found_feats[name], feats[name])
    assert traced


def test_the_trial_of_a_compiled_run_leaves_weights_and_gradients_alone(tmp_path: Path, traced: list) -> None:
    run = train_module.prepare(run_options(tmp_path, compile=True))
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    compile_run(run)
    assert all(torch.equal(value, before[name]) for name, value in run.method.state_dict().items())
    assert all(parameter.grad is None for parameter in run.method.parameters())
    run.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16", None])
def test_a_teacher_has_a_precision_of_its_own(precision: str | None) -> None:
    seen = []

    class Spy(nn.Conv2d):
        def forward(self, input):
            out = super().forward(input)
            seen.append(out.dtype)
            return out

    teacher = Frozen(Spy(3, 3, 1))
    teacher.precision = precision
    lq = torch.rand(1, 3, 4, 4)
    teacher(lq)
    with torch.autocast("cpu", torch.bfloat16):
        teacher(lq)
    inside = {"fp32": torch.float32, "bf16": torch.bfloat16, None: torch.bfloat16}[precision]
    assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32, inside]


def test_the_option_file_sets_the_precision_of_teachers(tmp_path: Path) -> None:
    teachers = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    run = train_module.prepare(
        run_options(tmp_path, model_type="OutputKD", teachers=teachers, teacher_precision="bf16")
    )
    assert [teacher.precision for teacher in run.method.teachers.values()] == ["bf16"]
    run.close()
