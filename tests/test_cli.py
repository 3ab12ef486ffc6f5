"""The command line as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtkd import catalog, zoo
from mtkd.archs.edsr import EDSR
from mtkd.cli import main
from mtkd.config import resolved_yaml
from mtkd.data.images import read_image, write_image
from tests.engine.runs import STUDENT, make_images, run_options
from tests.helpers import photo


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def weights(path: Path) -> Path:
    arguments = {key: value for key, value in STUDENT.items() if key != "type"}
    zoo.write_safetensors(
        path, EDSR(**arguments).state_dict(), {"arch": {"type": "EDSR", "args": arguments}, "scale": 2}
    )
    return path


@pytest.mark.parametrize("command", ["train", "test", "check", "config", "upscale", "teach", "demo", "list", "zoo"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"mtkd {command}" in capsys.readouterr().out.partition("example")[2]


def test_train_then_upscale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yml"
    file.write_text(resolved_yaml(run_options(tmp_path)))
    assert main(["train", "-opt", str(file), "--force_yml", "train:total_iter=2", "name=forced"]) == 0
    trained = tmp_path / "experiments/forced/models/net_g_latest.pth"
    assert (tmp_path / "experiments/forced/forced.yml").read_text().startswith("# GENERATE TIME")
    write_image(tmp_path / "in.png", photo("coffee", (20, 30)))
    assert main(["upscale", "in.png", "out.png", "--weights", str(trained)]) == 0
    assert read_image(tmp_path / "out.png").shape == (40, 60, 3)
    assert "1 image upscaled x2" in capsys.readouterr().out


def test_test_prints_a_table_and_never_overwrites_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images")
    weights(tmp_path / "edsr.safetensors")
    (tmp_path / "test.yml").write_text(
        f"""
name: tiny_test
scale: 2
num_gpu: 0
datasets:
  test_1: {{name: Photos, type: PairedImageDataset, dataroot_gt: {images}}}
network_g: {{type: EDSR, num_feat: 4, num_block: 1, upscale: 2}}
path: {{pretrain_network_g: edsr.safetensors}}
val:
  save_img: true
  suffix: ~
  metrics:
    psnr: {{type: calculate_psnr, crop_border: 2, test_y_channel: true}}
"""
    )
    assert main(["test", "-opt", "test.yml"]) == 0
    out = capsys.readouterr().out
    assert "Photos" in out and "psnr" in out
    saved = json.loads((tmp_path / "results/tiny_test/metrics.json").read_text())
    assert f"{saved['results'][0]['psnr']:.4f}" in out
    assert saved["environment"]["versions"]["torch"]
    assert len((tmp_path / "results/tiny_test/metrics.csv").read_text().splitlines()) == 5
    assert (tmp_path / "results/tiny_test/visualization/Photos/coffee_tiny_test.png").exists()
    assert main(["test", "-opt", "test.yml"]) == 0
    assert (tmp_path / "results/tiny_test_2/metrics.json").exists()


def test_check_reports_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "options"
    folder.mkdir()
    text = resolved_yaml(run_options(tmp_path))
    (folder / "good.yml").write_text(text)
    (folder / "bad.yml").write_text(text.replace("total_iter", "total_itr"))
    assert main(["check", str(folder)]) == 2
    out = capsys.readouterr().out
    assert "FAIL" in out and "total_iter" in out and "ok " in out and "1 of 2" in out
    assert main(["check", str(folder / "good.yml"), "--data"]) == 0


def test_errors_are_one_paragraph_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-opt", "missing.yml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mtkd: ") and "missing.yml" in error and "Traceback" not in error


@pytest.mark.parametrize("what", ["archs", "methods", "losses", "metrics", "datasets"])
def test_list_names_everything(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    assert {"archs": "SwinIR", "methods": "train.target_opt", "losses": "WaveletLoss", "metrics": "calculate_ssim"}.get(
        what, "PairedImageDataset"
    ) in out


def test_list_says_which_methods_train_from_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods"]) == 0
    found: dict[str, str] = {}
    name = ""
    for line in capsys.readouterr().out.splitlines():
        name = name if line.startswith(" ") else line.partition(":")[0]
        if line.startswith("    teachers: "):
            found[name] = line.removeprefix("    teachers: ")
    assert sorted(found) == sorted(catalog.names("method"))
    stored = "one image per lq; trains from a target_store"
    assert [name for name, use in found.items() if use == stored] == ["OutputKD", "MTKD"]
    assert found["FAKD"] == found["MTKDFusion"] == "run on line, frozen"
    assert found["SRModel"] == found["CSD"] == "none"


def test_a_training_file_is_not_tested_with_its_start_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yml"
    file.write_text(resolved_yaml(run_options(tmp_path)))
    assert main(["test", "-opt", str(file)]) == 2
    assert "training file" in capsys.readouterr().err
