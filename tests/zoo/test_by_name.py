"""`zoo:NAME` in option files, from the command line to the number: nothing has to be fetched beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from mtkd import build
from mtkd.cli import main
from mtkd.config import Options
from mtkd.contracts import MtkdError, Task
from mtkd.data.images import read_image
from mtkd.data.resize import bicubic_lq
from mtkd.inference.evaluate import build_metrics
from mtkd.methods.base import MethodConfig, Term
from mtkd.methods.supervised import Supervised
from mtkd.metrics.psnr import psnr
from mtkd.runtime.pixels import to_tensor
from mtkd.zoo import Entry, Source, resolve_inside
from tests.runs import make_images, run_options
from tests.zoo.conftest import Host, sha256
from tests.zoo.official import run_edsr

Publish = Callable[..., Entry]
FILE = "edsr_tiny.pt"
NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}


@pytest.fixture
def published(host: Host, publish: Publish, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny EDSR on a server; where its file will lie once it has been asked for."""
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    return tmp_path / "home/weights/edsr_tiny_x2.safetensors"


def write_options(tmp_path: Path, images: Path) -> Path:
    options = {
        "name": "by_name",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"test_1": {"name": "photos", "type": "PairedImageDataset", "dataroot_gt": str(images)}},
        "network_g": NETWORK,
        "path": {"pretrain_network_g": "zoo:edsr_tiny_x2", "results_root": str(tmp_path / "results")},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}},
    }
    (tmp_path / "test.yml").write_text(json.dumps(options))  # JSON is YAML
    return tmp_path / "test.yml"


def test_mtkd_test_needs_no_further_step(
    host: Host, published: Path, tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images")
    assert main(["test", "-opt", str(write_options(tmp_path, images))]) == 0
    assert published.is_file() and [path for path, _ in host.requests] == [FILE]
    assert "photos" in capsys.readouterr().out
    result = json.loads((tmp_path / "results/by_name/metrics.json").read_text())
    assert result["weights"] == "zoo:edsr_tiny_x2"
    (row,) = result["results"]
    # The number is that of the published network, computed here in its own naming.
    scores = []
    for path in sorted(images.glob("*.png")):
        gt = read_image(path)
        lq = bicubic_lq(gt, 2)
        gt = gt[: 2 * lq.shape[0], : 2 * lq.shape[1]]
        sr = run_edsr(state, to_tensor(lq), blocks=1, scale=2, res_scale=1)
        scores.append(psnr(sr, to_tensor(gt), crop_border=2, test_y_channel=True).item())
    assert row["psnr"] == pytest.approx(sum(scores) / len(scores), abs=1e-3)


def test_mtkd_test_without_a_network_ends_in_one_paragraph(
    host: Host, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.replies.clear()
    assert main(["test", "-opt", str(write_options(tmp_path, make_images(tmp_path / "images")))]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for part in (f"{host.url}/{FILE}", str(published.parent), "mtkd zoo import edsr_tiny_x2 FILE"):
        assert part in said


def test_mtkd_upscale_takes_a_name(published: Path, tmp_path: Path) -> None:
    image = make_images(tmp_path / "images") / "coffee.png"
    assert main(["upscale", str(image), str(tmp_path / "out.png"), "--weights", "zoo:edsr_tiny_x2"]) == 0
    assert read_image(tmp_path / "out.png").shape[0] == 2 * read_image(image).shape[0]


def test_a_teacher_is_fetched_by_name(published: Path, tmp_path: Path) -> None:
    teacher = {"network": NETWORK, "pretrain": "zoo:edsr_tiny_x2"}
    options = run_options(
        tmp_path, model_type="OutputKD", teachers={"edsr": teacher}, train={"target_opt": {"type": "L1Loss"}}
    )
    (net,) = build.build_teachers(options).values()
    assert published.is_file() and net.scale == 2


def test_names_are_resolved_however_deep(published: Path) -> None:
    given = {"vgg": "zoo:edsr_tiny_x2", "more": [{"a": ("zoo:edsr_tiny_x2", 3)}], "plain": "zoo", "none": None}
    assert resolve_inside(given) == {
        "vgg": str(published),
        "more": [{"a": (str(published), 3)}],
        "plain": "zoo",
        "none": None,
    }
    with pytest.raises(MtkdError, match="edsr_tiny_x2"):
        resolve_inside({"weights": "zoo:edsr_tiny_x3"})


@dataclass(frozen=True, kw_only=True)
class WithWeights:
    weights: str | None = None


class NeedsWeights(Supervised):
    """A method with weights of its own among its options and those of its term."""

    terms = {"pixel": Term("sr against gt", loss="L1Loss", weight=1.0, options={"features": ""})}
    Config = WithWeights

    def __init__(self, student: nn.Module, teachers: Any, task: Task, cfg: MethodConfig) -> None:
        self.given = (cfg.options["weights"], cfg.terms.get("pixel", {}).get("features"))
        nn.Module.__init__(self)


def method_options(tmp_path: Path) -> Options:
    options = run_options(tmp_path, method={"weights": "zoo:edsr_tiny_x2"}, model_type=f"{__name__}:NeedsWeights")
    options.train.terms["pixel"].args["features"] = "zoo:edsr_tiny_x2"
    return options


def test_weights_in_the_options_of_a_method_and_its_terms_are_fetched_for_training(
    published: Path, tmp_path: Path
) -> None:
    options = method_options(tmp_path)
    task = Task(scale=2, num_samples=1, total_steps=1)
    assert build.build_method(options, nn.Identity(), {}, task).given == (str(published), str(published))


def test_a_test_does_not_fetch_what_only_training_needs(host: Host, published: Path, tmp_path: Path) -> None:
    options = method_options(tmp_path).model_copy(update={"train": None})
    build.build_method(options, nn.Identity(), {}, Task(scale=2, num_samples=1, total_steps=1))
    assert host.requests == [] and not published.exists()


def test_weights_of_a_metric_are_fetched(published: Path) -> None:
    metrics = build_metrics({"lpips": {"type": "calculate_lpips", "better": "lower", "weights": "zoo:edsr_tiny_x2"}})
    assert metrics["lpips"].keywords == {"weights": str(published)}


def test_metrics_of_a_training_run_are_fetched_before_its_first_iteration(host: Host, tmp_path: Path) -> None:
    from mtkd.training.prepare import prepare

    lpips = {"type": "calculate_lpips", "weights": "zoo:edsr_tiny_x2"}
    options = run_options(tmp_path)
    options.val.metrics["lpips"] = lpips
    with pytest.raises(MtkdError, match="edsr_tiny_x2"):
        prepare(options)
    assert not (tmp_path / "experiments" / "tiny").exists()
