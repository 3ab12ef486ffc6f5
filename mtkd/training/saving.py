"""What a run writes into its folder: its description, its checkpoints, and the weights to deploy."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from mtkd import build
from mtkd.config import resolved_yaml
from mtkd.runtime.environment import environment
from mtkd.runtime.files import flush
from mtkd.runtime.run_folder import LATEST
from mtkd.training import checkpoint
from mtkd.training.run import Run


def describe(run: Run, option_text: str | None, command: str | None) -> None:
    """Write the description of the run: the option file as written and as resolved, the command, versions, commit."""
    options, log = run.options, run.log
    if not run.fabric.is_global_zero:
        return
    root = run.folder.root
    if option_text is not None:
        header = f"# GENERATE TIME: {time.ctime()}\n# CMD:\n# {command or ' '.join(sys.argv)}\n\n"
        (root / f"{options.name}.yml").write_text(header + option_text, encoding="utf-8")
    (root / "resolved.yml").write_text(resolved_yaml(options), encoding="utf-8")
    facts = environment(run.fabric.device)
    (root / "environment.json").write_text(
        json.dumps({**facts, "command": command, "seed": run.seed}, indent=2) + "\n", encoding="utf-8"
    )
    for notice in [*options.notices, *run.notices]:
        log.info(notice)
    trainable = sum(p.numel() for p in run.method.student.parameters() if p.requires_grad)
    log.info(
        f"{options.name}: {options.model_type} x{options.scale}, student {options.network_g.type} with {trainable:,d} "
        f"parameters, {run.num_samples} training images, terms {', '.join(run.method.active)}, seed "
        f"{run.seed}, {facts['device']}"
    )
    if run.state.start:
        log.info(f"Resuming from iteration {run.state.start:,d}.")


def save(run: Run, done: int) -> None:
    """Write the checkpoint of iteration `done`; every rank calls it. Weights first, then the state: a state on disk
    always has its weights.
    """
    pending = run.trace.pending()
    if run.fabric.is_global_zero:
        save_alone(run, done, pending)
        if run.options.logger.keep_last is not None:
            forget_old(run, done, run.options.logger.keep_last)
    run.state.saved = done
    run.fabric.barrier()


def save_alone(run: Run, done: int, pending: dict[str, Any]) -> None:
    """The part of `save` that rank 0 does, without waiting for others."""
    save_weights(run, done)
    if max(run.folder.saved_weights(), default=0) == done:
        # A run that goes on after its end has newer weights than that end left, and is not finished.
        for path in (run.folder.model(LATEST), run.folder.deployable):
            path.unlink(missing_ok=True)
    _save_state(run, done, pending)


def forget_old(run: Run, done: int, count: int) -> None:
    """Remove all checkpoints but the newest `count` up to iteration `done`, which is one of them; rank 0 only.

    Those of later iterations, which a run resumed from an earlier one finds, are not its own to remove.
    """
    folder = run.folder
    # Nothing older is removed before the newest would survive a loss of power.
    for path in (folder.model(done), folder.state(done)):
        flush(path)
    steps = sorted({*folder.saved_states(), *folder.saved_weights()} - {0}, reverse=True)
    for step in [step for step in steps if step <= done][count:]:
        # The state first: a state on disk always has its weights.
        for path in (folder.state(step), folder.model(step)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                run.log.info(f"logger.keep_last: {path} cannot be removed: {error.strerror or error}.")


def amend(run: Run, done: int) -> None:
    """Write the state of iteration `done` again, which has been validated since; every rank calls it."""
    run.state.validation_due = False
    pending = run.trace.pending()
    if run.fabric.is_global_zero:
        _save_state(run, done, pending)
    run.fabric.barrier()


def save_weights(run: Run, done: int, *, name: str | None = None) -> None:
    """Write the weights of iteration `done`, under its number or a `name` ("latest", "best"); rank 0 only."""
    if not run.fabric.is_global_zero:
        return
    facts = build.network_facts(run.options) | build.plain(run.method.metadata())
    facts["iteration"] = done
    ema = run.ema.net if run.ema is not None else None
    checkpoint.write_weights(run.folder.model(name or done), run.method.student, ema, facts)


def save_deployable(run: Run) -> Path | None:
    """Write `models/deployable.pth` when a user deploys another network than was trained (CSD's narrow one), from EMA
    weights when there are any; None when the student itself is deployed.
    """
    method = run.method
    student = run.ema.net if run.ema is not None else method.student
    net = method.deployable(student)
    if net is student or not run.fabric.is_global_zero:
        return None
    facts = build.network_facts(run.options)
    facts["arch"] = build.plain(dict(method.deployable_arch(facts["arch"])))
    checkpoint.write_weights(run.folder.deployable, net, None, facts)
    return run.folder.deployable


def _save_state(run: Run, done: int, pending: dict[str, Any]) -> None:
    own = {key: value for key, value in run.method.state_dict().items() if not key.startswith("student.")}
    state = {
        "epoch": run.epoch(done),
        "iter": done,
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers.values()],
        "schedulers": [],
        "method": own,
        "precision": run.fabric._precision.state_dict(),
        "seed": run.seed,
        "best": run.state.best,
        "progress": run.state.progress,
        "validation_due": run.state.validation_due,
        "losses": pending,
        "run": run.record,
    }
    checkpoint.atomic_save(state, run.folder.state(done))
