"""Train a student: `train` prepares everything that can fail, then runs the loop.

The loop names no method. A method returns raw terms; the loop weighs them by their schedules, makes one
backward pass and steps every optimizer. Nothing in an iteration makes the host wait for the device: losses are read,
and checked for NaN, every `print_freq` iterations and before every checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtkd.config import Options
from mtkd.contracts import Batch, Step, Stopped
from mtkd.methods.base import Method
from mtkd.runtime.run_folder import BEST, LATEST
from mtkd.training import early_stop
from mtkd.training.best import best_score, is_kept, text
from mtkd.training.compiled import compile_run
from mtkd.training.failures import mendable, rescue
from mtkd.training.own_state import OwnState
from mtkd.training.prepare import prepare
from mtkd.training.report import write_run_page
from mtkd.training.run import Run
from mtkd.training.saving import amend, describe, save, save_deployable, save_weights
from mtkd.training.stop import StopRequest, stop_requests
from mtkd.training.terms import weighted_total
from mtkd.training.validate import validate


def train(
    options: Options,
    *,
    auto_resume: bool = False,
    launcher: str = "none",
    option_text: str | None = None,
    command: str | None = None,
    page: bool = False,
) -> Path:
    """Run the training that `options` describes and return the final weights, `models/net_g_latest.pth`.

    Args:
        auto_resume: continue from the newest whole training state of the run's own folder when there is one.
        launcher: "none", "pytorch" or "slurm"; with the last two, one process a device is already running.
        option_text: the option file as the user wrote it, kept in the run folder.
        command: the command line, kept beside it.
        page: write `report.html` into the run folder when the run ends: curves, scores, a few images.

    Raises:
        MtkdError: anything a user can mend. Options, data, weights, metrics and the run folder are checked before the
            first iteration, and a start that fails leaves nothing behind.
        Stopped: Ctrl-C or SIGTERM ended the run before its last iteration.
        Exception: an error of mtkd, or of a network from outside. Like every error in training it is raised after the
            iterations before it are saved; the log, or the text of an MtkdError, gives the place.
    """
    try:
        run = prepare(options, auto_resume=auto_resume, launcher=launcher)
    except Exception as error:
        if (mended := mendable(error)) is None:
            raise
        raise mended from error
    try:
        describe(run, option_text, command)
        with stop_requests() as stop:
            _loop(run, stop)
            if stop.asked and run.state.done < run.method.task.total_steps and not early_stop.is_over(run):
                raise Stopped(stop.asked)
        if page:
            write_run_page(run)
        return run.folder.model(LATEST)
    except Exception as error:
        where = rescue(run, error)
        if (mended := mendable(error, where)) is not None:
            raise mended from error
        with suppress(OSError):
            run.log.info(where)
        raise
    finally:
        run.close()


def _loop(run: Run, stop: StopRequest) -> None:
    options, log, trace = run.options, run.log, run.trace
    logger, total_steps = options.logger, options.training.total_iter
    if run.losses_due:
        # The run failed after an iteration and before its log line.
        _log_losses(run, run.state.start, seconds=float("nan"))
    if run.state.validation_due:
        # The run was killed, or failed, between a checkpoint and its validation.
        validate(run, run.state.start)
        if run.state.saved == run.state.start:
            amend(run, run.state.start)
    early = early_stop.is_over(run)
    if run.state.start >= total_steps or early:
        log.info(f"{options.name} is finished: {run.state.start:,d} of {total_steps:,d} iterations.")
        if early:
            log.info(early_stop.why(run))
        if not run.folder.model(LATEST).exists():
            # The run was killed between its last checkpoint and its end.
            _finish(run)
        return
    if options.compile:
        compile_run(run)
    log.start_clock(run.state.start)
    if (best := best_score(run)) is not None:
        log.score(best.metric, best.value)
    printed_at, printed_step = time.perf_counter(), run.state.start
    run.method.train()
    run.state.own = OwnState(run.method)
    batches = run.batches()
    for step in range(run.state.start, total_steps):
        values = train_step(run, step, batches)
        trace.add(values)
        run.state.own.keep()
        run.state.done = done = step + 1
        run.state.stepping = False
        validating = done % (options.val.val_freq or total_steps) == 0 or done == total_steps
        run.state.validation_due = validating and bool(run.val_sets)
        log.step(done)
        stopping = stop.agreed()
        last = done == total_steps or stopping
        if done % logger.print_freq == 0 or last:
            # A stop adds no point to the curves: its losses wait for the next regular line.
            passing = done % logger.print_freq != 0 and done != total_steps
            # Waits for the device, so that the clock measures finished iterations.
            trace.check(done)
            now = time.perf_counter()
            _log_losses(run, done, seconds=(now - printed_at) / (done - printed_step), keep=not passing)
            printed_at, printed_step = now, done
        saving = done % logger.save_checkpoint_freq == 0 or last
        if validating or saving:
            began = time.perf_counter()
            log.pause("validating" if run.state.validation_due else "saving")
            trace.check(done)
            trace.check_weights(done, run.method.parameters())
            # Save first: a validation takes long, may fail, and the run may be killed in it.
            if saving:
                save(run, done)
            if run.state.validation_due:
                validate(run, done)
                run.method.train()
                if saving:
                    amend(run, done)
                run.state.validation_due = False
            # Do not count validation and saving as training time.
            printed_at += time.perf_counter() - began
        if early_stop.is_over(run) and done < total_steps:
            _end_early(run, saved=saving)
            break
        if stopping and done < total_steps:
            log.info(f"Stopped at iteration {done:,d}; everything is saved. Continue with --auto_resume.")
            return
    _finish(run)


def _log_losses(run: Run, done: int, *, seconds: float, keep: bool = True) -> None:
    values = run.trace.read(done)
    rate, epoch = run.rates["main"](done - 1), run.epoch(done)
    run.log.losses(step=done, epoch=epoch, rate=rate, values=values, seconds=seconds, keep=keep)
    if keep:
        run.trace.forget()


def _end_early(run: Run, *, saved: bool) -> None:
    """Save the iteration that a run ends at before its last one; resumed, it finds itself finished."""
    done = run.state.done
    if not saved:
        run.trace.check(done)
        save(run, done)
    run.log.info(early_stop.why(run))


def _finish(run: Run) -> None:
    deployable = save_deployable(run)
    # The last file, because its presence means that the run is finished.
    save_weights(run, run.state.done, name=LATEST)
    if (best := best_score(run)) is not None and is_kept(run):
        run.log.info(f"The best weights, {text(best)}: {run.folder.model(BEST)}")
    run.log.info(
        f"End of training. Weights: {run.folder.model(LATEST)}"
        + (f"; the network to deploy: {deployable}" if deployable else "")
    )


def train_step(run: Run, step: int, batches: Iterator[Batch]) -> dict[str, Tensor]:
    """One optimizer step; returns the raw terms, the weighted total and the method's logs, detached, unread.

    `run.state.stepping` stays True: the weights are those of the next iteration before it is counted.
    """
    settings, fabric = run.options.training, run.fabric
    _seed(step_seed(run.seed, step, fabric.global_rank), fabric.device)
    for name, optimizer in run.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = run.rates[name](step)
    values: dict[str, Tensor] = {}
    for micro in range(settings.accumulate):
        out, total = _backward(run, next(batches), step, last=micro == settings.accumulate - 1)
        for name, value in [*out.losses.items(), *out.critic.items(), ("l_total", total), *out.logs.items()]:
            share = value.detach().float() / settings.accumulate
            values[name] = values[name] + share if name in values else share
        if micro == 0 and settings.accumulate > 1 and run.options.compile:
            _keep_gradients(run.method)
    run.state.stepping = True
    for optimizer in run.optimizers.values():
        if settings.clip_grad_norm:
            _clip(run, optimizer.optimizer, settings.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.update()
    return values


def _backward(run: Run, batch: Batch, step: int, *, last: bool) -> tuple[Step, Tensor]:
    """Forward and backward of one batch; `last`: the last of the optimizer step, in which ranks average their
    gradients.
    """
    settings, fabric = run.options.training, run.fabric
    if run.options.compile:
        torch.compiler.cudagraph_mark_step_begin()
    with fabric.no_backward_sync(run.wrapped, enabled=not last):  # pyright: ignore[reportArgumentType]
        out: Step = run.wrapped(batch, step)
        total = weighted_total(out, settings.terms, step)
        fabric.backward(total / settings.accumulate)
    return out, total


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators of a run's own devices, to what `torch.manual_seed` would.

    That one asks every kind of device, and keeps a traceback for each that is not in use: 0.1 to 0.4 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _keep_gradients(method: Method) -> None:
    """Copy gradients out of the CUDA graph's memory: its next run overwrites them, and autograd adds in place."""
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def _clip(run: Run, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Bound the norm of one optimizer's gradients. Fabric's own refuses fused optimizers in fp16, and waits for
    the device to check that the norm is finite.
    """
    scaler = getattr(run.fabric._precision, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the torch generator for one iteration on one rank: distinct triples give unrelated streams."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
