"""One rank of a distributed run on the CPU; `test_distributed.py` starts two of these with torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from mtkd.config import Options
from mtkd.contracts import MtkdError, Stopped
from mtkd.training import loop as train_module
from mtkd.training import prepare as prepare_module
from mtkd.training.loop import prepare, train
from tests.runs import run_options

SGD = {"type": "SGD", "lr": 1.0}
GRADIENT = {"optim_g": SGD, "scheduler": {"type": "MultiStepLR", "milestones": [1000]}, "ema_decay": 0.0}
CRITIC = {"optim_d": SGD, "holistic_opt": {}, "critic_opt": {}, "penalty_opt": {}}


def plain(folder: Path, images: Path) -> Options:
    return run_options(folder / "plain", images=images, train=GRADIENT)


def critic(folder: Path, images: Path, teachers: dict[str, Any]) -> Options:
    return run_options(
        folder / "critic",
        images=images,
        model_type="StructuredKD",
        teachers={"edsr": teachers["edsr"]},
        method={"critic_feat": 4},
        train={**GRADIENT, **CRITIC},
    )


def whole_run(folder: Path, images: Path, name: str = "whole", **train: Any) -> Options:
    sets = {
        "train": {
            "name": "t", "type": "PairedImageDataset", "dataroot_gt": str(images), "gt_size": 16,
            "batch_size_per_gpu": 1,
        },
        "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)},
    }  # fmt: skip
    psnr = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}
    val = {"val_freq": 4, "save_img": True, "metrics": {"psnr": psnr}}
    return run_options(folder, images=images, name=name, datasets=sets, val=val, train={"total_iter": 4, **train})


def update(options: Options, launcher: str) -> dict[str, torch.Tensor]:
    """What one iteration with SGD at rate 1 takes off the parameters: the gradient that the optimizer saw."""
    run = prepare(options, launcher=launcher)
    before = {name: p.detach().clone() for name, p in run.method.named_parameters()}
    train_module.train_step(run, 0, run.batches())
    run.close()
    return {name: before[name] - p.detach() for name, p in run.method.named_parameters()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, images = int(os.environ["RANK"]), folder / "images"
    teachers = json.loads((folder / "teachers.json").read_text())
    for name, options in (("plain", plain(folder, images)), ("critic", critic(folder, images, teachers))):
        torch.save(update(options, "pytorch"), folder / f"{name}_{rank}.pt")

    train(whole_run(folder, images), launcher="pytorch")

    def backend(graph: Any, inputs: Any) -> Any:
        if rank == 1:
            raise RuntimeError("rank 1 has no compiler")
        return graph

    compile_ = torch.nn.Module.compile
    torch.nn.Module.compile = lambda net, **_: compile_(net, backend=backend)  # pyright: ignore
    train(whole_run(folder, images, "uncompiled").model_copy(update={"compile": True}), launcher="pytorch")
    torch.nn.Module.compile = compile_

    real = train_module.train_step

    def asked(run: Any, step: int, batches: Any) -> Any:
        if rank == 1 and step == 1:
            os.kill(os.getpid(), 15)
        return real(run, step, batches)

    train_module.train_step = asked
    try:
        train(whole_run(folder, images, "stopped", total_iter=50), launcher="pytorch")
    except Stopped as stopped:
        (folder / f"stopped_{rank}.txt").write_text(str(stopped.code))

    def poisoned(run: Any, step: int, batches: Any) -> Any:
        values = real(run, step, batches)
        return {name: value * float("nan") for name, value in values.items()} if rank == 1 and step == 3 else values

    train_module.train_step = poisoned
    try:
        train(whole_run(folder, images, "nan", total_iter=50), launcher="pytorch")
    except MtkdError as error:
        (folder / f"nan_{rank}.txt").write_text(str(error))

    train_module.train_step = real
    built = prepare_module._built

    def cannot(*given: Any, **named: Any) -> Any:
        if rank == 1:
            raise MtkdError("rank 1 cannot read its images")
        return built(*given, **named)

    for name, broken in (("unprepared", cannot), ("whole", built)):
        prepare_module._built = broken
        try:
            train(whole_run(folder, images, name), launcher="pytorch")
        except MtkdError as error:
            (folder / f"{name}_{rank}.txt").write_text(str(error))
    prepare_module._built = built

    def dies(run: Any, step: int, batches: Any) -> Any:
        if rank == 1 and step == 1:
            raise MtkdError("the disk of rank 1 is gone")
        return real(run, step, batches)

    train_module.train_step = dies
    try:
        train(whole_run(folder, images, "dead", total_iter=50), launcher="pytorch")
    except MtkdError as error:
        print(f"mtkd: {error}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
