"""Errors in training: save the work done before them, and say what to do."""

from __future__ import annotations

from contextlib import suppress

import torch

from mtkd.contracts import MtkdError
from mtkd.runtime import given
from mtkd.training.loss_trace import NotFiniteError
from mtkd.training.run import Run
from mtkd.training.saving import save_alone


def rescue(run: Run, error: Exception) -> str:
    """Save the finite weights trained before `error`, and return a sentence that gives their place.

    Rank 0 alone saves, and only what it has: waiting for another process, which may wait for this one, could deadlock.
    """
    if not run.fabric.is_global_zero or isinstance(error, NotFiniteError):
        return ""
    unsaved = run.state.done > max(run.state.saved, run.state.start)
    if unsaved and not run.state.stepping:
        # A broken device or a full disk ends this attempt too. Report the first error, not this one.
        with suppress(Exception):
            finite = all(bool(parameter.detach().isfinite().all()) for parameter in run.method.parameters())
            if finite and run.trace.is_finite():
                if run.state.own is not None:
                    run.state.own.go_back()
                save_alone(run, run.state.done, run.trace.pending(alone=True))
                run.state.saved = run.state.done
    if run.state.saved:
        return (
            f"Everything up to iteration {run.state.saved:,d} is saved in {run.folder.state(run.state.saved)}; "
            "continue with --auto_resume."
        )
    if unsaved:
        return f"The {run.state.done:,d} iterations before it could not be saved."
    return "Nothing was trained yet."


def mendable(error: Exception, where: str = "") -> MtkdError | None:
    """`error` as an MtkdError that ends with `where`, if a user can mend it; None if it may be a fault of mtkd."""
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
            f"The memory of this machine is full: {first}. Lower batch_size_per_gpu or gt_size, or use `cache: "
            "disk` for the training images."
        )
    elif given.is_lost_process(error):
        text = (
            "Another process of this run has ended, and this one cannot go on without it; the error of the other gives "
            f"why. ({first[:300]})"
        )
    elif isinstance(error, OSError):
        text = f"{error.filename or 'A file of the run cannot be written'}: {error.strerror or first}."
    else:
        return None
    return MtkdError(f"{text} {where}".rstrip())
