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
    facts = environment()
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
    run.state.saved = done
    run.fabric.barrier()


def save_alone(run: Run, done: int, pending: dict[str, Any]) -> None:
    """The part of `save` that rank 0 does, without waiting for others."""
    save_weights(run, done)
    _save_state(run, done, pending)


def amend(run: Run, done: int) -> None:
    """Write the state of iteration `done` again, which has been validated since; every rank calls it."""
    run.state.validation_due = False
    pending = run.trace.pending()
    if run.fabric.is_global_zero:
        _save_state(run, done, pending)
    run.fabric.barrier()


def save_weights(run: Run, step: int | str) -> None:
    """Write the weights file of iteration `step` (or "latest"); rank 0 only."""
    if not run.fabric.is_global_zero:
        return
    facts = build.network_facts(run.options) | build.plain(run.method.metadata())
    facts["iteration"] = run.options.training.total_iter if step == LATEST else step
    ema = run.ema.net if run.ema is not None else None
    checkpoint.write_weights(run.folder.model(step), run.method.student, ema, facts)


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
    path = run.folder.models / "deployable.pth"
    checkpoint.write_weights(path, net, None, facts)
    return path


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
        "validation_due": run.state.validation_due,
        "losses": pending,
        "run": run.record,
    }
    checkpoint.atomic_save(state, run.folder.state(done))
