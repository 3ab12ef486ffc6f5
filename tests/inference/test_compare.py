"""`mtkd test` without an option file: runs, files and baselines in one table, each number that of its own network."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.build import build_teachers
from mtkd.cli import main
from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from mtkd.data.paired import PairedImages
from mtkd.data.resize import bicubic_lq
from mtkd.inference import baselines, named
from mtkd.inference.baselines import Bicubic, Memoized
from mtkd.inference.compare import compare
from mtkd.inference.evaluate import build_metrics, evaluate
from mtkd.inference.image_sets import folder_sets
from mtkd.inference.results import Subject
from mtkd.runtime import shipped
from mtkd.training.loop import train
from mtkd.zoo.table import ENTRIES
from tests.helpers import photo
from tests.runs import FUSION, STUDENT, make_images, make_teachers, run_options

PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 3}}
DEFAULT = {
    "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
    "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
}


class Ground(NamedTuple):
    images: Path
    fusion: Path
    student: Path
    options: Any
    """Of the student's run."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A run of stage 1 and one of stage 2, which was validated on the images."""
    folder = tmp_path_factory.mktemp("ground")
    images = make_images(folder / "photos")
    sets = {
        "train": {
            "name": "p",
            "type": "PairedImageDataset",
            "dataroot_gt": str(images),
            "gt_size": 16,
            "batch_size_per_gpu": 2,
        }
    }
    teachers = make_teachers(folder / "weights")
    common = {"images": images, "teachers": teachers, "train": {"total_iter": 2}}
    fusion = run_options(folder, name="fusion", model_type="MTKDFusion", network_g=FUSION, **common)
    fused = train(fusion)
    common["train"] = {"total_iter": 2, "optim_g": {"type": "Adam", "lr": 1e-2}}
    val = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)}
    student = run_options(
        folder,
        name="student",
        model_type="MTKD",
        fusion={"network": FUSION, "pretrain": str(fused)},
        datasets={**sets, "val": val},
        val={"val_freq": 2, "metrics": PSNR},
        **common,
    )
    train(student)
    runs = folder / "experiments"
    return Ground(images, runs / "fusion", runs / "student", student)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(name: str) -> dict[str, Any]:
    return json.loads(Path("results", name, "metrics.json").read_text())


def test_a_run_its_teachers_and_bicubic_in_one_table(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["test", str(ground.student), str(ground.fusion), "--with", "bicubic,teachers", "--data"]
    assert main([*command, str(ground.images)]) == 0
    facts, said = saved("comparison_x2"), capsys.readouterr().out
    names = [
        "bicubic",
        "teacher edsr",
        "teacher rcan",
        "mean of the teachers",
        "fused teachers (DCTSwin)",
        "student",
        "fusion",
    ]
    assert [one["name"] for one in facts["networks"]] == names == [row["network"] for row in facts["results"]]

    (fused,) = build_teachers(ground.options).values()
    members = {name: net.eval() for name, net in fused.ensemble.members.items()}
    expected: dict[str, nn.Module] = {
        "bicubic": Bicubic(2),
        **{f"teacher {name}": net for name, net in members.items()},
        "mean of the teachers": FusedTeacher(Ensemble(members), MeanFusion(2)),
        "fused teachers (DCTSwin)": fused.eval(),
        "student": zoo.build(ground.student / "models/net_g_latest.pth"),
        "fusion": fused,
    }
    images = PairedImages(dataroot_gt=ground.images, scale=2)
    for one, row in zip(facts["networks"], facts["results"], strict=True):
        net = expected[one["name"]]
        direct = evaluate(net, images, build_metrics(PSNR), dataset="photos").means()["psnr"]
        assert row == {"network": one["name"], "dataset": "photos", "psnr": pytest.approx(direct, abs=1e-4)}
        assert one["parameters"] == sum(parameter.numel() for parameter in net.parameters())
        assert f"{row['psnr']:.4f}" in said and one["name"] in said
    assert all(facts["networks"][0][key] is None for key in ("weights", "entry", "iteration", "gmacs_1280x720"))
    assert facts["networks"][5]["weights"] == str(ground.student / "models/net_g_latest.pth")
    assert (facts["networks"][5]["entry"], facts["networks"][5]["iteration"]) == ("params_ema", 2)
    assert f"Weights of student: params_ema of {ground.student}/models/net_g_latest.pth, iteration 2\n" in said
    rows = map(json.loads, (ground.student / "metrics.jsonl").read_text().splitlines())
    validated = next(row["metrics"]["psnr"] for row in rows if "validation" in row)
    assert facts["results"][5]["psnr"] == pytest.approx(validated, abs=1e-4)
    with Path("results/comparison_x2/metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 7 * 4
    assert {(line["network"], line["entry"], line["iteration"]) for line in lines} >= {
        ("bicubic", "", ""),
        ("student", "params_ema", "2"),
    }
    assert facts["metrics"] == {"psnr": {**PSNR["psnr"], "better": "higher"}}
    assert facts["environment"]["versions"]["torch"] and facts["command"].startswith("mtkd ")


def test_each_teacher_answers_an_image_once(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    forward = EDSR.forward
    monkeypatch.setattr(EDSR, "forward", lambda net, lq: asked.append(str(tuple(lq.shape))) or forward(net, lq))
    for module in (baselines, named):
        monkeypatch.setattr(module, "describe", lambda name, net, **more: Subject(name, net, None, None, 0, None))
    compare([str(ground.fusion)], data=[ground.images], teachers=True)
    # One for the trial, four images; in three rows: the teacher, the mean, the run itself.
    assert len(asked) <= 5 + 2


def test_remembered_answers_are_the_same_and_bounded() -> None:
    net = Memoized(EDSR(num_feat=4, num_block=1, upscale=2), room=2 * 3 * 16 * 16 * 4)
    images = [torch.rand(1, 3, 8, 8) for _ in range(3)]
    with torch.no_grad():
        first = [net(lq) for lq in images]
        assert len(net._answers) == 2
        assert all(torch.equal(net(lq), sr) for lq, sr in zip(images, first, strict=True))
        assert torch.equal(net(images[0]), net.net(images[0]))
    net.forget()
    assert not net._answers


def test_a_file_is_held_to_the_usual_metrics_and_sets_that_are_here(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ground.student / "models/net_g_latest.pth"
    with pytest.raises(MtkdError, match="none of the sets of .*benchmark.yml is here.*--data FOLDER.*datasets/README"):
        compare([str(file)])
    assert f"the test sets are those of {shipped.file('options/benchmark.yml')}" in capsys.readouterr().out
    Path("options").mkdir()
    shutil.copy(Path(__file__).parents[2] / "options/benchmark.yml", "options")
    with pytest.raises(MtkdError, match="none of the sets of options/benchmark.yml is here.*--data FOLDER"):
        compare([str(file)])
    shutil.copytree(ground.images, "datasets/Set14/HR")
    capsys.readouterr()
    rows = compare([str(file)])
    said = capsys.readouterr().out
    assert [(name, row.dataset) for name, row in rows] == [("student net_g_latest", "Set14")]
    assert "Left out, not found: Set5 (datasets/Set5/HR)" in said and "Set14 (" not in said
    assert "crop_border: 2, test_y_channel: True" in said and "whole images" in said
    images = PairedImages(dataroot_gt=ground.images, scale=2)
    direct = evaluate(zoo.build(file), images, build_metrics(DEFAULT), dataset="").means()
    facts = saved("student_net_g_latest")
    assert facts["metrics"] == DEFAULT and facts["sets"]["Set14"]["lq"] == "MATLAB's bicubic"
    assert facts["results"][0]["psnr"] == pytest.approx(direct["psnr"], abs=1e-4)
    assert facts["results"][0]["ssim"] == pytest.approx(direct["ssim"], abs=1e-6)
    compare([str(file)], tile_size=8, tile_pad=16)
    assert saved("student_net_g_latest_2")["tile"] == {"tile_size": 8, "tile_pad": 16}


def test_folders_of_images(tmp_path: Path) -> None:
    for number, name in enumerate(("coffee", "rocket")):
        gt = photo(name, (40, 44))
        write_image(tmp_path / f"own/gt/{name}.png", gt)
        write_image(tmp_path / f"own/lq/{name}.png", bicubic_lq(gt, 2) // (1 + number))
        write_image(tmp_path / f"laid_out/HR/{name}.png", gt)
        write_image(tmp_path / f"other/own/{name}.png", gt)
        write_image(tmp_path / f"lonely/lq/{name}.png", gt)
    own, plain = tmp_path / "own", tmp_path / "laid_out"
    sets = folder_sets([own, plain], 2)
    assert list(sets) == ["own", "laid_out"]
    pairs = [sets[name][1] for name in sets]
    assert (pairs[0].lq == pairs[1].lq // 2).all() and (pairs[0].gt == pairs[1].gt).all()
    assert list(folder_sets([own, tmp_path / "other/own"], 2)) == [f"{tmp_path.name}/own", "other/own"]
    for folders, words in (
        ([own, own], "two folders are called"),
        ([tmp_path / "lonely"], "holds `lq` without `gt`"),
        ([tmp_path / "nowhere"], "nowhere"),
    ):
        with pytest.raises(MtkdError, match=words):
            folder_sets(folders, 2)


def test_a_run_that_is_not_finished_says_so(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(ground.student, "stopped"))
    (run / "models/net_g_latest.pth").unlink()
    text = (run / "resolved.yml").read_text()
    (run / "resolved.yml").write_text(text.replace("total_iter: 2", "total_iter: 5000"))
    compare(["stopped"], data=[ground.images])
    said = capsys.readouterr().out
    assert "net_g_2.pth, iteration 2; its run is not finished, which has 5,000 iterations" in said
    assert saved("stopped")["networks"][0]["note"] and saved("stopped")["networks"][0]["iteration"] == 2
    shutil.rmtree(run / "models")
    with pytest.raises(MtkdError, match="stopped holds no weights yet"):
        compare(["stopped"], data=[ground.images])


def test_what_cannot_be_measured_is_one_paragraph(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    net = EDSR(num_feat=4, num_block=1, upscale=3)
    facts = {"arch": {"type": "EDSR", "args": {"num_feat": 4, "num_block": 1, "upscale": 3}}, "scale": 3}
    zoo.write_safetensors(Path("x3.safetensors"), net.state_dict(), facts)
    torch.save({"params": EDSR(num_feat=4, num_block=1, upscale=2).state_dict()}, "silent.pth")
    other = Path(shutil.copytree(ground.student, "other"))
    text = (other / "resolved.yml").read_text()
    (other / "resolved.yml").write_text(text.replace("crop_border: 3", "crop_border: 1"))
    entry = next(name for name, known in ENTRIES.items() if known.scale == 2 and not known.shipped)
    student, data = str(ground.student), ["--data", str(ground.images)]
    for arguments, words in (
        ([student, "x3.safetensors", *data], "One table has one scale"),
        ([student, "zoo:vgg19", *data], "does not enlarge images"),
        ([student, "zoo:nothing", *data], "no weights called"),
        ([student, student, *data], "named twice"),
        ([student, "other", *data], "different ones (val.metrics)"),
        ([str(ground.fusion / "models/net_g_latest.pth"), *data], "trained by MTKDFusion"),
        (["silent.pth", *data], "does not say which network it holds"),
        ([str(ground.images), *data], "not the folder of a run"),
        (["nowhere.pth", *data], "no run folder or weights file nowhere.pth"),
        ([entry, *data], f"zoo:{entry}"),
        (["run.yml", *data], "mtkd test -opt run.yml"),
        ([*data], "No network is given"),
        (["x3.safetensors", "--with", "teachers", *data], "declares teachers"),
        ([student, "--with", "trees", *data], "--with trees"),
        ([student, "--tile", "0", *data], "tile_size >= 1"),
        ([student, "--device", "nothing", *data], "no device nothing"),
        ([student, "-opt", "run.yml"], "Leave out"),
        ([student, "--force_yml", "a=1"], "--force_yml"),
        ([student, "--data", "nowhere"], "nowhere"),
    ):
        assert main(["test", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said and len(said.splitlines()) <= 2, said
    assert not Path("results").exists()


def test_a_method_that_deploys_another_network_is_measured_with_that(ground: Ground, tmp_path: Path) -> None:
    wide = {"pixel_opt": {"type": "L1Loss"}, "teacher_pixel_opt": {"type": "L1Loss"}, "contrast_opt": None}
    options = run_options(
        tmp_path,
        images=ground.images,
        name="slim",
        model_type="CSD",
        method={"width": 0.5},
        train={"total_iter": 2, **wide},
    )
    weights = train(options)
    with pytest.raises(MtkdError, match="trained by CSD.*models/deployable.pth"):
        compare([str(weights)], data=[ground.images])
    rows = compare(["experiments/slim", str(weights.with_name("deployable.pth"))], data=[ground.images])
    narrow = sum(parameter.numel() for parameter in EDSR(num_feat=2, num_block=1, upscale=2).parameters())
    assert [one["parameters"] for one in saved("comparison_x2")["networks"]] == [narrow, narrow]
    assert [name for name, _ in rows] == ["slim", "slim deployable"]
    assert rows[0][1].values["psnr"] == pytest.approx(rows[1][1].values["psnr"], abs=1e-4)


def test_two_runs_with_other_teachers_and_one_name(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ground.student, "a/student")
    shutil.copytree(ground.student, "b/student")
    resolved = Path("b/student/resolved.yml")
    other = make_teachers(Path("other"))
    text = resolved.read_text()
    for teacher in ("edsr", "rcan"):
        text = text.replace(ground.options.teachers[teacher].pretrain, str(Path(other[teacher]["pretrain"]).absolute()))
    resolved.write_text(text)
    compare(["a/student", "b/student"], data=[ground.images], teachers=True)
    names = [one["name"] for one in saved("comparison_x2")["networks"]]
    assert names[-2:] == ["a/student", "b/student"] and len(set(names)) == len(names) == 10
    assert names[:4] == [
        "teacher edsr of a/student",
        "teacher rcan of a/student",
        "mean of the teachers of a/student",
        "fused teachers (DCTSwin) of a/student",
    ]
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in names)


def test_an_option_file_takes_device_and_tiles(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    test = {
        "name": "tiled",
        "scale": 2,
        "datasets": {"test_1": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(ground.images)}},
        "network_g": STUDENT,
        "path": {"pretrain_network_g": str(ground.student / "models/net_g_latest.pth")},
        "val": {"metrics": PSNR},
    }
    Path("test.yml").write_text(json.dumps(test))
    assert main(["test", "-opt", "test.yml", "--tile", "8", "--tile_pad", "16", "--device", "cpu"]) == 0
    compare([str(ground.student)], data=[ground.images], tile_size=8, tile_pad=16)
    numbers = [saved(name)["results"][0]["psnr"] for name in ("tiled", "student")]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)
    capsys.readouterr()
    assert main(["test", "-opt", "test.yml", "--tile", "-1"]) == 2
    assert "tile_size >= 1" in capsys.readouterr().err
