"""Optimizers by name and learning rates as a function of the iteration.

Learning rates are computed, not accumulated: the rate of iteration k needs no scheduler state, so resuming is exact.
"""

from __future__ import annotations

import bisect
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mtkd.contracts import MtkdError

LearningRate = Callable[[int], float]
"""Iteration (from 0) -> factor-free learning rate of a parameter group."""


def build_optimizer(parameters: Sequence[nn.Parameter], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Optimizer `options["type"]` of `torch.optim` over `parameters`, the rest of `options` as its arguments.

    Adam, AdamW and SGD use torch's fused implementation, unless `options` ask for another one.
    """
    arguments = dict(options)
    name = arguments.pop("type")
    cls = getattr(torch.optim, name, None)
    if cls is None or not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        raise MtkdError(f"torch.optim has no optimizer {name!r}; use Adam, AdamW, SGD or another of torch.optim.")
    if name in ("Adam", "AdamW", "SGD") and not (arguments.get("foreach") or arguments.get("differentiable")):
        arguments.setdefault("fused", True)
    return cls(parameters, **arguments)


def learning_rate(base: float, scheduler: Mapping[str, Any] | None, warmup_iter: int = -1) -> LearningRate:
    """Learning rate over iterations, equal to BasicSR's schedulers stepped once per iteration.

    One deviation: after a warm-up, BasicSR's MultiStepLR goes on from the last rate of the warm-up, which is below
    `lr`; here it goes on from `lr`.

    Args:
        base: the optimizer's `lr`.
        scheduler: `MultiStepLR` / `MultiStepRestartLR` (milestones, gamma, restarts, restart_weights) or
            `CosineAnnealingRestartLR` (periods, restart_weights, eta_min), BasicSR's keys; None keeps the rate.
        warmup_iter: iterations of linear warm-up; -1 for none.
    """
    arguments = dict(scheduler or {"type": "MultiStepLR", "milestones": []})
    name = arguments.pop("type")
    if name in ("MultiStepLR", "MultiStepRestartLR"):
        after = _multi_step(base, **arguments)
    elif name == "CosineAnnealingRestartLR":
        after = _cosine(base, **arguments)
    else:
        raise MtkdError(
            f"Scheduler {name!r} is unknown; use MultiStepLR, MultiStepRestartLR or CosineAnnealingRestartLR."
        )

    def rate(step: int) -> float:
        # BasicSR counts from 1 and warms up while its counter is below warmup_iter.
        return base / warmup_iter * (step + 1) if step + 1 < warmup_iter else after(step)

    return rate


def _multi_step(
    base: float,
    milestones: Sequence[int],
    gamma: float = 0.1,
    restarts: Sequence[int] = (0,),
    restart_weights: Sequence[float] = (1,),
) -> LearningRate:
    milestones = sorted(milestones)

    def rate(step: int) -> float:
        begun = [(at, weight) for at, weight in zip(restarts, restart_weights, strict=True) if at <= step]
        start, weight = max(begun, key=lambda pair: pair[0]) if begun else (-1, 1.0)
        passed = bisect.bisect_right(milestones, step) - bisect.bisect_right(milestones, start)
        return base * weight * gamma**passed

    return rate


def _cosine(
    base: float, periods: Sequence[int], restart_weights: Sequence[float] = (1,), eta_min: float = 0.0
) -> LearningRate:
    ends = [sum(periods[: i + 1]) for i in range(len(periods))]

    def rate(step: int) -> float:
        # Past the last period BasicSR raises; holding the end of the last period is kinder to a run made longer.
        position = min(bisect.bisect_left(ends, step), len(ends) - 1)
        start = ends[position] - periods[position]
        progress = min(step - start, periods[position]) / periods[position]
        return eta_min + restart_weights[position] * 0.5 * (base - eta_min) * (1 + math.cos(math.pi * progress))

    return rate
