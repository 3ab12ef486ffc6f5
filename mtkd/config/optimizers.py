"""Optimizers by name: those of torch.optim that option files have always named, and any class by its path."""

from __future__ import annotations

import inspect

import torch

from mtkd import catalog
from mtkd.config.problems import unknown_choice
from mtkd.contracts import MtkdError

OPTIMIZERS = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SGD", "ASGD", "RMSprop", "Rprop", "Adagrad", "Adadelta")
"""Names without a path, classes of torch.optim."""


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that `name` stands for: one of `OPTIMIZERS`, `package.module.Class` or `package.module:Class`.

    Raises:
        MtkdError: nothing of that name can be imported, it is no optimizer, or training cannot drive it: its step
            needs a closure, it has no `lr`, or it wants to be told by `train()` and `eval()` when weights are measured.
    """
    if name in OPTIMIZERS:
        return getattr(torch.optim, name)
    if "." not in name and ":" not in name:
        raise MtkdError(f"{unknown_choice(name, OPTIMIZERS)} Any other by its path: `type: package.module.{name}`.")
    cls = catalog.imported(name)
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        raise MtkdError(
            f"{name!r} is not an optimizer, and was not called. Expected: a class of torch.optim.Optimizer."
        )
    if callable(getattr(cls, "train", None)) and callable(getattr(cls, "eval", None)):
        raise MtkdError(
            f"{name} is schedule-free: it keeps two sets of weights, and wants train() and eval() around every "
            "validation and checkpoint, which mtkd does not call. Take its plain relative, with a scheduler or with "
            "`ema_decay`."
        )
    needed = [p for p in list(inspect.signature(cls.step).parameters.values())[1:] if p.default is p.empty]
    if any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in needed):
        raise MtkdError(
            f"{name}.step() needs {needed[0].name}, and a step of training gives none: one batch has one gradient. "
            "Take an optimizer whose step() needs nothing."
        )
    if "lr" not in inspect.signature(cls).parameters:
        raise MtkdError(f"{name} takes no `lr`, which the scheduler sets in every iteration. Take one that does.")
    return cls


def own_group_keys(cls: type[torch.optim.Optimizer], group: dict[str, object]) -> list[str]:
    """The keys of a group of parameters that are state of a class from outside, not its arguments: Prodigy's `d`."""
    arguments = inspect.signature(cls).parameters
    return [key for key in group if key not in arguments and key not in ("params", "initial_lr")]
