"""Train a student: `train` prepares everything that can fail, then runs the loop.

The loop knows no method by name. It asks a method for raw terms, weighs them by their schedules, makes one backward
pass, and steps every optimizer. Nothing in an iteration makes the device wait for the host: losses are read, and
checked for NaN, every `print_freq` iterations and before every checkpoint.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from mtkd.config import Options, TermOptions
from mtkd.contracts import Batch, MtkdError, Step
from mtkd.inference.evaluate import compile_for_images, evaluate_sharded, save_to, val_predict
from mtkd.methods.base import Method
from mtkd.runtime import given
from mtkd.runtime.compiling import compile_networks, uncompile
from mtkd.training import checkpoint
from mtkd.training.ema import Ema
from mtkd.training.loss_trace import NotFiniteError
from mtkd.training.schedule import weight_at
from mtkd.training.session import Session, amend, describe, prepare, save, save_alone, save_deployable, save_weights


class Stopped(SystemExit):
    """A run ended before its last iteration because it was asked to; everything is saved.

    As an exception of Python that nobody catches it ends the process with `code`, which is 128 + the signal's number as
    shells have it: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def train(
    options: Options,
    *,
    auto_resume: bool = False,
    launcher: str = "none",
    option_text: str | None = None,
    command: str | None = None,
) -> Path:
    """Run the training that `options` describes and return the final weights, `models/net_g_latest.pth`.

    Args:
        auto_resume: continue from the newest whole training state of the run's own folder when there is one.
        launcher: "none", "pytorch" or "slurm"; with the last two, one process a device is already running.
        option_text: the option file as the user wrote it, kept in the run folder.
        command: the command line, kept beside it.

    Raises:
        MtkdError: anything a user can mend. Options, data, weights, metrics and the run folder are checked before the
            first iteration, and a start that fails leaves nothing behind.
        Stopped: Ctrl-C or SIGTERM ended the run before its last iteration.
        Exception: an error of mtkd, or of a network from outside. Like every error in training it is raised when the
            iterations before it are saved; the log, or the text of a MtkdError, says where.
    """
    try:
        session = prepare(options, auto_resume=auto_resume, launcher=launcher)
    except Exception as error:
        if (mendable := _mendable(error)) is None:
            raise
        raise mendable from error
    try:
        describe(session, option_text, command)
        with _stop_requests() as stop:
            _loop(session, stop)
            if stop.asked and session.done < session.method.task.total_steps:
                raise Stopped(stop.asked)
        return session.folder.model(checkpoint.LATEST)
    except Exception as error:
        where = _rescue(session, error)
        if (mendable := _mendable(error, where)) is not None:
            raise mendable from error
        with suppress(OSError):
            session.log.say(where)
        raise
    finally:
        session.close()


def _loop(session: Session, stop: StopRequest) -> None:
    options, log, trace = session.options, session.log, session.trace
    assert options.train is not None and options.datasets.train is not None
    logger, total_steps = options.logger, options.train.total_iter
    if session.losses_due:
        # Failed between an iteration and its line.
        _log_losses(session, session.start, seconds=float("nan"))
    if session.validation_due:
        # Killed, or failed, between a checkpoint and its validation.
        _validate(session, session.start)
        if session.saved == session.start:
            amend(session, session.start)
    if session.start >= total_steps:
        log.say(f"{options.name} is finished: {session.start:,d} of {total_steps:,d} iterations.")
        if not session.folder.model(checkpoint.LATEST).exists():
            # Killed between its last checkpoint and its end.
            _finish(session)
        return
    if options.compile:
        _compile(session)
    log.start_clock(session.start)
    printed_at, printed_step = time.perf_counter(), session.start
    session.method.train()
    batches = session.batches()
    for step in range(session.start, total_steps):
        values = _iterate(session, step, batches)
        trace.add(values)
        session.done = done = step + 1
        validating = done % (options.val.val_freq or total_steps) == 0 or done == total_steps
        session.validation_due = validating and bool(session.val_sets)
        stopping = stop.agreed()
        last = done == total_steps or stopping
        if done % logger.print_freq == 0 or last:
            # Where a run was stopped is no place of its own in the curves: the losses go on waiting there.
            passing = done % logger.print_freq != 0 and done != total_steps
            # Waits for the device, so that the time is that of iterations.
            trace.check(done)
            now = time.perf_counter()
            _log_losses(session, done, seconds=(now - printed_at) / (done - printed_step), keep=not passing)
            printed_at, printed_step = now, done
        saving = done % logger.save_checkpoint_freq == 0 or last
        if validating or saving:
            began = time.perf_counter()
            trace.check(done)
            trace.check_weights(done, session.method.parameters())
            # Saved first: a validation can fail, and takes the time in which a run is killed.
            if saving:
                save(session, done)
            if session.validation_due:
                _validate(session, done)
                session.method.train()
                if saving:
                    amend(session, done)
                session.validation_due = False
            # The pause is no iteration's time.
            printed_at += time.perf_counter() - began
        if stopping and done < total_steps:
            log.say(f"Stopped at iteration {done:,d}; everything is saved. Continue with --auto_resume.")
            return
    _finish(session)


def _log_losses(session: Session, done: int, *, seconds: float, keep: bool = True) -> None:
    values = session.trace.read(done)
    rate, epoch = session.rates["main"](done - 1), session.epoch(done)
    session.log.losses(step=done, epoch=epoch, rate=rate, values=values, seconds=seconds, keep=keep)
    if keep:
        session.trace.forget()


def _rescue(session: Session, error: Exception) -> str:
    """Save what was trained before `error`, as far as it is good, and say in a sentence where it is.

    Other processes are not waited for: they may be waiting for this one. So only rank 0 saves, and only what it has
    itself.
    """
    if not session.fabric.is_global_zero or isinstance(error, NotFiniteError):
        return ""
    unsaved = session.done > max(session.saved, session.start)
    if unsaved and not session.stepping:
        # An error of the device, or a disk that is full, ends this attempt too; the error that began it is told.
        with suppress(Exception):
            finite = all(bool(parameter.detach().isfinite().all()) for parameter in session.method.parameters())
            if finite and session.trace.is_finite():
                save_alone(session, session.done, session.trace.pending(alone=True))
                session.saved = session.done
    if session.saved:
        return (
            f"Everything up to iteration {session.saved:,d} is saved in {session.folder.state(session.saved)}; "
            "continue with --auto_resume."
        )
    return f"The {session.done:,d} iterations before it could not be saved." if unsaved else "Nothing was trained yet."


def _mendable(error: Exception, where: str = "") -> MtkdError | None:
    """`error` as one that a user can mend, with `where` at its end; None for what may be a fault of mtkd."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MtkdError):
        if not where:
            return error
    elif isinstance(error, torch.OutOfMemoryError):
        text = (
            f"The device ran out of memory: {first} Lower batch_size_per_gpu or gt_size, raise train.accumulate, use "
            "`precision: bf16`, or `cache: ram` for the training images."
        )
    elif given.is_out_of_memory(error):
        text = (
            f"The memory of this machine is full: {first}. Lower batch_size_per_gpu or gt_size, or use `cache: disk` "
            "for the training images."
        )
    elif given.is_lost_process(error):
        text = (
            "Another process of this run has ended, and this one cannot go on without it; the error of the other says "
            f"why. ({first[:300]})"
        )
    elif isinstance(error, OSError):
        text = f"{error.filename or 'A file of the run cannot be written'}: {error.strerror or first}."
    else:
        return None
    return MtkdError(f"{text} {where}".rstrip())


def _compile(session: Session) -> None:
    """Compile student and teachers in place, tried on the first batch; the trial leaves no trace in the training."""
    method, fabric, mode = session.method.train(), session.fabric, session.options.compile
    networks = [method.student, *(teacher.net for teacher in method.teachers.values())]
    kept = {name: value.clone() for name, value in method.state_dict().items()}
    # Not in the trial, which would blame the compiler for what is wrong with the data.
    batch = next(session.batches())

    def trial() -> None:
        assert session.options.train is not None
        torch.compiler.cudagraph_mark_step_begin()
        # Not through the wrapper that lets ranks meet: one that failed inside it would be a meeting behind.
        with fabric.autocast():
            out = method(batch, session.start)
        fabric.backward(weighted_total(out, session.options.train.terms, session.start))

    compiled = compile_networks(
        networks,
        trial,
        mode="default" if mode is True else mode,  # pyright: ignore[reportArgumentType]
        say=session.log.say,
    )
    if fabric.world_size > 1:
        failed = fabric.all_reduce(torch.tensor(float(not compiled), device=fabric.device), reduce_op="sum")
        assert isinstance(failed, Tensor)
        if failed.item() and compiled:
            uncompile(networks)
            session.log.say("compile: another process cannot compile its networks, and all run uncompiled")
    method.load_state_dict(kept)
    for optimizer in session.optimizers.values():
        optimizer.zero_grad(set_to_none=True)


def _finish(session: Session) -> None:
    deployable = save_deployable(session)
    # The last, because it says that the run is finished.
    save_weights(session, checkpoint.LATEST)
    session.log.say(
        f"End of training. Weights: {session.folder.model(checkpoint.LATEST)}"
        + (f"; the network to deploy: {deployable}" if deployable else "")
    )


def _iterate(session: Session, step: int, batches: Iterator[Batch]) -> dict[str, Tensor]:
    """One optimizer step; returns the raw terms, the weighted total and the method's logs, detached, unread."""
    assert session.options.train is not None
    settings, fabric = session.options.train, session.fabric
    torch.manual_seed(step_seed(session.seed, step, fabric.global_rank))
    for name, optimizer in session.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = session.rates[name](step)
    values: dict[str, Tensor] = {}
    for micro in range(settings.accumulate):
        out, total = _backward(session, next(batches), step, last=micro == settings.accumulate - 1)
        for name, value in [*out.losses.items(), *out.critic.items(), ("l_total", total), *out.logs.items()]:
            share = value.detach().float() / settings.accumulate
            values[name] = values[name] + share if name in values else share
        if micro == 0 and settings.accumulate > 1 and session.options.compile:
            _keep_gradients(session.method)
    session.stepping = True
    for optimizer in session.optimizers.values():
        if settings.clip_grad_norm:
            _clip(session, optimizer.optimizer, settings.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if session.ema is not None:
        session.ema.update()
    session.stepping = False
    return values


def _backward(session: Session, batch: Batch, step: int, *, last: bool) -> tuple[Step, Tensor]:
    """Forward and backward of one batch; `last` of the optimizer step's, when ranks average their gradients."""
    settings, fabric = session.options.train, session.fabric
    assert settings is not None
    if session.options.compile:
        torch.compiler.cudagraph_mark_step_begin()
    with fabric.no_backward_sync(session.wrapped, enabled=not last):  # pyright: ignore[reportArgumentType]
        out: Step = session.wrapped(batch, step)
        total = weighted_total(out, settings.terms, step)
        fabric.backward(total / settings.accumulate)
    return out, total


def _keep_gradients(method: Method) -> None:
    """Move gradients out of what the graph owns that made them: a CUDA graph overwrites its results in its next run,
    and autograd adds to them where they lie.
    """
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def _clip(session: Session, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Bound the norm of one optimizer's gradients. Fabric's own refuses fused optimizers in fp16, and asks the device
    whether the norm is finite, which would wait for it.
    """
    scaler = getattr(session.fabric._precision, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def weighted_total(out: Step, terms: Mapping[str, TermOptions], step: int) -> Tensor:
    """Sum of the terms times their weights at `step`, student and critic together."""
    total = out.sr.new_zeros(())
    for name, value in [*out.losses.items(), *out.critic.items()]:
        total = total + weight_at(terms[name].weight, step) * value
    return total


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the torch generator for one iteration on one rank: distinct triples give unrelated streams."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _save_visualization(session: Session, key: str, done: int, image: str, sr: np.ndarray) -> None:
    # Images of several sets may have one name.
    folder = session.folder.visualization / (key if len(session.val_sets) > 1 else "")
    save_to(folder / image, str(done))(image, sr)


def _student_to_validate(session: Session) -> nn.Module:
    if session.ema is not None:
        return session.ema.net
    if not session.options.val.compile:
        return session.method.student
    # A copy, because modules are compiled in place: the student would go on training in what was compiled for images.
    if session.student_copy is None:
        session.student_copy = Ema(session.method.student, decay=0.0)
    session.student_copy.update()
    return session.student_copy.net


def _validate(session: Session, done: int) -> None:
    """Measure every validation set, each rank a share of its images; all ranks know the results."""
    options, fabric = session.options, session.fabric
    # Images come in many sizes, and a network compiled for training patches would be compiled anew for each.
    stance = "force_eager" if options.compile and not options.val.compile else "default"
    student = _student_to_validate(session)
    net = session.method.predictor(student).eval()
    if options.val.compile and session.images_compile:
        part = student if student in net.modules() else net
        session.images_compile = compile_for_images(net, fabric.device, fabric.autocast, session.log.say, part=part)
    for name, images in session.val_sets.items():
        save = partial(_save_visualization, session, name, done) if options.val.save_img else None
        with torch.compiler.set_stance(stance):
            result = evaluate_sharded(
                val_predict(net, options),
                images,
                session.metrics,
                dataset=name,
                device=fabric.device,
                autocast=fabric.autocast,
                save=save,
            )
        means = result.means()
        for metric, value in means.items():
            best = session.best.setdefault(name, {})
            higher = options.val.metrics[metric]["better"] == "higher"
            if metric not in best or (value >= best[metric]["val"] if higher else value <= best[metric]["val"]):
                best[metric] = {"val": value, "iter": done}
        best = session.best[name] if means else {}
        entry = "params" if session.ema is None else "params_ema"
        session.log.validation(step=done, dataset=name, label=session.label(name), entry=entry, values=means, best=best)
    fabric.barrier()


class StopRequest:
    """Whether someone asked the run to stop; asking one rank asks all, and they agree on the iteration.

    Attributes:
        asked: number of the signal that asked, 0 for none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._group = distributed.new_group(backend="gloo") if distributed.is_initialized() else None

    def agreed(self) -> bool:
        """Whether any rank was asked, the same answer on all; every rank calls it once per iteration."""
        if self._group is not None:
            # On the CPU, so that the device need not be waited for.
            flag = torch.tensor([self.asked])
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group)
            self.asked = int(flag.item())
        return bool(self.asked)


@contextmanager
def _stop_requests() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that a run stops between iterations with everything saved."""
    request = StopRequest()
    previous: dict[int, Any] = {}

    def ask(signum: int, frame: Any) -> None:
        request.asked = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            previous[signum] = signal.signal(signum, ask)
    except ValueError:
        # Not the main thread: signals go elsewhere.
        pass
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
