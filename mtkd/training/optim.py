"""Optimizers by name and learning rates as a function of the iteration.

Learning rates are computed, not accumulated: the rate of iteration k needs no scheduler state, so resuming is exact.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtkd.config.optimizers import OPTIMIZERS, optimizer_class, own_group_keys
from mtkd.contracts import MtkdError
from mtkd.training.checkpoint import is_dense

LearningRate = Callable[[int], float]
"""Iteration (from 0) -> factor-free learning rate of a parameter group."""


def build_optimizer(parameters: Sequence[nn.Parameter], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Optimizer `options["type"]` over `parameters`, the rest of `options` as its arguments: a name or a path, see
    `config.optimizers.optimizer_class`.

    Adam and AdamW use torch's fused implementation, unless `options` ask for another one. Classes from outside get
    their arguments and nothing else.

    Raises:
        MtkdError: there is no such optimizer, or it refuses its arguments.
    """
    arguments = dict(options)
    name = arguments.pop("type")
    cls: Any = optimizer_class(name)
    # Not SGD: its fused kernel leaves the first moment uninitialised in a step that fp16's scaler skips.
    if name in ("Adam", "AdamW") and not (arguments.get("foreach") or arguments.get("differentiable")):
        arguments.setdefault("fused", True)
    try:
        return cls(parameters, **arguments)
    except Exception as error:
        raise MtkdError(f"{name} cannot be built with {arguments}: {error}") from error


def checked_state(
    saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, options: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """`saved`, a state of `optimizer` from a file, reduced to what the optimizer itself would hold.

    Optimizers do not check their state: fused kernels write beyond a moment that is smaller than its parameter. So each
    value is compared with that of a fresh optimizer for a parameter of that shape. Weight decay, betas and the kernel
    come from `optimizer`.

    Args:
        options: `type` and arguments that `optimizer` was built with.
        names: of its parameters, in order.

    Raises:
        MtkdError: a value is missing, foreign, or of another shape or dtype; the text names it and its parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    counts = [len(group["params"]) for group in saved["param_groups"]]
    if counts != [len(group["params"]) for group in optimizer.param_groups]:
        raise MtkdError(f"it has groups of {counts} parameters, and {len(parameters)} are in training")
    positions = [position for group in saved["param_groups"] for position in group["params"]]
    if positions != list(range(len(parameters))) or not set(saved["state"]) <= set(positions):
        raise MtkdError("its parameters are not numbered one after the other")
    expected: dict[tuple[Any, ...], dict[str, Any]] = {}
    state: dict[int, dict[str, Any]] = {}
    for position, found in saved["state"].items():
        parameter = parameters[position]
        name = names[int(position)]
        kind = (tuple(parameter.shape), parameter.dtype)
        if kind not in expected:
            expected[kind] = fresh_state(parameter, options)
        if not isinstance(found, Mapping) or (found and set(found) != set(expected[kind])):
            keys = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise MtkdError(f"for {name} it holds {keys}, and {options['type']} keeps {sorted(expected[kind])}")
        state[position] = {key: _checked_value(name, key, found[key], expected[kind][key]) for key in found}
    groups = []
    for group, before in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        kept = {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
        if options["type"] not in OPTIMIZERS:
            kept |= _own_of_group(options, before)
        first = sum(len(other["params"]) for other in groups)
        groups.append({**kept, "params": list(range(first, first + len(group["params"])))})
    return {"state": state, "param_groups": groups}


def fresh_state(parameter: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the optimizer of `options` for a parameter like this one after a first step, tried on the CPU.

    Raises:
        MtkdError: it cannot be built, or cannot make a step.
    """
    like = nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype))
    return dict(_stepped(like, options).state[like])


def _stepped(like: nn.Parameter, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    like.grad = torch.zeros_like(like)
    optimizer = build_optimizer([like], options)
    try:
        optimizer.step()
    except Exception as error:
        raise MtkdError(f"{options['type']} cannot make a step with these options: {error}") from error
    return optimizer


def try_going_on(options: Mapping[str, Any]) -> None:
    """Steps of an optimizer from outside, stopped and gone on with from its checked state, against steps in one go.

    Raises:
        MtkdError: it cannot be built or make a step, its state cannot be kept, or it goes on otherwise than it stopped.
    """
    torch_random = torch.random.get_rng_state()
    try:
        whole, half = _Steps(options), _Steps(options)
        whole.take(0, 6)
        half.take(0, 3)
        saved = {key: copy.deepcopy(value) for key, value in half.optimizer.state_dict().items()}
        try:
            half.optimizer = build_optimizer(half.parameters, options)
            half.optimizer.load_state_dict(checked_state(saved, half.optimizer, options, half.names))
            half.take(3, 6)
        except Exception as error:
            text = f"the state of {options['type']} cannot be kept, so that no run could be resumed: {error}."
            raise MtkdError(text) from error
        if not all(map(torch.equal, whole.parameters, half.parameters)):
            raise MtkdError(
                f"{options['type']} does not go on as it stopped: after its state is saved and loaded its steps are "
                "others, so that it keeps something outside of it. Take another, or mend its state_dict()."
            )
    finally:
        torch.random.set_rng_state(torch_random)


class _Steps:
    """An optimizer on a kernel, a matrix and a bias, with gradients that are the same in every trial."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.type = options["type"]
        self.parameters = [nn.Parameter(torch.ones(shape)) for shape in ((4, 3, 3, 3), (4, 6), (4,))]
        self.names = ["a kernel", "a matrix", "a bias"]
        self.optimizer = build_optimizer(self.parameters, options)

    def take(self, start: int, stop: int) -> None:
        """Steps `start` to `stop`, each seeded as in training."""
        for step in range(start, stop):
            torch.manual_seed(step)
            for parameter in self.parameters:
                parameter.grad = torch.randn_like(parameter)
            try:
                self.optimizer.step()
            except Exception as error:
                raise MtkdError(f"{self.type} cannot make a step with these options: {error}") from error


def _own_of_group(options: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a class from outside keeps of its own in a group of parameters, from a file: Prodigy its `d`."""
    fresh = _stepped(nn.Parameter(torch.zeros(4, 4)), options)
    own = {}
    for key in own_group_keys(type(fresh), fresh.param_groups[0]):
        if key not in saved:
            raise MtkdError(f"its group of parameters lacks {key}")
        if not _is_plain(saved[key]):
            raise MtkdError(f"{key} of its group of parameters is no finite number")
        own[key] = saved[key]
    return own


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    value = value.item() if is_dense(value) and value.numel() == 1 else value
    return isinstance(value, int | float | str | None) and not (isinstance(value, float) and not math.isfinite(value))


def _checked_value(name: str, key: str, found: Any, like: Any) -> Any:
    if isinstance(like, Tensor) and like.dim() == 0 or isinstance(like, int | float):
        # Older versions of torch kept the count of steps as a plain number.
        value = found.item() if is_dense(found) and found.numel() == 1 else found
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise MtkdError(f"{key} of {name} is not a finite number")
        return torch.tensor(float(value), dtype=like.dtype) if isinstance(like, Tensor) else value
    if like is None and found is None:
        return None
    if not isinstance(like, Tensor):
        raise MtkdError(f"{key} of {name} cannot be restored")
    if not is_dense(found):
        raise MtkdError(f"{key} of {name} is not a tensor of values")
    if found.shape != like.shape or found.dtype != like.dtype:
        raise MtkdError(
            f"{key} of {name} is {tuple(found.shape)} {found.dtype}, and must be {tuple(like.shape)} {like.dtype}"
        )
    return found


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
        # Iterations count from 1 here, as in BasicSR; the warm-up lasts while they are below warmup_iter.
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
        # After the last period hold its last rate, so that a run can be made longer (BasicSR raises an error).
        position = min(bisect.bisect_left(ends, step), len(ends) - 1)
        start = ends[position] - periods[position]
        progress = min(step - start, periods[position]) / periods[position]
        return eta_min + restart_weights[position] * 0.5 * (base - eta_min) * (1 + math.cos(math.pi * progress))

    return rate
