"""How cells compute on the machine at hand: keys that a call sets, and NVIDIA's service for several jobs of a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mtkd.bench import control, mps
from mtkd.bench.grid import load_grid
from mtkd.bench.jobs import is_done, options_of, plan
from mtkd.bench.machine import machine
from mtkd.bench.work import execute
from mtkd.cli import main
from mtkd.contracts import MtkdError
from tests.bench.toy import toy


def test_keys_of_the_machine_reach_the_option_file_and_leave_the_digest(tmp_path: Path) -> None:
    made = plan(load_grid(toy(tmp_path)), tmp_path / "out")
    there = made.on(machine(["compile=graphs", "tf32=false", "num_gpu=auto"]))
    here = options_of(there.cells[0])
    assert (here.num_gpu, here.compile, here.tf32) == ("auto", "graphs", False)
    assert options_of(made.cells[0]).num_gpu == 0
    assert [(job.name, job.digest, job.measured) for job in there.jobs] == [
        (job.name, job.digest, job.measured) for job in made.jobs
    ]
    assert there.grid.protocol["tf32"] is False


def test_a_dry_run_times_what_the_machine_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = toy(tmp_path), tmp_path / "out"
    text = grid.read_text().replace("num_gpu: 0", "num_gpu: 1")
    assert text != grid.read_text()
    grid.write_text(text)
    command = ["bench", str(grid), "--out", str(out), "--dry_run", "--only", "scratch*"]
    assert main(command) == 0
    assert "shows 0 CUDA devices" in capsys.readouterr().out or torch.cuda.is_available()
    assert main([*command, "--machine", "num_gpu=0"]) == 0
    assert "cannot be prepared" not in capsys.readouterr().out


@pytest.mark.parametrize("item", ["precision=bf16", "num_gpu", "seed=3", "=1"])
def test_what_is_trained_is_no_matter_of_the_machine(item: str) -> None:
    with pytest.raises(MtkdError, match="must be KEY=VALUE with a KEY of num_gpu, compile"):
        machine([item])


def test_a_wrong_value_is_told_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = toy(tmp_path), tmp_path / "out"
    assert main(["bench", str(grid), "--out", str(out), "--no_report", "--machine", "compile=fast"]) == 2
    assert "compile" in capsys.readouterr().err
    assert not (out / "runs").exists()


def test_cells_train_as_the_call_says_and_count_as_the_grids(tmp_path: Path) -> None:
    grid, out = toy(tmp_path), tmp_path / "out"
    command = ["bench", str(grid), "--out", str(out), "--no_report", "--only", "scratch*s1"]
    assert main([*command, "--machine", "channels_last=false"]) == 0
    made = plan(load_grid(grid), out)
    (cell,) = (job for job in made.cells if job.name.startswith("scratch") and job.name.endswith("s1"))
    assert is_done(out, cell)
    assert "channels_last: false" in (out / "runs" / cell.name / "resolved.yml").read_text()


def test_the_report_says_where_cells_were_trained(tmp_path: Path) -> None:
    grid, out, kept = toy(tmp_path), tmp_path / "out", tmp_path / "kept"
    made = plan(load_grid(grid), out)
    for job in made.cells:
        if job.name.startswith("scratch"):
            execute(made, job, log=lambda _: None)
    command = ["bench", str(grid), "--out", str(out), "--only", "scratch*"]
    (first, *_) = sorted((out / "runs").glob("scratch*/environment.json"))
    first.write_text(json.dumps({**json.loads(first.read_text()), "device": "NVIDIA H200"}))
    assert main([*command, "--report_only", "--keep", str(kept)]) == 0
    assert main(["bench", str(grid), "--out", str(kept), "--report_only"]) == 0
    for folder in (out, kept):
        (page,) = folder.glob("report*/report.html")
        assert "NVIDIA H200 (1 runs)" in page.read_text()


PROGRAM = """#!/bin/sh
echo "$CUDA_MPS_PIPE_DIRECTORY $*" >> "$CALLS"
cat >> "$CALLS"
if [ -z "$*" ]; then exit 1; fi
if [ $FAILS -gt 0 ]; then echo "no device" >&2; exit $FAILS; fi
sleep 30 &
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control program that writes down how it was called and what it was told; its service keeps the output open, and
    it cannot end it.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("FAILS", "0")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return tmp_path / "calls"


def test_the_service_lives_as_long_as_the_block(calls: Path) -> None:
    with pytest.raises(ZeroDivisionError), mps.sharing():
        pipe = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipe).is_dir() and len(pipe) < 60
        assert calls.read_text().splitlines() == [f"{pipe} -d"]
        _ = 1 / 0
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert calls.read_text().splitlines() == [f"{pipe} -d", f"{pipe} ", "quit"]
    assert not Path(pipe).exists()


@pytest.mark.parametrize(
    ("given", "within"), [("3", "0"), ("2, 5", "0,1"), ("GPU-1f,GPU-2e", "GPU-1f,GPU-2e"), ("", ""), (None, None)]
)
def test_numbers_of_devices_are_those_of_the_service(
    calls: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, within: str | None
) -> None:
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with mps.sharing():
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == within
        if within:
            assert control.cuda_devices() == within.split(",")
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == given


def test_a_service_that_the_environment_names_is_used(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "theirs")
    with mps.sharing():
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == "theirs"
    assert not calls.exists()


def test_a_service_that_fails_is_an_error_before_jobs_begin(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "3")
    with pytest.raises(MtkdError, match=r"failed: no device. Leave --mps out"), mps.sharing():
        pytest.fail("it began")


def test_without_the_driver_there_is_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "_PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    with pytest.raises(MtkdError, match="not in PATH"), mps.sharing():
        pytest.fail("it began")


def test_a_grid_of_jobs_runs_beside_the_service(calls: Path, tmp_path: Path) -> None:
    grid, out = toy(tmp_path), tmp_path / "out"
    command = ["bench", str(grid), "--out", str(out), "--no_report", "--only", "scratch*s1", "--mps"]
    assert main(command) == 0
    assert [line.rpartition(" ")[2] for line in calls.read_text().splitlines()] == ["-d", "", "quit"]
    assert main([*command, "--launcher", "local"]) == 2
