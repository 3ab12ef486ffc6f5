"""Worker processes that make batches ahead of the training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from mtkd.contracts import MtkdError

_GRACE = 20
"""Seconds for which a worker continues after SIGTERM."""


class BatchSource(Protocol):
    """What makes a batch from its key; pickled to workers where processes are not forked."""

    def __getitem__(self, key: Any, /) -> tuple[torch.Tensor, ...]: ...


def prefetch_in_workers(source: BatchSource, keys: Iterator[Any], *, workers: int, pin_memory: bool) -> Generator[Any]:
    """`source[key]` for each of `keys`, in their order, made by `workers` processes, a few ahead of use.

    Closing the iterator ends the workers.

    Raises:
        MtkdError: what a worker raised, when its batch is asked for; a worker died.
    """
    loader = DataLoader(
        _Guarded(source),
        sampler=keys,  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_to_the_run,
        # Otherwise it draws its seed from the global generator, and a run would depend on the number of workers.
        generator=torch.Generator(),
    )
    batches = _start(loader)
    died = None
    try:
        while died is None:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # A batch is fetched from the memory of the worker that made it; one that is dead cannot hand it over.
                if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                    raise
                died = str(error).rstrip(". ") or "no answer"
                continue
            if isinstance(batch, MtkdError):
                raise batch
            yield batch
    finally:
        # A traceback that holds this frame, or the loader's, would keep the other workers waiting.
        del batches, loader
    raise MtkdError(
        f"A process that makes training batches died ({died}). Memory ran out, shared memory (/dev/shm) is too small, "
        "or a file could not be read; a smaller num_worker_per_gpu needs less memory, and 0 makes the batches in the "
        "run's own process."
    )


class _Guarded(Dataset):
    """Hands errors that a user can mend over as values: the loader would wrap them in tracebacks."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.source[key]
        except MtkdError as error:
            return error


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """`iter(loader)`, without its signal handler, which raises the death of a worker anywhere in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    kept = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    batches = iter(loader)
    if kept is not None:
        signal.signal(signal.SIGCHLD, kept)
    return batches


def _leave_interrupts_to_the_run(_: int) -> None:
    # Ctrl-C reaches every process of the terminal, and a scheduler's SIGTERM every process of the job; workers must go
    # on until the run has saved. They exit when the loader closes; the alarm is for a run that died without closing it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
