"""The processes of a run: how they are joined, and how a failure of one ends them all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor

from mtkd.contracts import MtkdError


def launch(launcher: str, *, num_gpu: int | Literal["auto"], precision: str) -> Fabric:
    """Join this process with the others that `launcher` ("none", "pytorch", "slurm") started.

    Args:
        num_gpu: CUDA devices on this machine, "auto" for all, 0 for the CPU.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        MtkdError: devices are missing, the environment of the launcher is wrong, or the processes cannot meet.
    """
    try:
        fabric = _fabric(launcher, num_gpu, precision)
        fabric.launch()
    except torch.distributed.DistError as error:
        address = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise MtkdError(
            f"The processes of the run cannot meet at {address} ({str(error).strip().splitlines()[0]}). If another job "
            "has that port, take a free one: `torchrun --master_port N ...`, or MASTER_PORT=N in the environment."
        ) from error
    except (ValueError, KeyError) as error:
        if launcher == "none":
            raise
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        found = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or "nothing"
        raise MtkdError(
            f"--launcher {launcher}: the environment does not number this process ({type(error).__name__}: "
            f"{error}; it holds {found}). Start with `torchrun --nproc_per_node N -m mtkd ... --launcher pytorch`, or "
            "with srun and `--launcher slurm`."
        ) from error
    return fabric


@dataclass(frozen=True)
class Place:
    """Which of the started processes this one is."""

    rank: int
    world_size: int
    local_rank: int


_KEYS = {"pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")}


def place_of(launcher: str, command: str) -> Place:
    """The place of this process among those that `launcher` ("pytorch" or "slurm") started to run `mtkd command`.

    Raises:
        MtkdError: the launcher's environment variables are missing.
    """
    absent = [key for key in _KEYS[launcher] if key not in os.environ]
    if absent:
        starter = {"pytorch": "torchrun --nproc_per_node N -m mtkd", "slurm": "srun mtkd"}[launcher]
        raise MtkdError(
            f"--launcher {launcher}: {absent[0]} is not set. Start the processes with `{starter} {command} ...`."
        )
    return Place(*(int(os.environ[key]) for key in _KEYS[launcher]))


def environment_rank() -> int:
    """Rank of this process as torchrun or slurm put it into the environment; 0 where neither did."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def started_by_torchrun() -> bool:
    """Whether torchrun started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def together(fabric: Fabric) -> Generator[None]:
    """Let a failure of the block on one process end the others too, at the end of their blocks.

    Without it they would wait for the failed one. The block itself must not wait for other processes.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001  raised below, once all processes have the result
        failure = error
    if fabric.world_size > 1:
        failed = fabric.all_reduce(torch.tensor(float(failure is not None), device=fabric.device), reduce_op="sum")
        assert isinstance(failed, Tensor)
        if failed.item() and failure is None:
            failure = MtkdError("Another process of this run could not start; its error gives the reason.")
    if failure is not None:
        raise failure


def _fabric(launcher: str, num_gpu: int | Literal["auto"], precision: str) -> Fabric:
    gpus = torch.cuda.device_count() if num_gpu == "auto" else int(num_gpu)
    if gpus > torch.cuda.device_count():
        raise MtkdError(
            f"num_gpu is {gpus} and this machine shows {torch.cuda.device_count()} CUDA devices. Use `num_gpu: "
            "auto` or `num_gpu: 0` for the CPU."
        )
    accelerator = "cuda" if gpus else "cpu"
    if precision == "fp16" and not gpus:
        raise MtkdError("`precision: fp16` needs a CUDA device; use bf16 or fp32 on the CPU.")
    if launcher == "none":
        if started_by_torchrun():
            raise MtkdError(
                "torchrun started several processes, but --launcher pytorch is missing: each would train by itself and "
                "write the same files. Add `--launcher pytorch`."
            )
        interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and not interactive:
            raise MtkdError(
                "srun started several processes, but --launcher slurm is missing: each would train by itself and write "
                "the same files. Add `--launcher slurm`."
            )
        if num_gpu != "auto" and gpus > 1:
            raise MtkdError(
                f"num_gpu is {gpus}, and one process drives one device. Start them with `torchrun --nproc_per_node "
                f"{gpus} -m mtkd train -opt FILE --launcher pytorch`."
            )
        # An environment of Lightning's own: one process of a slurm job with several tasks is no error of the job.
        plugins = [_precision(precision, accelerator), LightningEnvironment()]
        return Fabric(accelerator=accelerator, devices=1, plugins=plugins)
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or local)
    if launcher == "slurm" and world > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise MtkdError(
            f"--launcher slurm: {world} tasks, and how many a machine has is not said. Start them with "
            f"--ntasks-per-node in place of --ntasks, as in `srun --nodes=1 --ntasks-per-node={world}`."
        )
    if num_gpu != "auto" and gpus and gpus not in (local, world):
        raise MtkdError(
            f"num_gpu is {gpus}, and {local} processes were started on this machine ({world} in all): each has one "
            "device, and the batch would be another than the option file says. Start as many, or use `num_gpu: auto`."
        )
    if gpus and local > torch.cuda.device_count():
        raise MtkdError(
            f"{local} processes were started on this machine, and each of them sees {torch.cuda.device_count()} CUDA "
            "devices: each needs one, and must see those of all. Start as many as there are devices; with srun take "
            "--gres=gpu:N or --gpu-bind=none in place of --gpus-per-task."
        )
    return Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(world // local, 1),
        strategy="ddp",
        plugins=_precision(precision, accelerator),
    )


class _Autocast(MixedPrecision):
    """Fabric's mixed precision, which does not round the batch: gt and targets must stay float32, and autocast casts
    what it should by itself.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def _precision(precision: str, accelerator: str) -> Precision:
    if precision == "fp32":
        return Precision()
    return _Autocast("bf16-mixed" if precision == "bf16" else "16-mixed", accelerator)
