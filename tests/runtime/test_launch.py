"""What launchers put into the environment."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from mtkd.contracts import MtkdError
from mtkd.runtime.launch import Place, environment_rank, launch, place_of, started_by_torchrun

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("launcher", "names"), [("pytorch", NAMES[:3]), ("slurm", NAMES[3:6])])
def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch, launcher: str, names: tuple[str, ...]) -> None:
    with pytest.raises(MtkdError, match=f"--launcher {launcher}: {names[0]} is not set.* teach"):
        place_of(launcher, "teach")
    for name, value in zip(names, ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert place_of(launcher, "teach") == Place(rank=5, world_size=8, local_rank=1)
    assert environment_rank() == 5


def test_a_process_alone_is_the_first() -> None:
    assert environment_rank() == 0 and not started_by_torchrun()


def test_processes_are_as_many_as_the_option_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(MtkdError, match="num_gpu is 4, and 2 processes were started"):
        launch("pytorch", num_gpu=4, precision="fp32")


def test_one_process_of_a_job_with_several_tasks_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mtkd train` in a script of sbatch with --ntasks=2, which srun did not start."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert launch("none", num_gpu=0, precision="fp32").world_size == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(MtkdError, match="srun started several processes"):
        launch("none", num_gpu=0, precision="fp32")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # `srun -n2 --pty bash` starts one
    assert launch("none", num_gpu=0, precision="fp32").world_size == 1


@pytest.mark.parametrize(("world", "several"), [("1", False), ("2", True)])
def test_torchrun_is_noticed_where_it_started_several(
    monkeypatch: pytest.MonkeyPatch, world: str, several: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", world)
    assert started_by_torchrun() is several


@pytest.mark.parametrize(
    ("launcher", "numbers"),
    [
        ("pytorch", {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}),
        ("slurm", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "4"}),
    ],
)
def test_more_processes_than_devices_are_refused(
    monkeypatch: pytest.MonkeyPatch, launcher: Literal["pytorch", "slurm"], numbers: dict[str, str]
) -> None:
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MtkdError, match="4 processes were started on this machine, and each of them sees 1 CUDA"):
        launch(launcher, num_gpu="auto", precision="fp32")


def test_tasks_of_slurm_that_are_not_counted_by_node_are_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    with pytest.raises(MtkdError, match="--launcher slurm: .*--ntasks-per-node=8"):
        launch("slurm", num_gpu=0, precision="fp32")
