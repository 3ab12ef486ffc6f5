"""Resume a run: find the newest whole checkpoint, check that it belongs to the run, and restore its values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtkd import build, zoo
from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.runtime.run_folder import RunFolder
from mtkd.training.checkpoint import damage, is_dense, load_state
from mtkd.training.claim import refuse_to_begin_anew
from mtkd.training.optim import checked_state
from mtkd.training.record import NEW_RUN, compare, few, is_under
from mtkd.zoo import containers

if TYPE_CHECKING:
    from mtkd.training.run import Run


def state_to_resume(options: Options, folder: RunFolder, auto_resume: bool) -> tuple[Path | None, list[str]]:
    """The training state to go on from, and a line for each newer one that is not whole; None for a new run.

    Raises:
        MtkdError: the folder holds work and no whole checkpoint, or later checkpoints than path.resume_state.
    """
    if auto_resume:
        found, notices = _newest_whole(folder)
        if found is not None:
            return found, notices
        if notices and not options.path.resume_state:
            raise MtkdError(
                f"{folder.root} holds no whole checkpoint: {' '.join(notices)} Put the files back, or move the folder "
                "away to start again."
            )
    if not options.path.resume_state:
        refuse_to_begin_anew(folder, options.logger.save_checkpoint_freq)
        return None, []
    state = Path(options.path.resume_state).expanduser()
    newest = max([*folder.saved_states(), *folder.saved_weights()], default=0)
    if state.stem.isascii() and state.stem.isdigit() and newest > int(state.stem):
        raise MtkdError(
            f"{folder.root} holds later checkpoints ({newest:,d}) than path.resume_state, "
            f"{state.name}; going on from there would overwrite them. Give this run another `name`, or resume the "
            "newest with --auto_resume."
        )
    if broken := damage(_weights_of(state)):
        raise MtkdError(f"{_weights_of(state)}, the weights of {state}, cannot be used: {broken}.")
    return state, []


def _newest_whole(folder: RunFolder) -> tuple[Path | None, list[str]]:
    notices = []
    for step in folder.saved_states():
        weights, state = folder.model(step), folder.state(step)
        try:
            if broken := damage(weights):
                raise MtkdError(f"{weights}: {broken}.")
            if not containers.has_checksums(weights):
                # A state without checksums must be read to see whether it is whole.
                zoo.read_checkpoint(weights, key="params")
            load_state(state)
        except MtkdError as error:
            notices.append(f"The checkpoint of iteration {step:,d} is not whole: {error}")
            continue
        return state, notices
    return None, notices


def _weights_of(state: Path) -> Path:
    return state.parent.parent / "models" / f"net_g_{state.stem}.pth"


def restore(run: Run, state: dict[str, Any], path: Path) -> list[str]:
    """Put weights, averages, moments and the rest of `state`, read from `path`, into `run`; returns lines about
    what changed since.

    Raises:
        MtkdError: it belongs to another run, or holds values that do not fit; the text names them.
    """
    done, method = int(state["iter"]), run.method
    if done > run.options.training.total_iter:
        raise MtkdError(
            f"{path} is of iteration {done:,d}, and train.total_iter is {run.options.training.total_iter:,d}: there "
            "is nothing to go on with. Raise total_iter, or give this run another `name`."
        )
    weights = path.parent.parent / "models" / f"net_g_{done}.pth"
    method.check_metadata(build.load_weights(method.student, str(weights), key="params"))
    if run.ema is not None:
        _restore_average(run.ema.net, weights, run.options.training.ema_decay)
    if state.get("seed", run.seed) != run.seed:
        raise MtkdError(
            f"{path} was trained with manual_seed {state['seed']}, and the option file says {run.seed}: the "
            "batches would not go on where they stopped. Give the old seed, or start a new run from these weights with "
            "path.pretrain_network_g."
        )
    lines = compare(state.get("run"), run.record, path)
    _keep_later_weights(run.folder, state.get("run"), run.record, done)
    _restore_own(method, state.get("method", {}), path, run.options.model_type)
    _restore_optimizers(run, state, path, weights)
    if state.get("precision"):
        run.fabric._precision.load_state_dict(state["precision"])
    run.trace.take_up(state.get("losses", {}))
    run.state.best = state.get("best", {})
    run.state.progress = state.get("progress", {})
    run.state.start = run.state.done = done
    run.state.validation_due = bool(state.get("validation_due")) and bool(run.val_sets)
    return lines


def _restore_optimizers(run: Run, state: dict[str, Any], path: Path, weights: Path) -> None:
    """Give the moments of `state` to the optimizers of `run`; everything else of them comes from the option file."""
    done, method = int(state["iter"]), run.method
    if len(state["optimizers"]) != len(run.optimizers):
        raise MtkdError(f"{path} holds {len(state['optimizers'])} optimizers, this method has {len(run.optimizers)}.")
    if "method" not in state:
        # BasicSR wrote it. Its SRModel has one optimizer, over the parameters in the order of the network's modules.
        state["optimizers"][0] = in_our_order(state["optimizers"][0], method.student, weights)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    for (group, optimizer), saved in zip(run.optimizers.items(), state["optimizers"], strict=True):
        given = run.options.training.optim_g if group == "main" else run.options.training.optim_d
        assert given is not None
        inner = optimizer.optimizer
        own = [names[id(parameter)] for part in inner.param_groups for parameter in part["params"]]
        try:
            fitting = checked_state(saved, inner, given.arguments(), own)
        except MtkdError as error:
            raise MtkdError(
                f"{path} does not fit this run's {given.type} ({group}): {error}. Is it of another optimizer, or was "
                f"the file changed? Use another state, {NEW_RUN}."
            ) from error
        inner.load_state_dict(fitting)
        for part in inner.param_groups:
            part["lr"] = run.rates[group](max(done - 1, 0))
        _lay_out_as_parameters(inner)


def _restore_average(net: nn.Module, weights: Path, decay: float) -> None:
    build.load_weights(net, str(weights), key="params_ema")
    # Without params_ema the weights themselves are read, and the average would silently start again from them.
    if net.origin.entry != "params_ema":  # pyright: ignore[reportAttributeAccessIssue]
        raise MtkdError(
            f"train.ema_decay is {decay:g}, and {weights} holds no average (params_ema): the run was trained without. "
            f"Set ema_decay: 0, {NEW_RUN}."
        )


def _restore_own(method: nn.Module, own: Mapping[str, Any], path: Path, model_type: str) -> None:
    expected = {key: value for key, value in method.state_dict().items() if not key.startswith("student.")}
    if set(own) != set(expected):
        raise MtkdError(
            f"{path} belongs to another method than {model_type}: its own modules hold {sorted(own)[:3]}, this one's "
            f"{sorted(expected)[:3]}. Give this run another `name`."
        )
    for key, like in expected.items():
        found = own[key]
        if not is_dense(found) or found.shape != like.shape or found.dtype != like.dtype:
            held = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise MtkdError(
                f"{path}: {key} of {model_type} is {held}, and here {tuple(like.shape)} {like.dtype}: options of the "
                "section `method` or of a term changed, or the version of mtkd builds it otherwise (CHANGELOG.md). "
                f"Give the old values back, {NEW_RUN}."
            )
    method.load_state_dict(own, strict=False)


def _keep_later_weights(folder: RunFolder, then: Mapping[str, Any] | None, now: Mapping[str, Any], done: int) -> None:
    """Raise an error where the run's folder holds weights of later iterations without their states, and settings
    changed: training would overwrite them with others. With the same settings it makes them again, bit for bit.
    """
    before, after = (then or {}).get("options", {}), now["options"]
    differing = [key for key in {*before, *after} if key.startswith("train.") and before.get(key) != after.get(key)]
    harmless = ("train.total_iter", "train.early_stop")
    differing = sorted(key for key in differing if not is_under(key, harmless))
    if then is None or not differing:
        return
    found = re.compile(r"net_g_(\d+)\.pth")
    files = folder.models.iterdir() if folder.models.is_dir() else ()
    steps = sorted(int(match[1]) for file in files if (match := found.fullmatch(file.name)))
    if whole := [folder.model(step).name for step in steps if step > done and damage(folder.model(step)) is None]:
        raise MtkdError(
            f"{folder.models} holds {few(whole)}, of later iterations than {done}.state, and {few(differing)} "
            "changed since: going on would put other weights in their place. Remove them, give the old values back, "
            f"{NEW_RUN}."
        )


def _lay_out_as_parameters(optimizer: Any) -> None:
    """Give moments the memory layout of their parameters: fused optimizers walk both in the order of memory, and a
    state of BasicSR, or of a run with another `channels_last`, lies otherwise.
    """
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def in_our_order(saved: dict[str, Any], student: nn.Module, weights: Path) -> dict[str, Any]:
    """An optimizer state whose parameters stand in the order of the weights file, in the order of `student`'s.

    Raises:
        MtkdError: the state is of another number of parameters, so it cannot be of these weights.
    """
    ours = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    stored = zoo.read_checkpoint(weights, key="params").state
    theirs = [name for name in stored if name in set(ours)]
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if sorted(theirs) != sorted(ours) or count != len(ours) or len(saved["param_groups"]) != 1:
        raise MtkdError(
            f"The training state beside {weights} holds an optimizer of {count} parameters, and the network has "
            f"{len(ours)} in training. To start from these weights without their optimizer, give them as "
            "path.pretrain_network_g and leave path.resume_state out."
        )
    place = {name: position for position, name in enumerate(theirs)}
    state = {new: saved["state"][place[name]] for new, name in enumerate(ours) if place[name] in saved["state"]}
    return {"state": state, "param_groups": [{**saved["param_groups"][0], "params": list(range(len(ours)))}]}
