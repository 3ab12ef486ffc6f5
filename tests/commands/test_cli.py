"""The command line as a user types it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from mtkd import catalog, zoo
from mtkd.archs.edsr import EDSR
from mtkd.cli import COMMANDS as MODULES
from mtkd.cli import main, parser
from mtkd.config import OptionError, TrainSetOptions, load_options, resolved_yaml, yaml_loader
from mtkd.data.images import read_image, write_image
from tests.helpers import photo
from tests.runs import STUDENT, make_images, run_options

(COMMANDS,) = [action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]


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


def test_every_module_of_a_command_is_in_the_list_and_adds_the_command_of_its_name() -> None:
    assert list(COMMANDS) == [module.__name__.rpartition(".")[2] for module in MODULES]
    folder = Path(str(MODULES[0].__file__)).parent
    modules = {file.stem for file in folder.glob("*.py") if "\ndef add(" in file.read_text(encoding="utf-8")}
    assert modules == set(COMMANDS), "cli.COMMANDS lacks them"


@pytest.mark.parametrize("command", COMMANDS)
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


def test_list_alone_names_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "mtkd list methods\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "usage", "hint"),
    [
        (["train", "-opt", "x.yml", "--autoresume"], "usage: mtkd train", "--autoresume. Did you mean --auto_resume?"),
        (["zoo", "list", "--weights-dri", "x"], "usage: mtkd zoo list", "Did you mean --weights-dir?"),
        (["test", "x", "--jsn"], "usage: mtkd test", "unrecognized arguments: --jsn."),
        (["check", "-opt", "x.yml"], "usage: mtkd check", "unrecognized arguments: -opt."),
    ],
)
def test_a_mistyped_option_is_answered_by_its_command(
    command: list[str], usage: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(command)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith(usage) and said.rstrip().endswith(hint)


def test_check_says_what_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yml"
    file.write_text("dist_params: {backend: nccl}\n" + resolved_yaml(run_options(tmp_path)))
    assert main(["check", str(file)]) == 0
    assert f"ok   {file}\n  note: dist_params ignored: torchrun sets up" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["train", "val"])
def test_a_folder_that_is_not_there_is_named_with_its_key(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = run_options(tmp_path)
    sets = {"train": options.train_set.model_dump(), "val": {"name": "v", "type": "PairedImageDataset"}}
    sets["val"]["dataroot_gt"] = str(tmp_path / "images")
    sets[key]["dataroot_gt"] = "nowhere"
    file = tmp_path / "run.yml"
    file.write_text(
        json.dumps({**yaml_loader.parse(resolved_yaml(options)).data, "datasets": sets, "val": {"val_freq": 4}})
    )
    assert main(["train", "-opt", str(file)]) == 2
    assert f"datasets.{key}: nowhere is not a folder to read" in capsys.readouterr().err


def test_list_says_which_methods_train_from_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods"]) == 0
    told: dict[str, bool] = {}
    name = ""
    for line in capsys.readouterr().out.splitlines():
        name = name if line.startswith(" ") else line.partition(":")[0]
        if line.startswith("    teachers: "):
            told[name] = "trains from a target_store" in line
    images = make_images(tmp_path / "images")

    def takes_a_store(method: str) -> bool:
        try:
            run_options(tmp_path, images=images, model_type=method, target_store="targets.store")
        except OptionError as error:
            return all(problem.key != "target_store" for problem in error.problems)
        return True

    assert told == {method: takes_a_store(method) for method in catalog.names("method")}
    assert set(told.values()) == {True, False}


def test_a_training_file_is_not_tested_with_its_start_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yml"
    file.write_text(resolved_yaml(run_options(tmp_path)))
    assert main(["test", "-opt", str(file)]) == 2
    assert "training file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["check", "~nosuchuser/a.yml"], "no user 'nosuchuser'"),
        (["check", "x" * 300], "too long"),
        (["upscale", "", "out", "--weights", "a"], "empty"),
        (["upscale", "in", "~nosuchuser/out", "--weights", "a"], "no user"),
        (["upscale", "in", "out", "--weights", "x" * 300], "too long"),
        (["upscale", "in", "out", "--weights", "~nosuchuser/a"], "no user"),
        (["upscale", "in", "out", "-opt", "~nosuchuser/a"], "no user"),
        (["zoo", "import", "edsr_m_x4", "x" * 300], "too long"),
        (["zoo", "list", "--weights-dir", "~nosuchuser"], "no user"),
        (["config", "diff", "x" * 300, "b"], "too long"),
        (["demo", "--out", "~nosuchuser/x"], "no user"),
    ],
)
def test_a_path_that_cannot_be_is_one_line(command: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("mtkd: ") and said.count("\n") == 1 and words in said


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "cuda:x", "cpu:99", "nothing"])
def test_a_device_that_is_not_here(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "in")
    source = str(weights(tmp_path / "edsr.safetensors"))
    code = main(["upscale", "in", "out", "--weights", source, "--device", device])
    assert (code, (tmp_path / "out").exists()) in {(2, False), (0, True)}  # torch takes any index of the CPU
    assert code == 0 if device == "cpu:99" else f"no device {device}" in capsys.readouterr().err


def test_modules_of_the_user_may_not_end_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yml"
    file.write_text(resolved_yaml(run_options(tmp_path)))
    (tmp_path / "ends_the_command.py").write_text("import sys\nsys.exit(0)\n")
    assert main(["check", str(file), "--import", "ends_the_command"]) == 2
    said = capsys.readouterr().err
    assert "sys.exit(0)" in said or "--import ends_the_command: SystemExit: 0" in said
    assert main(["train", "-opt", str(file), "--force_yml", "network_g={type: 'ends_the_command:Net'}"]) == 2
    assert "network_g.type: 'ends_the_command:Net' cannot be" in capsys.readouterr().err


def test_the_scale_of_a_command_without_option_file_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list", "--scale", "2"]) == 0
    assert {line.split()[2] for line in capsys.readouterr().out.splitlines()[1:]} == {"x2"}


def test_the_student_is_a_word_of_every_command_that_takes_an_option_file(capsys: pytest.CaptureFixture[str]) -> None:
    cell = ["recipe:FAKD/fakd", "--scale", "3", "--student", "rcan_lw"]
    assert main(["check", *cell]) == 0
    assert main(["config", "show", *cell, "--force_yml", "network_g=edsr_m"]) == 0
    said = capsys.readouterr().out
    assert "name: FAKD_rcan_lw_x3" in said and "zoo:rcan_x3" in said
    with pytest.raises(SystemExit):
        main(["train", "-opt", "recipe:FAKD/fakd", "--student", "rcan_lv"])
    said = " ".join(capsys.readouterr().err.split())
    assert "No network is called 'rcan_lv'" in said and "rcan_lw" in said and "swinir_s" in said


def test_a_launchers_variable_that_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "x")
    for command in ("train", "test", "teach"):
        assert main([command, "-opt", "x.yml", "--launcher", "pytorch"]) == 2
        assert "environment variable RANK" in capsys.readouterr().err


def test_check_prints_the_first_problems_and_counts_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("many.yml").write_text("".join(f"key{number}: 1\n" for number in range(3000)))
    assert main(["check", "many.yml"]) == 2
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 60 and "many.yml:1: key0: unknown key" in said
    assert "more problems" in said
    assert main(["train", "-opt", "many.yml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) < 110


def test_text_on_the_command_line_needs_no_quotes_inside_quotes(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yml"
    file.write_text(resolved_yaml(run_options(tmp_path)))
    place = f"dataroot_lq={tmp_path}"
    force = ["datasets:train:filename_tmpl={}x4", f"datasets:train:{place}", "name=0123", "path:resume_state=~"]
    options = load_options(file, force=force)
    assert isinstance(options.datasets.train, TrainSetOptions)
    assert options.datasets.train.filename_tmpl == "{}x4"
    assert (options.name, options.path.resume_state) == ("0123", None)
    quoted = load_options(file, force=['datasets:train:filename_tmpl="{}x4"', f"datasets:train:{place}"])
    assert quoted.datasets == options.datasets


def test_a_test_file_without_metrics_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "images")
    weights(tmp_path / "edsr.safetensors")
    Path("test.yml").write_text(
        "name: t\nscale: 2\nnetwork_g: {type: EDSR, num_feat: 4, num_block: 1}\n"
        "datasets: {test_1: {name: P, type: PairedImageDataset, dataroot_gt: images}}\n"
        "path: {pretrain_network_g: edsr.safetensors}\n"
    )
    assert main(["test", "-opt", "test.yml"]) == 2
    said = capsys.readouterr().err
    assert "val.metrics is missing" in said and "mtkd upscale" in said and "network_g" not in said
    assert main(["check", "test.yml", "--data"]) == 2
    assert "val.metrics: missing" in capsys.readouterr().out
    assert main(["upscale", "images", "out", "-opt", "test.yml"]) == 0
