"""Threads that read ahead of the device and write behind it, with few images in memory at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = min(4, os.cpu_count() or 1)
"""Threads that decode, and threads that encode, beside the network."""


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = WORKERS, waiting: int = WORKERS + 1
) -> Generator[Result, None, None]:
    """`function(item)` for every item, in order, computed by threads while the caller works on earlier ones.

    At most `waiting` results are ready or being made. An error of `function` is raised when its item is due. Close the
    iterator (`contextlib.closing`) if the loop over it may end early.
    """
    left = iter(items)
    pool = ThreadPoolExecutor(workers)
    try:
        results = deque(pool.submit(function, item) for item in islice(left, waiting))
        while results:
            result = results.popleft().result()
            results.extend(pool.submit(function, item) for item in islice(left, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


class BackgroundCalls:
    """Calls made by threads behind the caller: `with BackgroundCalls() as calls: calls.submit(function, *arguments)`.

    `submit` waits while `waiting` earlier calls are unfinished. All calls have ended when the block is left, also by an
    error. An error of a call is raised by a later `submit` or at the end, the earliest first, and before an error that
    the block itself raised after that call.
    """

    def __init__(self, *, workers: int = WORKERS, waiting: int = WORKERS + 1) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self._waiting = waiting
        self._calls: deque[Future[Any]] = deque()
        self._raised = False

    def submit(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call `function(*arguments)` on a thread."""
        while len(self._calls) >= self._waiting or (self._calls and self._calls[0].done()):
            self._take()
        self._calls.append(self._pool.submit(function, *arguments))

    def settle(self) -> None:
        """Wait until all calls have ended."""
        while self._calls:
            self._take()

    def __enter__(self) -> BackgroundCalls:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None or (isinstance(error, Exception) and not self._raised):
            self.settle()

    def _take(self) -> None:
        try:
            self._calls.popleft().result()
        except BaseException:
            self._raised = True
            raise


def staged(image: np.ndarray, device: torch.device | str) -> Tensor:
    """An array as a host tensor, in pinned memory when `device` is a GPU: it is then copied there without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(image))
    return tensor.pin_memory() if torch.device(device).type == "cuda" else tensor


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying `tensor` to the host, and return what waits for the copy and gives it, from any thread."""
    if not tensor.is_cuda:
        return lambda: tensor
    tensor = tensor.contiguous()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
