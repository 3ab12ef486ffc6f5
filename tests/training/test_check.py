"""`mtkd check --data` finds what this machine would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtkd import build
from mtkd.config import Options
from mtkd.contracts import MtkdError, Task
from mtkd.inference.evaluate import build_metrics
from mtkd.runtime.device import named_device
from mtkd.training import check
from tests.runs import run_options


def keys(options: Options) -> list[str]:
    return [problem.key for problem in check.check_data(options)]


def test_a_good_file_has_no_problem(tmp_path: Path) -> None:
    assert check.check_data(run_options(tmp_path)) == []


def test_devices_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = run_options(tmp_path).model_copy(update={"num_gpu": 1, "precision": "fp16"})
    assert keys(options) == ["num_gpu", "precision"]
    assert keys(options.model_copy(update={"num_gpu": "auto", "precision": "bf16"})) == []


def test_a_run_that_is_there_and_folders_that_cannot_be_made(tmp_path: Path) -> None:
    options = run_options(tmp_path)
    (tmp_path / "experiments/tiny/models").mkdir(parents=True)
    assert keys(options) == [], "a start that failed leaves empty folders"
    (tmp_path / "experiments/tiny/models/net_g_5.pth").touch()
    assert keys(options) == ["name"]
    (tmp_path / "file").touch()
    for place, words in ((tmp_path / "file", "is a file"), (tmp_path / "file/inside", "is a file")):
        options.path.experiments_root = str(place)
        (problem,) = check.check_data(options)
        assert problem.key == "path.experiments_root" and words in problem.message


def test_a_zoo_name_that_there_is_not(tmp_path: Path) -> None:
    options = run_options(tmp_path, path={"pretrain_network_g": "zoo:edsr_x9", "experiments_root": str(tmp_path)})
    assert keys(options) == ["path.pretrain_network_g"]


class Breaks(nn.Module):
    def __init__(self, *, now: bool = False) -> None:
        super().__init__()
        if now:
            raise LookupError("inside")

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        raise LookupError("inside")


def breaks(sr: Tensor, gt: Tensor) -> Tensor:
    raise LookupError("inside")


def test_errors_of_losses_and_metrics_from_outside_name_them(tmp_path: Path) -> None:
    task = Task(scale=2, num_samples=1, total_steps=1)
    terms = {"pixel_opt": {"type": "tests.training.test_check:Breaks"}}
    options = run_options(tmp_path, train=terms)
    method = build.build_method(options, build.build_network(options.network_g), {}, task)
    image = torch.zeros(1, 3, 4, 4)
    with pytest.raises(MtkdError, match=r"^train.pixel_opt: tests\S+:Breaks failed: LookupError: inside\.$"):
        method.image_losses(image, {"pixel": image})
    assert options.train is not None
    options.train.terms["pixel"].args["now"] = True
    with pytest.raises(MtkdError, match=r"^train.pixel_opt: tests\S+:Breaks cannot be built: LookupError: inside\.$"):
        build.build_method(options, build.build_network(options.network_g), {}, task)
    metrics = build_metrics({"mine": {"type": "tests.training.test_check:breaks", "better": "higher"}})
    with pytest.raises(MtkdError, match=r"^val.metrics.mine: \S+ failed on an image of 4x4 pixels .*inside\.$"):
        metrics["mine"](image, image)


def test_a_device_that_holds_no_values_is_none() -> None:
    for name in ("meta", "mps", "nothing", "cuda:99"):
        with pytest.raises(MtkdError, match=f"no device {name}"):
            named_device(name)
    assert named_device("cpu").type == "cpu"
