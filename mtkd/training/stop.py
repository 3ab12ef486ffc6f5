"""Stop a run between two iterations, on all ranks after the same one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed


class StopRequest:
    """A request to stop the run. A request to one rank stops all, after the same iteration.

    Attributes:
        asked: number of the signal that was received, 0 for none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._group = distributed.new_group(backend="gloo") if distributed.is_initialized() else None

    def agreed(self) -> bool:
        """Whether any rank received a signal: the same answer on all. Every rank calls it once per iteration."""
        if self._group is not None:
            # A group on the CPU, so that this does not wait for the device.
            flag = torch.tensor([self.asked])
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group)
            self.asked = int(flag.item())
        return bool(self.asked)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
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
        # Only the main thread receives signals.
        pass
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
