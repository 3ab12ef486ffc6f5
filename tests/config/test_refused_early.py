"""What a run would fail on with a traceback is a problem with its key and line while the file is read."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtkd.config import OptionError, Options, load_options, make_options, resolved_yaml, trial, yaml_loader
from mtkd.config.problems import FORCE
from tests.config.samples import BASICSR_EDSR, TEST, changed, evaluation, only_problem, problems, train


class NeedsValues(nn.Module):
    """Cannot be built without memory: its width is a value of a tensor."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, int(torch.tensor([width]).sum().item()), 3)


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise LookupError("inside")


def a_function() -> None:
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"manual_seed": -1}, "manual_seed", "at least 0"),
        ({"manual_seed": 2**63}, "manual_seed", "must be less than"),
        ({"train.accumulate": 10**15}, "train.accumulate", "at most"),
        ({"train.total_iter": 1e18}, "train.total_iter", "at most"),
        ({"val.metrics.psnr.crop_border": 1e308}, "val.metrics.psnr.crop_border", "whole number, found 1e+308"),
        ({"num_gpu": 1e308}, "num_gpu", "found 1e+308"),
        ({"train.warmup_iter": 10**18}, "train.warmup_iter", "at most"),
        ({"datasets.train.batch_size_per_gpu": 10**12}, "datasets.train.batch_size_per_gpu", "at most 65536"),
        ({"datasets.train.num_worker_per_gpu": 10**6, "datasets.train.cache": "disk"}, None, "at most 1024"),
        ({"datasets.val.name": "../../x"}, "datasets.val.name", "hold a slash"),
        ({"name": "x" * 240}, "name", "200 bytes, and has 240"),
        ({"name": "a\x1bb"}, "name", "unprintable"),
        ({"path.pretrain_network_g": "~nosuchuser/x"}, "path.pretrain_network_g", "no user 'nosuchuser'"),
        ({"path.experiments_root": "x" * 300}, "path.experiments_root", "too long"),
        ({"datasets.val.dataroot_gt": ""}, "datasets.val.dataroot_gt", "empty"),
        ({"train.optim_g": {"type": "SGD", "lr": 1, "nesterov": True}}, "train.optim_g", "Nesterov"),
        ({"train.optim_g": {"type": "Adam", "lr": 1, "fused": True, "foreach": True}}, "train.optim_g", "together"),
        ({"train.optim_g": {"type": "Rprop", "lr": 1, "etas": [2, 1]}}, "train.optim_g", "eta"),
        ({"train.optim_g": {"type": "Adam", "lr": 1, "differentiable": True}}, "train.optim_g", "differentiable"),
        ({"network_g": {"type": "EDSR", "num_feat": 0}}, "network_g", "a size is 0"),
        ({"network_g": {"type": "EDSR", "num_feat": -1}}, "network_g", "negative dimension"),
        ({"network_g": {"type": "EDSR", "num_feat": 10**6}}, "network_g", "more than 2,000,000,000 parameters"),
        ({"network_g": {"type": "EDSR", "num_block": 10**8}}, "network_g", "100,000,000 is beyond"),
        (
            {"network_g": {"type": "torch.nn:Linear", "in_features": 3, "out_features": 10**9}},
            "network_g",
            "parameters",
        ),
        ({"network_g": {"type": ":"}}, "network_g.type", "':'"),
        ({"network_g": {"type": ".x:y"}}, "network_g.type", "'.x:y'"),
        ({"network_g": {"type": "tests.config.test_refused_early:Fails"}}, "network_g", "LookupError: inside"),
    ],
)
def test_a_value_that_no_run_takes(changes: dict[str, Any], key: str | None, words: str) -> None:
    problem = only_problem(train, changes)
    assert words in problem.message and key in (None, problem.key)


def test_a_network_of_too_many_modules_is_given_up_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_MODULES", 500)
    found = only_problem(train, {"network_g": {"type": "EDSR", "num_feat": 1, "num_block": 1000}})
    assert found.message == "EDSR would have more than 500 modules."


@pytest.mark.parametrize("name", ["builtins:dict", "builtins:print", "tests.config.test_refused_early:a_function"])
def test_what_is_no_network_is_refused_and_not_called(name: str) -> None:
    assert problems(train, {"network_g": {"type": name}})[0].key.startswith("network_g")


def test_a_command_in_the_place_of_a_network_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    assert problems(train, {"network_g": {"type": "subprocess:Popen", "args": ["touch", str(marker)]}})
    assert problems(train, {"network_g": {"type": "os:mkdir", "path": str(marker)}})
    time.sleep(0.1)
    assert not marker.exists()


def test_a_network_from_outside_that_needs_values_is_built_on_the_cpu() -> None:
    assert train({"network_g": {"type": "tests.config.test_refused_early:NeedsValues"}}).network_g.args == {}
    found = only_problem(train, {"network_g": {"type": "tests.config.test_refused_early:NeedsValues", "width": -3}})
    assert "negative dimension" in found.message


def test_trying_a_network_takes_no_memory_and_leaves_torch_as_it_was() -> None:
    state = torch.get_rng_state()
    assert trial.network("EDSR", {"num_feat": 1024, "num_block": 64, "upscale": 4}) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.Conv2d(1, 1, 1).weight.device.type == "cpu"


@pytest.mark.parametrize("template", ["{}{0}", "{}{", "{}_{x}", "{}}", "{}{}", "x"])
def test_a_filename_tmpl_that_is_no_template(template: str) -> None:
    changes = {"datasets.val.dataroot_lq": "lq", "datasets.val.filename_tmpl": template}
    assert "must hold {} once" in only_problem(train, changes).message


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for key in ("path.pretrain_network_g", "path.resume_state", "datasets.train.meta_info_file", "target_store"):
        assert "is a pipe" in problems(train, {key: str(tmp_path / "pipe")})[0].message
    assert "is a pipe" in only_problem(load_options, tmp_path / "pipe").message


def test_a_suffix_stays_inside_the_results() -> None:
    assert only_problem(evaluation, {"val.suffix": "a/../../b"}).key == "val.suffix"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nscale: " + "9" * 5000, 2, "of 5,000 digits is too large"),
        ("scale: " + "1_" * 4000 + "1", 1, "of 4,001 digits is too large"),
        ("scale: -" + "9" * 30, 1, "too large"),
        ("scale: 0x" + "f" * 6000, 1, "too large"),
        ("scale: !!int " + "9" * 5000, 1, "too large"),
        ('name: "a\\0b"', 1, "NUL"),
        ('name: "\\ud800"', 1, "half a character"),
        ('a: 1\n"k\\0": 1', 2, "NUL"),
    ],
)
def test_a_value_that_python_or_a_disk_refuses_has_a_line(text: str, line: int, words: str) -> None:
    with pytest.raises(OptionError) as raised:
        yaml_loader.parse(text, "f.yml")
    assert [problem.line for problem in raised.value.problems] == [line]
    assert words in str(raised.value) and len(str(raised.value)) < 200


def test_whole_numbers_up_to_64_bits_are_read() -> None:
    largest = 2**64 - 1
    assert yaml_loader.parse(f"[{largest}, {largest:#x}, 0o{largest:o}, -{largest}, {'0' * 100}7]").data == [
        largest, largest, largest, -largest, 7,
    ]  # fmt: skip


def test_depth_is_counted_through_aliases() -> None:
    rows = ["a0: &a0 " + "[" * 40 + "1" + "]" * 40]
    rows += [f"a{i}: &a{i} " + "[" * 40 + f"*a{i - 1}" + "]" * 40 for i in range(1, 60)]
    with pytest.raises(OptionError, match=r"f.yml:1: a1: aliases nest values too deeply"):
        yaml_loader.parse("\n".join(rows), "f.yml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "".join(f"key{i}: 1\n" for i in range(80_000)),
        "a: 1\n" * 150_000,
        "".join(f"key{i}: 1\n" for i in range(9_000)),
        "train: {" + ", ".join(f"kay{i}_opt: 1" for i in range(9_000)) + "}\n",
    ],
    ids=["many keys", "many duplicates", "unknown keys", "unknown terms"],
)
def test_a_huge_file_is_answered_soon_and_shortly(text: str, tmp_path: Path) -> None:
    (tmp_path / "huge.yml").write_text(text)
    began = time.process_time()
    with pytest.raises(OptionError) as raised:
        load_options(tmp_path / "huge.yml")
    assert time.process_time() - began < 8
    assert len(str(raised.value).splitlines()) <= 102


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ESRGANModel", "GAN training is not part of mtkd"),
        ("RealESRGANModel", "GAN training is not part of mtkd"),
        ("SwinIRGANModel", "GAN training is not part of mtkd"),
        ("EDVRModel", "video super-resolution is not part of mtkd"),
        ("VideoRecurrentGANModel", "video super-resolution is not part of mtkd"),
        ("HiFaceGANModel", "restoring faces is not part of mtkd"),
        ("StyleGAN2Model", "images without an input is not part of mtkd"),
        ("RealESRNetModel", "degradations that are made during training are not part of mtkd"),
    ],
)
def test_a_kind_of_model_that_is_not_supported_is_said_once(name: str, said: str, tmp_path: Path) -> None:
    text = BASICSR_EDSR.replace("SRModel", name) + "network_d:\n  type: VGG\ngt_usm: true\n"
    (tmp_path / "gan.yml").write_text(text)
    problem = only_problem(load_options, tmp_path / "gan.yml")
    assert (problem.line, problem.key) == (3, "model_type")
    assert f"{name} is not supported: " in problem.message and "Did you mean" not in problem.message
    assert said in problem.message


@pytest.mark.parametrize("name", ["SRGANModel", "ESRGANModel", "RealESRGANModel", "RealESRNetModel"])
def test_a_test_file_of_a_gan_is_that_of_a_plain_network(name: str) -> None:
    options = make_options(changed(TEST, {"model_type": name, "network_d": {"type": "VGG"}}))
    assert options.model_type == "SRModel" and name in " ".join(options.notices)
    assert make_options(yaml_loader.parse(resolved_yaml(options)).data).model_dump() == options.model_dump()


def test_a_test_file_of_video_or_faces_is_refused() -> None:
    for name in ("EDVRModel", "HiFaceGANModel"):
        assert "is not part of mtkd" in only_problem(make_options, changed(TEST, {"model_type": name})).message


def test_a_discriminator_is_not_supported_rather_than_misspelt() -> None:
    problem = only_problem(train, {"network_d": {"type": "UNetDiscriminatorSN"}})
    assert problem.key == "network_d" and "GAN training is not part of mtkd. Remove it" in problem.message


def forced(tmp_path: Path, *items: str) -> Options:
    (tmp_path / "base.yml").write_text(BASICSR_EDSR)
    return load_options(tmp_path / "base.yml", force=items)


def test_forced_text_is_taken_as_it_stands(tmp_path: Path) -> None:
    options = forced(tmp_path, "datasets:val:filename_tmpl={}x4", "path:pretrain_network_g=[a].pth", "name=1e3")
    assert options.datasets.evaluation["val"].model_dump()["filename_tmpl"] == "{}x4"
    assert (options.path.pretrain_network_g, options.name) == ("[a].pth", "1e3")
    problem = only_problem(forced, tmp_path, "scale={}x4")
    assert (problem.file, problem.key) == (FORCE, "scale")
