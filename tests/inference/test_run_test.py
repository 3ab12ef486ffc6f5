"""`mtkd test -opt FILE` with teachers: each, their mean and the fused image have a row, with its own number."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from mtkd import zoo
from mtkd.archs.dctswin import DCTSwin
from mtkd.archs.edsr import EDSR
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.archs.rcan import RCAN
from mtkd.cli import main
from mtkd.config import Options, TileOptions, ValOptions, load_options, make_options, resolved_yaml
from mtkd.config.diff import diff
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.data.paired import PairedImages
from mtkd.inference import measure
from mtkd.inference.baselines import Bicubic, Memoized
from mtkd.inference.evaluate import build_metrics, evaluate, val_predict
from mtkd.inference.run_test import run_test
from mtkd.metrics.latency import RunningCost
from mtkd.runtime.pixels import to_image, to_tensor
from tests.runs import FUSION, STUDENT, make_images, make_teachers
from tests.runs import TEACHERS as TEACHER_NETWORKS

PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 2}}
TEACHERS = ["teacher edsr", "teacher rcan"]
MEAN, FUSED = "mean of the teachers", "fused teachers (DCTSwin)"


class Ground(NamedTuple):
    images: Path
    teachers: dict[str, Any]
    fusion: Path
    student: Path
    networks: dict[str, nn.Module]
    """What each row has to be, by its name."""


def network(cls: Any, arguments: dict[str, Any], seed: int) -> Any:
    torch.manual_seed(seed)
    return cls(**{key: value for key, value in arguments.items() if key != "type"}).eval()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    teachers = make_teachers(folder)
    members = {"edsr": network(EDSR, TEACHER_NETWORKS["edsr"], 0), "rcan": network(RCAN, TEACHER_NETWORKS["rcan"], 1)}
    for brightness, (name, net) in zip((-30.0, 20.0), members.items(), strict=True):
        net.conv_last.bias.data.fill_(brightness)  # of 255: no two rows have nearly one number
        arguments = {key: value for key, value in TEACHER_NETWORKS[name].items() if key != "type"}
        facts = {"arch": {"type": TEACHER_NETWORKS[name]["type"], "args": arguments}, "scale": 2}
        zoo.write_safetensors(Path(teachers[name]["pretrain"]), net.state_dict(), facts)
    fusion, student = network(DCTSwin, FUSION, 2), network(EDSR, STUDENT, 3)
    for parameter in fusion.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # it begins as the mean
    arguments = {key: value for key, value in FUSION.items() if key != "type"}
    facts = {"arch": {"type": "DCTSwin", "args": arguments}, "scale": 2, "members": list(members)}
    zoo.write_safetensors(folder / "fusion.safetensors", fusion.state_dict(), facts)
    torch.save({"params": student.state_dict()}, folder / "student.pth")
    networks = {
        "bicubic": Bicubic(2),
        TEACHERS[0]: members["edsr"],
        TEACHERS[1]: members["rcan"],
        MEAN: FusedTeacher(Ensemble(members), MeanFusion(2)).eval(),
        FUSED: FusedTeacher(Ensemble(members), fusion).eval(),
        "ours": student,
    }
    images = make_images(folder / "photos")
    return Ground(images, teachers, folder / "fusion.safetensors", folder / "student.pth", networks)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plain(ground: Ground, *, student: bool = True, fused: bool = False, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": "ours",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"test_1": {"name": "photos", "type": "PairedImageDataset", "dataroot_gt": str(ground.images)}},
        "teachers": ground.teachers,
        "val": {"metrics": PSNR},
    }
    if student:
        data |= {"network_g": STUDENT, "path": {"pretrain_network_g": str(ground.student)}}
    if fused:
        data["fusion"] = {"network": FUSION, "pretrain": str(ground.fusion)}
    return data | changes


def file(ground: Ground, **changes: Any) -> str:
    Path("test.yml").write_text(json.dumps(plain(ground, **changes)))
    return "test.yml"


def saved(name: str = "ours") -> dict[str, Any]:
    return json.loads(Path("results", name, "metrics.json").read_text())


def direct(ground: Ground, name: str, val: ValOptions | None = None) -> float:
    predict = val_predict(ground.networks[name], val or ValOptions(), 2)
    images = PairedImages(dataroot_gt=ground.images, scale=2)
    return evaluate(predict, images, build_metrics(PSNR), dataset="photos").means()["psnr"]


def test_a_file_with_teachers_has_rows_for_them_their_mean_the_fused_image_and_its_network(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "-opt", file(ground, model_type="MTKD", fused=True), "--with", "bicubic"]) == 0
    said, facts = capsys.readouterr().out, saved()
    names = ["bicubic", *TEACHERS, MEAN, FUSED, "ours"]
    assert [one["name"] for one in facts["networks"]] == [one["network"] for one in facts["results"]] == names
    for one, row in zip(facts["networks"], facts["results"], strict=True):
        assert row["psnr"] == pytest.approx(direct(ground, row["network"]), abs=1e-4)
        assert one["parameters"] == sum(value.numel() for value in ground.networks[row["network"]].parameters())
        assert f" {one['name']} " in said and f"{row['psnr']:.4f}" in said
    assert len({round(row["psnr"], 3) for row in facts["results"]}) == len(names)
    with Path("results/ours/metrics.csv").open() as table:
        lines = list(csv.DictReader(table))
    assert [line["network"] for line in lines] == [name for name in names for _ in range(4)]
    assert {line["entry"] for line in lines} == {"", "params"}
    # What a file of one network alone has stored at the top is there for its own network.
    assert (facts["name"], facts["weights"], facts["entry"]) == ("ours", str(ground.student), "params")
    assert facts["networks"][4]["weights"] == str(ground.fusion)
    assert "Measured beside network_g: 2 teachers, their mean, their fused image." in said
    assert "`--without teachers` leaves them out" in said


def test_without_teachers_the_network_is_measured_alone(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    given = file(ground, model_type="MTKD", fused=True)
    weights = [Path(teacher["pretrain"]) for teacher in ground.teachers.values()]
    moved = [path.rename(f"{path}.away") for path in weights]
    try:
        assert main(["test", "-opt", given]) == 2
        said = capsys.readouterr().err
        assert "edsr.safetensors" in said and "To measure network_g without its teachers: `--without teachers`." in said
        assert main(["test", "-opt", given, "--without", "teachers"]) == 0
    finally:
        for path, place in zip(weights, moved, strict=True):
            place.rename(path)
    assert [row["network"] for row in saved()["results"]] == ["ours"]
    assert "Measured beside" not in capsys.readouterr().out


@pytest.mark.parametrize("network_g", [None, STUDENT])
def test_an_ensemble_needs_no_student(
    ground: Ground, network_g: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {} if network_g is None else {"network_g": network_g}
    given = file(ground, student=False, name="ensemble", fused=True, **changes)
    assert main(["test", "-opt", given]) == 0
    facts, said = saved("ensemble"), capsys.readouterr().out
    assert [row["network"] for row in facts["results"]] == [*TEACHERS, MEAN, FUSED]
    for row in facts["results"]:
        assert row["psnr"] == pytest.approx(direct(ground, row["network"]), abs=1e-4)
    assert facts["name"] == "ensemble" and "weights" not in facts
    assert ("gives no weights of network_g" in said) == (network_g is not None)

    options = load_options(given)
    assert [line for line in options.notices if line.startswith("network_g ignored")] == [
        "network_g ignored: path.pretrain_network_g gives no weights, so that the teachers alone are measured."
    ][: network_g is not None]
    Path("again.yml").write_text(resolved_yaml(options))
    assert not diff(load_options("again.yml"), options)
    assert main(["check", given, "--data"]) == 0

    assert main(["test", "-opt", given, "--without", "teachers"]) == 2
    assert "There is no network to measure" in capsys.readouterr().err
    assert main(["upscale", str(ground.images), "out", "-opt", given]) == 2
    assert "path.pretrain_network_g is not given" in capsys.readouterr().err


def test_weights_that_are_named_and_not_there_are_an_error_and_not_left_out(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    given = file(ground, path={"pretrain_network_g": "nowhere.pth"})
    assert main(["test", "-opt", given]) == 2
    assert "nowhere.pth" in capsys.readouterr().err and not Path("results").exists()
    del (data := plain(ground, path={"pretrain_network_g": "nowhere.pth"}))["network_g"]
    with pytest.raises(MtkdError, match="network_g: required"):
        make_options(data)


@pytest.mark.parametrize("model_type", ["SRModel", "FAKD", "OutputKD"])
def test_teachers_are_rows_whatever_the_method_reads_of_them(ground: Ground, model_type: str) -> None:
    rows = run_test(make_options(plain(ground, model_type=model_type)))
    assert [name for name, _ in rows] == [*TEACHERS, MEAN, "ours"]


def test_one_teacher_has_no_mean_and_no_fused_image(ground: Ground) -> None:
    options = make_options(plain(ground, teachers={"rcan": ground.teachers["rcan"]}, fusion="mean"))
    assert "fusion ignored: there is 1 teacher." in options.notices
    rows = run_test(options)
    assert [name for name, _ in rows] == ["teacher rcan", "ours"]
    assert rows[0][1].means()["psnr"] == pytest.approx(direct(ground, "teacher rcan"), abs=1e-4)


def test_methods_together_that_fuse_some_of_the_teachers_have_a_row_for_what_they_fuse(ground: Ground) -> None:
    third = {"third": ground.teachers["edsr"]}
    options = make_options(
        plain(
            ground,
            model_type="MTKD + FAKD",
            teachers={**third, **ground.teachers},
            fusion="mean",
            method={"MTKD": {"teachers": ["edsr", "rcan"]}, "FAKD": {"teachers": ["third"]}},
        )
    )
    rows = dict(run_test(options))
    assert list(rows) == ["teacher third", *TEACHERS, MEAN, "mean of edsr, rcan", "ours"]
    assert rows["mean of edsr, rcan"].means()["psnr"] == pytest.approx(direct(ground, MEAN), abs=1e-4)
    assert rows[MEAN].means()["psnr"] != pytest.approx(direct(ground, MEAN), abs=1e-4)


def stage_1(ground: Ground, **changes: Any) -> Options:
    path = {"pretrain_network_g": str(ground.fusion)}
    return make_options(plain(ground, student=False, model_type="MTKDFusion", network_g=FUSION, path=path, **changes))


def test_a_fusion_network_is_measured_behind_its_teachers_and_beside_them(ground: Ground) -> None:
    rows = dict(run_test(stage_1(ground)))
    assert list(rows) == [*TEACHERS, MEAN, "ours"]
    assert rows["ours"].means()["psnr"] == pytest.approx(direct(ground, FUSED), abs=1e-4)
    assert saved()["weights"] == str(ground.fusion)


def test_each_teacher_answers_an_image_once(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    forward = RCAN.forward
    monkeypatch.setattr(RCAN, "forward", lambda net, lq: asked.append(lq.device.type != "meta") or forward(net, lq))
    run_test(make_options(plain(ground, fused=True)))
    # Four images and one for trial, in three rows: the teacher, the mean, the fused image.
    assert sum(asked) == 5


def test_tiles_self_ensemble_and_precision_hold_for_every_row(ground: Ground) -> None:
    val = {"metrics": PSNR, "tile": {"tile_size": 8, "tile_pad": 2}, "self_ensemble": True}
    rows = run_test(make_options(plain(ground, val=val)))
    expected = ValOptions(tile=TileOptions(tile_size=8, tile_pad=2), self_ensemble=True)
    for name, row in rows:
        assert row.means()["psnr"] == pytest.approx(direct(ground, name, expected), abs=1e-4), name
        assert row.means()["psnr"] != pytest.approx(direct(ground, name), abs=1e-5), name
    facts = saved()
    assert facts["tile"] == {"tile_size": 8, "tile_pad": 2} and facts["self_ensemble"] is True
    seen: list[torch.dtype] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    try:
        run_test(make_options(plain(ground, precision="bf16")))
    finally:
        hook.remove()
    assert torch.bfloat16 in seen and saved("ours_2")["precision"] == "bf16"


def test_images_of_every_row_are_saved_under_its_name(ground: Ground) -> None:
    run_test(make_options(plain(ground, fused=True, val={"metrics": PSNR, "save_img": True, "suffix": "sr"})))
    folder = Path("results/ours/visualization/photos")
    suffixes = {"teacher_edsr", "teacher_rcan", "mean_of_the_teachers", "fused_teachers_DCTSwin", "sr"}
    stems = {path.stem for path in ground.images.iterdir()}
    assert {path.name for path in folder.iterdir()} == {f"{stem}_{end}.png" for stem in stems for end in suffixes}
    image = next(one for one in PairedImages(dataroot_gt=ground.images, scale=2) if one.name == "coffee")
    with torch.no_grad():
        expected = to_image(ground.networks[FUSED](to_tensor(image.lq)))
    shown = read_image(folder / "coffee_fused_teachers_DCTSwin.png").astype(int)
    assert abs(shown - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("fusion", [False, True], ids=["student", "fusion"])
def test_only_what_computes_network_g_is_compiled(
    ground: Ground, fusion: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def compile_networks(networks: list[nn.Module], trial: Callable[[], object], **settings: Any) -> None:
        compiled.extend(networks)
        trial()

    monkeypatch.setattr("mtkd.inference.evaluate.compile_networks", compile_networks)
    val = {"metrics": PSNR, "compile": True}
    run_test(stage_1(ground, val=val) if fusion else make_options(plain(ground, val=val)))
    assert [type(net) for net in compiled] == ([EDSR, RCAN, DCTSwin] if fusion else [EDSR])


def test_the_cost_of_a_row_is_that_of_networks_that_compute_every_answer(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[nn.Module] = []

    def cost(net: nn.Module, *, scale: int, **settings: Any) -> RunningCost:
        asked.append(net)
        if isinstance(net, RCAN):
            raise ValueError("images of 64 pixels only")
        return RunningCost(1234.5, 0.5, 3, None if len(asked) == 1 else 67.8, "all of it", (360, 640), "a CPU", 2)

    monkeypatch.setattr(measure, "running_cost", cost)
    given = file(ground, fused=True)
    assert main(["test", "-opt", given, "--cost"]) == 0
    said, facts = capsys.readouterr().out, saved()
    assert [type(net) for net in asked] == [EDSR, RCAN, FusedTeacher, FusedTeacher, EDSR]
    assert not [part for net in asked for part in net.modules() if isinstance(part, Memoized)]
    assert [one.get("cost", {}).get("memory_mib") for one in facts["networks"]] == [None, None, 67.8, 67.8, 67.8]
    assert facts["networks"][0]["cost"] == {
        "latency_ms": 1234.5, "latency_spread_ms": 0.5, "runs": 3, "memory_mib": None, "memory_is": "all of it",
        "lq": [360, 640], "device": "a CPU", "threads": 2,
    }  # fmt: skip
    assert "cost" not in facts["networks"][1] and facts["cost"] == facts["networks"][-1]["cost"]
    assert "Latency and memory of teacher rcan cannot be measured: ValueError: images of 64 pixels only" in said
    assert "1,234 ms" in said and "68 MiB" in said
    assert "Latency: median of one image of 1280x720, on a CPU, 2 CPU threads. Memory: all of it." in said
    assert main(["test", "-opt", given, "--without", "teachers", "--cost"]) == 0
    assert "Latency: 1,234 ms, median of one image of 1280x720" in (said := capsys.readouterr().out)
    assert "Memory: 68 MiB, all of it." in said
    assert main(["test", str(ground.student)]) == 2  # it does not say which network it holds
    assert main(["test", ground.teachers["edsr"]["pretrain"], "--data", str(ground.images), "--cost"]) == 0
    assert saved("edsr")["networks"][0]["cost"]["latency_ms"] == 1234.5


def test_nothing_is_timed_unless_it_is_asked_for(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "running_cost", None)
    run_test(make_options(plain(ground)))
    assert all("cost" not in one for one in saved()["networks"])


def test_a_teacher_that_is_kept_answers_has_a_row_and_a_part_in_the_mean(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    images = PairedImages(dataroot_gt=ground.images, scale=2)
    with torch.no_grad():
        for image in images:
            write_image(Path(f"kept/{image.name}.png"), to_image(ground.networks["ours"](to_tensor(image.lq))))
    teachers = {"kept": {"images": "kept"}, "edsr": ground.teachers["edsr"]}
    given = file(ground, teachers=teachers)
    assert main(["test", "-opt", given, "--cost", "--tile", "32"]) == 0
    facts = saved()
    values = {row["network"]: row["psnr"] for row in facts["results"]}
    assert list(values) == ["teacher kept", "teacher edsr", MEAN, "ours"]
    assert values["teacher kept"] == pytest.approx(direct(ground, "ours"), abs=0.01)
    kept = {"kept": ground.networks["ours"], "edsr": ground.networks[TEACHERS[0]]}
    mean = evaluate(FusedTeacher(Ensemble(kept), MeanFusion(2)), images, build_metrics(PSNR), dataset="").means()
    assert values[MEAN] == pytest.approx(mean["psnr"], abs=0.01)
    # What the kept answers cost is not known, and so is not what needs them.
    assert ["cost" in one for one in facts["networks"]] == [False, True, False, True]

    Path("kept/coffee.png").unlink()
    assert main(["test", "-opt", given]) == 2
    said = capsys.readouterr().err
    assert "coffee: no image of this name" in said and "`--without teachers`" in said
    assert main(["test", "-opt", given, "--without", "teachers"]) == 0


def test_the_page_shows_every_row(ground: Ground) -> None:
    for student in (True, False):
        name = "ours" if student else "ensemble"
        run_test(make_options(plain(ground, student=student, name=name, fused=True)), page=True, cost=False)
        page = Path(f"results/{name}/report.html").read_text()
        assert all(row in page for row in (*TEACHERS, MEAN, FUSED)), name


def test_what_cannot_be_done_is_said_before_anything_is_measured(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    given = file(ground, val={"metrics": {"ms": {"type": "calculate_ms_ssim", "crop_border": 2}}})
    plain_file = Path("plain.yml")
    plain_file.write_text(json.dumps(plain(ground)))
    for arguments, words in (
        ([given], "pip install 'mtkd[metrics]'"),
        ([str(plain_file), "--with", "teachers", "--without", "teachers"], "contradict each other"),
        ([str(plain_file), "--data", str(ground.images)], "Leave out the networks and --data"),
    ):
        assert main(["test", "-opt", *arguments]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["test", "-opt", str(plain_file), "--without", "bicubic"])
    assert not Path("results").exists()


def test_a_row_of_the_name_of_the_file_leaves_the_name_to_the_file(ground: Ground) -> None:
    rows = run_test(make_options(plain(ground, name="bicubic")), bicubic=True)
    assert [name for name, _ in rows] == ["bicubic (2)", *TEACHERS, MEAN, "bicubic"]
    assert rows[-1][1].means()["psnr"] == pytest.approx(direct(ground, "ours"), abs=1e-4)
