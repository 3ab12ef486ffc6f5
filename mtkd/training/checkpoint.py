"""Files of a checkpoint: written atomically, and checked for damage.

Formats are BasicSR's: `models/net_g_ITER.pth` with `params` and `params_ema`, which BasicSR loads, and
`training_states/ITER.state`. A state is written after its model file, both atomically, so a run killed at any moment
leaves only complete checkpoints behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.zoo import containers, files


def atomic_save(content: Mapping[str, Any], path: Path) -> None:
    """`torch.save` that leaves either the old file or the complete new one, whatever happens in between.

    Raises:
        MtkdError: the disk is full, or cannot be written.
    """
    try:
        files.write_pth(path, content)
    except OSError as error:
        raise MtkdError(
            f"{path} cannot be written: {error.strerror or error}. The previous checkpoint is untouched."
        ) from error


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """State dict on the CPU in fp32 (integer buffers keep their type), so that BasicSR loads it."""
    return {
        key: (value.float() if value.is_floating_point() else value).detach().cpu()
        for key, value in net.state_dict().items()
    }


def write_weights(path: Path, student: nn.Module, ema: nn.Module | None, facts: dict[str, Any]) -> None:
    """Write `params` (and `params_ema`) plus `mtkd`, plain facts that make the file self-describing."""
    content: dict[str, Any] = {"params": plain_state(student)}
    if ema is not None:
        content["params_ema"] = plain_state(ema)
    atomic_save({**content, "mtkd": facts}, path)


def damage(path: Path) -> str | None:
    """What is broken in a file of `torch.save`, or None: its bytes are compared with its checksums, which torch itself
    does not read. It takes about a second for a GB. Files of torch 1.5 and older have no checksums.
    """
    if not path.is_file():
        return "it does not exist"
    try:
        broken = containers.verify(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None if broken is None else f"the checksum of {broken} is wrong"


def load_state(path: Path) -> dict[str, Any]:
    """Training state on the CPU, its form checked; `mtkd.training.resume` checks that it fits the run.

    Raises:
        MtkdError: the file is missing, broken, or no training state.
    """
    if not path.is_file():
        raise MtkdError(f"There is no training state {path}.")
    broken = damage(path)
    try:
        state = None if broken else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  broken files raise whatever the bytes happen to trigger
        broken = f"{type(error).__name__} when read as tensors and plain values"
    if broken:
        raise MtkdError(f"{path} is damaged, or not a training state: {broken}.")
    if wrong := _wrong_form(state):
        raise MtkdError(f"{path} is not a training state: {wrong}.")
    assert isinstance(state, dict)
    return state


def _wrong_form(state: Any) -> str | None:
    if not isinstance(state, dict) or "iter" not in state or "optimizers" not in state:
        return "it has no `iter` and `optimizers`"
    if not _is_count(state["iter"]):
        return "its `iter` is not a whole number"
    if not isinstance(state["optimizers"], list):
        return "its `optimizers` are not a list"
    for saved in state["optimizers"]:
        groups = saved.get("param_groups") if isinstance(saved, dict) else None
        if not isinstance(groups, list) or not isinstance(saved.get("state"), dict):
            return "an optimizer has no `state` and `param_groups`"
        if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
            return "a group of parameters names none"
        if not all(_is_count(position) for group in groups for position in group["params"]):
            return "a group of parameters has no numbers of them"
    for key in ("method", "precision", "best", "run", "losses"):
        if not isinstance(state.get(key, {}), dict):
            return f"its `{key}` is not a mapping"
    if not _is_record(state.get("run", {})):
        return "its `run` does not describe one"
    if state.get("losses") and not _is_table(state["losses"]):
        return "its `losses` are not a table of numbers"
    if "seed" in state and not (_is_count(state["seed"]) and state["seed"] < 2**63):
        return "its `seed` is not a whole number that can seed"
    scaler = state.get("precision", {}).values()
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in scaler):
        return "its `precision` holds more than finite numbers"
    for best in state.get("best", {}).values():
        rows = best.values() if isinstance(best, dict) else [None]
        if not all(
            isinstance(row, dict) and isinstance(row.get("val"), float) and _is_count(row.get("iter")) for row in rows
        ):
            return "its `best` holds no values with their iterations"
    progress = state.get("progress") or {"val": 0.0, "iter": 0, "since": 0}
    if not isinstance(progress, dict) or not isinstance(progress.get("val"), float):
        return "its `progress` has no value"
    if not _is_count(progress.get("iter")) or not _is_count(progress.get("since")):
        return "its `progress` has no iteration"
    return None


def _is_record(run: dict[str, Any]) -> bool:
    """Whether `run` may be a `record.record`: plain values alone, which can be compared and shown."""
    try:
        json.dumps(run)
    except (TypeError, ValueError, RecursionError):
        return False
    places = [run.get(key, {}) for key in ("options", "images")]
    return all(isinstance(place, dict) and all(isinstance(key, str) for key in place) for place in places)


def _is_table(losses: dict[str, Any]) -> bool:
    names, values = losses.get("names"), losses.get("values")
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and is_dense(values)
        and values.is_floating_point()
        and values.shape[1:] == (len(names),)
    )


def is_dense(value: Any) -> TypeGuard[Tensor]:
    """Whether `value` is a tensor whose numbers lie in memory one by one."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
