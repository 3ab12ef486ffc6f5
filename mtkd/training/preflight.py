"""Trials before a training: packages, optimizers, networks, data. Each function returns problems; none writes files."""

from __future__ import annotations

import importlib

import torch

from mtkd.config import Options, Problem
from mtkd.config.optimizers import OPTIMIZERS
from mtkd.contracts import MtkdError
from mtkd.inference.preflight import try_images, try_metrics, try_networks
from mtkd.training.optim import fresh_state, try_going_on


def try_parts(options: Options) -> list[Problem]:
    """All trials that need no run, on the CPU: packages, optimizers, networks, images, metrics."""
    return [
        *try_packages(options),
        *try_optimizers(options),
        *try_networks(options),
        *try_images(options),
        *try_metrics(options),
    ]


def try_packages(options: Options) -> list[Problem]:
    """A problem for each package that the `logger` section needs and that cannot be imported."""
    if not options.is_train:
        return []
    wanted = []
    if options.logger.use_tb_logger:
        wanted.append(("use_tb_logger", "torch.utils.tensorboard", "tensorboard", "`use_tb_logger: false`"))
    if options.logger.wandb is not None:
        wanted.append(("wandb", "wandb", "wandb", "`wandb: ~`"))
    problems = []
    for key, module, package, without in wanted:
        try:
            importlib.import_module(module)
        except ImportError as error:
            message = f"{package} cannot be imported ({error}). `pip install {package}`, or set {without}."
            problems.append(options.problem(("logger", key), message))
    return problems


def try_optimizers(options: Options) -> list[Problem]:
    """A problem for each optimizer that refuses to be built, or cannot make a step; for one from outside also where a
    run with it could not be resumed.
    """
    problems = []
    given = {"optim_g": options.train.optim_g, "optim_d": options.train.optim_d} if options.train else {}
    for key, optimizer in given.items():
        if optimizer is not None:
            try:
                fresh_state(torch.zeros(2, 2), optimizer.arguments())
                if optimizer.type not in OPTIMIZERS:
                    try_going_on(optimizer.arguments())
            except MtkdError as error:
                problems.append(options.problem(("train", key), str(error)))
    return problems
