"""`mtkd export`: which files it writes, and that they are run like any weights."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from mtkd import catalog, cli, zoo
from mtkd.commands.export import files, name_of
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.inference.load import load_network

ARGUMENTS = {"num_feat": 4, "num_shrink": 4, "num_map": 1, "upscale": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = catalog.get("arch", "FSRCNN")(**ARGUMENTS)
    torch.nn.init.normal_(net.last_layer.weight, std=0.1)
    file = tmp_path_factory.mktemp("weights") / "own net.safetensors"
    zoo.write_safetensors(file, net.state_dict(), {"arch": {"type": "FSRCNN", "args": ARGUMENTS}, "scale": 2})
    return file


@pytest.mark.parametrize(
    ("outs", "formats", "precisions", "found"),
    [
        (["a.onnx"], None, ["fp32"], ["a.onnx fp32"]),
        (["a.onnx"], None, ["int8"], ["a.onnx int8"]),
        (["a.onnx", "b.param"], None, ["fp32", "int8"], ["a.onnx fp32", "a_int8.onnx int8", "b.param fp32"]),
        (["out"], None, ["fp16"], ["out/n_x4_fp16.onnx fp16"]),
        (
            ["out"],
            ["ncnn", "torch"],
            ["fp32", "fp16"],
            ["out/n_x4.param fp32", "out/n_x4_fp16.param fp16", "out/n_x4.pt2 fp32"],
        ),
    ],
)
def test_files_follow_from_suffixes_formats_and_precisions(
    outs: list[str], formats: list[str] | None, precisions: list[str], found: list[str]
) -> None:
    planned = files("zoo:n_x4", [Path(out) for out in outs], formats, precisions)
    assert [f"{path} {precision}" for path, _, precision in planned] == found


@pytest.mark.parametrize(
    ("outs", "formats", "precisions", "text"),
    [
        (["a.pt2"], None, ["int8"], "torch files are written in fp32, not in int8"),
        (["a.onnx"], ["ncnn"], ["fp32"], "--format is for folders"),
        (["a.onnx", "a.onnx"], None, ["fp32"], "Two files would be called a.onnx"),
        (["setup.py"], None, ["fp32"], "is a file with the suffix of no format"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    outs: list[str], formats: list[str] | None, precisions: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(MtkdError, match=text):
        files("tiny_x4", [Path(out) for out in outs], formats, precisions)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("tiny_x4", "tiny_x4"),
        ("hf:user/net", "net"),
        ("experiments/edsr.x4", "edsr.x4"),
        ("experiments/run/models/net_g_latest.pth", "run"),
        ("models/net_g_latest.pth", "net_g_latest"),
    ],
)
def test_files_in_a_folder_have_the_name_of_their_network(source: str, name: str) -> None:
    assert name_of(source) == name


def test_a_folder_is_filled_and_nothing_in_it_is_replaced_unasked(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["export", str(weights), str(out), "--format", "safetensors"]
    assert cli.main(line) == 0
    assert [file.name for file in out.iterdir()] == ["own net.safetensors"]
    assert "(safetensors fp32, " in capsys.readouterr().out
    assert cli.main([*line, "onnx"]) == 2
    assert "own net.safetensors exists. Choose another name, or add --overwrite" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["own net.safetensors"]  # nothing was begun
    assert cli.main([*line, "--overwrite"]) == 0


def test_an_onnx_file_upscales_like_the_weights_it_is_made_of(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    student = tmp_path / "student.onnx"
    assert cli.main(["export", str(weights), str(student)]) == 0
    photo = tmp_path / "photo.png"
    write_image(photo, np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8))
    made = []
    for source in (weights, student):
        out = tmp_path / f"{source.suffix}.png"
        assert cli.main(["upscale", str(photo), str(out), "--weights", str(source)]) == 0
        made.append(read_image(out).astype(int))
    assert made[0].shape == (42, 68, 3)
    assert np.abs(made[0] - made[1]).max() <= 1
    assert cli.main(["export", str(student), str(tmp_path / "again.onnx")]) == 2
    assert load_network(student).outside_torch is True
    monkeypatch.chdir(tmp_path)
    assert cli.main(["test", str(weights), str(student), "--data", ".", "--device", "cpu", "--no_page"]) == 0
    with open("results/comparison_x2/metrics.csv", encoding="utf-8", newline="") as file:
        rows = {row["network"]: float(row["psnr"]) for row in csv.DictReader(file)}
    assert rows["student"] == pytest.approx(rows["own net"], abs=1e-2)
