"""The page of a run: it tells what the run's files tell, and nothing of the run depends on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mtkd.cli import main
from mtkd.training import loop as train_module
from mtkd.training import report as training_report
from mtkd.training.loop import train
from mtkd.training.report import curves_of
from tests.report.test_page import Read
from tests.runs import make_images, run_options

METRICS = {"psnr": {"type": "calculate_psnr", "crop_border": 2}}


def options_of(tmp_path: Path, **changes):  # noqa: ANN003, ANN201
    images = make_images(tmp_path / "images")
    val = {"name": "photographs", "type": "PairedImageDataset", "dataroot_gt": str(images)}
    train_set = {**val, "gt_size": 16, "batch_size_per_gpu": 2}
    return run_options(
        tmp_path,
        images=images,
        datasets={"train": train_set, "val": val},
        val={"val_freq": 4, "metrics": METRICS},
        **changes,
    )


def test_a_run_that_ends_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(tmp_path)
    train(options, page=True, option_text="name: as I wrote it\n")
    root = tmp_path / "experiments/tiny"
    page = Read((root / "report.html").read_text(encoding="utf-8"))
    assert f"To look at: {root / 'report.html'}" in capsys.readouterr().out
    (row,) = page.data["rows"]
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    validated = [(one["step"], one["metrics"]["psnr"]) for one in rows if "validation" in one]
    assert [step for step, _ in validated] == [4, 8]
    curve = next(one for one in row["curves"] if one["metric"] == "psnr")
    assert (curve["dataset"], curve["iterations"]) == ("photographs", [4, 8])
    assert curve["values"] == [pytest.approx(value, rel=1e-5) for _, value in validated]
    assert row["cells"][0][0]["mean"] == pytest.approx(validated[-1][1], rel=1e-5)
    losses = {one["metric"]: one for one in row["curves"] if one["dataset"] == ""}
    logged = [one["losses"]["l_total"] for one in rows if "losses" in one]
    assert losses["l_total"]["values"] == [pytest.approx(value, rel=1e-5) for value in logged]
    seconds = losses["l_total"]["seconds"]
    assert seconds == sorted(seconds) and seconds[-1] > 0
    assert len(page.data["pictures"]) == 3
    assert {len(picture["layers"]) for picture in page.data["pictures"]} == {3}
    assert "as I wrote it" in page.text and "resolved.yml" in page.text and "torch" in page.text


def test_the_page_leaves_the_weights_and_a_resumed_run_as_they_are(tmp_path: Path) -> None:
    weights = [
        torch.load(train(options_of(tmp_path / name), page=page), weights_only=False)
        for name, page in (("with", True), ("without", False))
    ]
    assert not (tmp_path / "without/experiments/tiny/report.html").exists()
    for one, other in zip(weights[0]["params"].values(), weights[1]["params"].values(), strict=True):
        assert torch.equal(one, other)
    path = tmp_path / "with/experiments/tiny/report.html"
    before = path.stat().st_mtime_ns
    again = make_again(tmp_path / "with")
    train(again, auto_resume=True, page=True)
    assert path.stat().st_mtime_ns == before
    path.unlink()
    train(again, auto_resume=True, page=True)
    assert Read(path.read_text(encoding="utf-8")).data["rows"][0]["curves"]


def test_a_page_of_an_earlier_end_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(options_of(tmp_path, train={"total_iter": 4}), page=True)
    path = tmp_path / "experiments/tiny/report.html"

    class Killed(BaseException):
        pass

    def killed(run: object) -> None:
        raise Killed

    longer = make_again(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train_module, "write_run_page", killed)
        train(longer, auto_resume=True, page=True)
    train(longer, auto_resume=True, page=True)
    (row,) = Read(path.read_text(encoding="utf-8")).data["rows"]
    assert next(one for one in row["curves"] if one["metric"] == "psnr")["iterations"] == [4, 8]


def make_again(folder: Path):  # noqa: ANN201
    """The options of `options_of` for a folder whose images are there."""
    images = folder / "images"
    val = {"name": "photographs", "type": "PairedImageDataset", "dataroot_gt": str(images)}
    datasets = {"train": {**val, "gt_size": 16, "batch_size_per_gpu": 2}, "val": val}
    return run_options(folder, images=images, datasets=datasets, val={"val_freq": 4, "metrics": METRICS})


def test_a_page_that_fails_is_said_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(run: object) -> None:
        raise ValueError("no room for pictures")

    monkeypatch.setattr(training_report, "_pictures", refuse)
    weights = train(options_of(tmp_path), page=True)
    assert weights.is_file() and not (tmp_path / "experiments/tiny/report.html").exists()
    assert "report.html is not: ValueError: no room for pictures" in capsys.readouterr().out


def test_a_run_without_validation_has_its_losses(tmp_path: Path) -> None:
    train(run_options(tmp_path), page=True)
    page = Read((tmp_path / "experiments/tiny/report.html").read_text(encoding="utf-8"))
    assert {"curves", "protocol"} <= set(page.ids) and "tables" not in page.ids and not page.data["pictures"]
    assert {curve["dataset"] for curve in page.data["rows"][0]["curves"]} == {""}


def test_the_command_writes_it_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_images(tmp_path / "images")
    optimizer = {"optim_g": {"type": "Adam", "lr": 1e-3}, "scheduler": {"type": "MultiStepLR", "milestones": [1]}}
    train_set = {"name": "p", "type": "PairedImageDataset", "dataroot_gt": str(images), "gt_size": 16}
    plain = {
        "name": "told",
        "model_type": "SRModel",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"train": {**train_set, "batch_size_per_gpu": 2}},
        "network_g": {"type": "EDSR", "num_feat": 4, "num_block": 1},
        "train": {"total_iter": 2, **optimizer, "pixel_opt": {"type": "L1Loss"}},
    }
    for name, arguments in (("told", ["--no_page"]), ("asked", [])):
        Path("run.yml").write_text(json.dumps({**plain, "name": name}))
        assert main(["train", "-opt", "run.yml", *arguments]) == 0
        assert Path("experiments", name, "report.html").exists() is (name == "asked")


def test_curves_go_on_between_lines_of_losses_and_over_a_resumed_run(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "seconds_per_step": 0.5, "losses": {"pixel": 0.4, "nothing": 0.0}},
        {"step": 15, "validation": "val", "entry": "params", "metrics": {"psnr": 30.0}},
        {"step": 20, "seconds_per_step": "nan", "losses": {"pixel": "inf", "nothing": 0.0}},
        {"step": 30, "seconds_per_step": 0.1, "losses": {"pixel": 0.2, "nothing": 0.0}},
        {"step": 30, "validation": "val", "entry": "params", "metrics": {"psnr": 31.0}},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    score, loss = curves_of(log, 7, {"val": "Kodak"})
    assert (score.dataset, score.metric, score.seed) == ("Kodak", "psnr", 7)
    assert (list(score.iterations), list(score.seconds), list(score.values)) == ([15, 30], [7.5, 11.0], [30.0, 31.0])
    assert (loss.dataset, loss.metric, list(loss.iterations), list(loss.seconds)) == (
        "",
        "pixel",
        [10, 30],
        [5.0, 11.0],
    )
    assert curves_of(tmp_path / "none", 0, {}) == []


def test_pictures_too_large_to_upscale_again_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_report, "MOST_PIXELS", 10)
    train(options_of(tmp_path), page=True)
    page = Read((tmp_path / "experiments/tiny/report.html").read_text(encoding="utf-8"))
    assert not page.data["pictures"] and "viewer" not in page.ids
