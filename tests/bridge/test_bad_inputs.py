"""What users get wrong, at the command line: one paragraph that names the file and the way out, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd.archs.edsr import EDSR
from mtkd.archs.rcan import RCAN
from mtkd.cli import main
from mtkd.config import resolved_yaml, yaml_loader
from mtkd.data.images import read_image, write_image
from mtkd.data.resize import bicubic_lq
from tests.runs import run_options


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """A good option file with its data, as a mapping that tests change."""
    data = yaml_loader.parse(resolved_yaml(run_options(tmp_path))).data
    lq = tmp_path / "lq"
    lq.mkdir()
    for image in (tmp_path / "images").iterdir():
        write_image(lq / image.name, bicubic_lq(read_image(image), 2))
    data["datasets"]["train"]["dataroot_lq"] = str(lq)
    data["train"]["total_iter"] = 1
    return data


def command(capsys: pytest.CaptureFixture[str], data: dict[str, Any], *arguments: str) -> tuple[int, str]:
    Path("run.yml").write_text(yaml_loader.dump(data))
    code = main([*arguments])
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    return code, output.out + output.err


def train(capsys: pytest.CaptureFixture[str], data: dict[str, Any]) -> str:
    code, said = command(capsys, data, "train", "-opt", "run.yml")
    assert code == 2 and not Path("experiments").exists()
    return said


def check(capsys: pytest.CaptureFixture[str], data: dict[str, Any]) -> str:
    code, said = command(capsys, data, "check", "run.yml", "--data")
    assert code == 2
    return said


def test_good_data_passes(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    code, said = command(capsys, run, "check", "run.yml", "--data")
    lines = said.splitlines(keepends=True)
    notes = [line for line in lines if line.startswith("  note: ")]
    assert (code, "".join(line for line in lines if line not in notes)) == (
        0,
        "ok   run.yml\n1 of 1 option files are valid.\n",
    )
    assert [note.split()[1] for note in notes] == ["datasets.train.num_worker_per_gpu", "train.scheduler.milestones"]


def test_an_lq_image_too_few(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    Path("lq/coffee.png").unlink()
    for said in (train(capsys, run), check(capsys, run)):
        assert "no lq image coffee.png" in said


def test_an_lq_image_too_many(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    write_image(Path("lq/more.png"), read_image(Path("lq/coffee.png")))
    for said in (train(capsys, run), check(capsys, run)):
        assert "more.png: no gt image has this lq image" in said


def test_lq_of_another_scale(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    gt = read_image(Path("images/coffee.png"))
    write_image(Path("lq/coffee.png"), bicubic_lq(gt, 4))
    for said in (train(capsys, run), check(capsys, run)):
        assert "coffee.png: gt is 56x52" in said and "lq must be 28x26" in said


def test_crops_larger_than_an_image(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    run["datasets"]["train"]["gt_size"] = 64
    for said in (train(capsys, run), check(capsys, run)):
        assert "smaller than the crop gt_size 64" in said


def test_missing_folders_and_weights_all_at_once(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    run["datasets"]["train"]["dataroot_gt"] = "no/gt"
    run["path"]["pretrain_network_g"] = "no/weights.pth"
    said = check(capsys, run)
    assert "datasets.train.dataroot_gt: there is no folder 'no/gt'" in said
    assert "path.pretrain_network_g: there is no file 'no/weights.pth'" in said


def test_an_argument_that_the_network_does_not_have(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    run["network_g"]["num_blocks"] = 3
    said = train(capsys, run)
    assert "network_g.num_blocks: not a key of EDSR. Did you mean num_block?" in said


def test_weights_of_another_network_list_what_differs(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    other = RCAN(num_feat=4, num_group=1, num_block=1, squeeze_factor=2, upscale=2)
    torch.save({"params": other.state_dict()}, "rcan.pth")
    run["path"]["pretrain_network_g"] = "rcan.pth"
    said = train(capsys, run)
    assert "This is RCAN" in said and "options have EDSR" in said
    assert "not in the file: body.0.conv1.weight" in said and "not in the network: body.0.residual_group" in said


def test_weights_of_another_size_say_which(capsys: pytest.CaptureFixture[str], run: dict[str, Any]) -> None:
    torch.save({"params": EDSR(num_feat=8, num_block=1, upscale=2).state_dict()}, "wide.pth")
    run["path"]["pretrain_network_g"] = "wide.pth"
    assert "num_feat 8, your options have 4" in train(capsys, run)


class RunsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch was_run",)


@pytest.mark.parametrize("key", ["pretrain_network_g", "resume_state"])
def test_a_file_that_would_run_code_is_refused(
    capsys: pytest.CaptureFixture[str], run: dict[str, Any], key: str
) -> None:
    torch.save({"params": RunsCode(), "iter": 1, "optimizers": []}, "evil.pth")
    run["path"][key] = "evil.pth"
    assert "evil.pth" in train(capsys, run)
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("name: a\nname: b\n", "name"),
        ("train:\n\ttotal_iter: 3\n", "tab"),
        ("x" * 1_100_000, "larger than 1 MB"),
        ("name: !!python/object/apply:os.system ['touch was_run']\n", "tag"),
    ],
)
def test_a_text_that_is_no_option_file(capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    Path("bad.yml").write_text(text)
    assert main(["train", "-opt", "bad.yml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mtkd: bad.yml") and words in said.lower() + said and "Traceback" not in said
    assert not Path("was_run").exists()


def test_a_folder_is_checked_file_by_file_with_all_problems(
    capsys: pytest.CaptureFixture[str], run: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/good.yml").write_text(yaml_loader.dump(run))
    run["train"]["total_iter"] = "many"
    run["scalee"] = 3
    (tmp_path / "files/bad.yml").write_text(yaml_loader.dump(run))
    assert main(["check", "files"]) == 2
    said = capsys.readouterr().out
    assert "ok   files/good.yml" in said and "train.total_iter: must be a whole number" in said
    assert "Did you mean scale?" in said and "1 of 2 option files are valid." in said
