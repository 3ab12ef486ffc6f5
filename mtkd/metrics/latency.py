"""Cost of a network as it runs on this machine: time and memory for one image of the published size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.metrics.complexity import published_lq_size
from mtkd.runtime.environment import device_name
from mtkd.runtime.memory import resident_peak
from mtkd.runtime.modes import deployed, evaluating

Context = Callable[[], AbstractContextManager[Any]]

ALLOCATED = "weights, input, and torch's allocations during the forward at their peak (torch.cuda.max_memory_allocated)"
RESIDENT = "weights, input, and growth of the process's resident memory during the forward at its peak (VmHWM)"
_MIB = 2**20
_LEAST_RUNS, _MOST_RUNS, _SECONDS = 3, 100, 2.0
_WARM_UPS = {"cuda": 5}


@dataclass(frozen=True)
class Latency:
    """Time of one image through a network, alone in its batch.

    Attributes:
        milliseconds: median of the runs.
        spread: milliseconds between their quartiles.
        runs: how many were timed.
    """

    milliseconds: float
    spread: float
    runs: int


@dataclass(frozen=True)
class RunningCost:
    """What one image of the published size costs on this machine, in a batch of its own.

    Attributes:
        latency: milliseconds, the median.
        spread: milliseconds between the quartiles of the runs.
        runs: how many were timed.
        memory: peak MiB; None where it cannot be measured.
        memory_is: what `memory` counts.
        lq: (height, width) of the input.
        device: its name.
        threads: of torch on the CPU.
    """

    latency: float
    spread: float
    runs: int
    memory: float | None
    memory_is: str
    lq: tuple[int, int]
    device: str
    threads: int

    def facts(self) -> dict[str, Any]:
        """The attributes, with their units, as results store them."""
        values = asdict(self)
        named = {"latency": "latency_ms", "spread": "latency_spread_ms", "memory": "memory_mib"}
        return {named.get(key, key): value for key, value in values.items()} | {"lq": list(self.lq)}


def running_cost(
    net: nn.Module, *, scale: int | None = None, device: torch.device | str = "cpu", autocast: Context = nullcontext
) -> RunningCost:
    """Latency and peak memory of `net`, as it is used, for one image of 1280x720 pixels (at x3 1272x720), which is
    what `complexity` counts.

    Args:
        net: (1, 3, h, w) -> image, on `device`, in the precision and memory format it is to run in.
        scale: by default `net.scale`.
        device: where `net` is.
        autocast: context of reduced precision.

    Raises:
        MtkdError: no scale is known. What `net` raises on such an image goes through.
    """
    scale = scale if scale is not None else getattr(net, "scale", None)
    if not isinstance(scale, int):
        raise MtkdError(f"{type(net).__name__} has no `scale`: give running_cost() one.")
    net, lq_hw, device = deployed(net), published_lq_size(scale), torch.device(device)
    time = latency(net, lq_hw, device, autocast=autocast)
    memory = peak_memory(net, lq_hw, device, autocast=autocast)
    return RunningCost(
        latency=time.milliseconds,
        spread=time.spread,
        runs=time.runs,
        memory=memory,
        memory_is=ALLOCATED if device.type == "cuda" else RESIDENT,
        lq=lq_hw,
        device=device_name(device),
        threads=torch.get_num_threads(),
    )


def latency(
    net: nn.Module,
    lq_hw: tuple[int, int],
    device: torch.device | str = "cpu",
    *,
    seconds: float = _SECONDS,
    autocast: Context = nullcontext,
) -> Latency:
    """Time from the start of a forward to its end, the median of repeated runs after warm-up.

    On CUDA between two events of the stream, each run alone on the device; else by the clock. Runs are repeated for
    `seconds`, 3 times at least and 100 at most, after one to warm up (5 on CUDA).

    Args:
        net: (1, 3, h, w) -> image, on `device`; it runs in eval mode, without gradients, and is unchanged afterwards.
        lq_hw: height and width of its input, random values in [0, 1], laid out as channels_last.
        device: where `net` is.
        seconds: for how long runs are repeated.
        autocast: context of reduced precision.
    """
    device = torch.device(device)
    with torch.no_grad(), evaluating(net), autocast():
        lq = _image(net, lq_hw, device)
        for _ in range(_WARM_UPS.get(device.type, 1)):
            net(lq)
        timed = _on_cuda if device.type == "cuda" else _by_the_clock
        times: list[float] = []
        while len(times) < _LEAST_RUNS or (sum(times) < 1000 * seconds and len(times) < _MOST_RUNS):
            times.append(timed(net, lq))
    first, third = np.percentile(times, (25, 75))
    return Latency(statistics.median(times), float(third - first), len(times))


def peak_memory(
    net: nn.Module, lq_hw: tuple[int, int], device: torch.device | str = "cpu", *, autocast: Context = nullcontext
) -> float | None:
    """MiB that one forward of `net` needs at its peak, with its weights and its input, without other networks.

    On CUDA what torch allocates (`torch.cuda.max_memory_allocated`); neither the CUDA context nor workspaces that stay
    after a first run count. On a CPU the growth of the process's resident memory, oneDNN's scratch included; None where
    the system has no counter for it. Call `latency` first, whose warm-up allocates what stays.

    Args:
        net, lq_hw, device, autocast: as for `latency`.
    """
    device = torch.device(device)
    held = sum(value.nbytes for value in (*net.parameters(), *net.buffers()))
    with torch.no_grad(), evaluating(net), autocast():
        lq = _image(net, lq_hw, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            net(lq)
            torch.cuda.synchronize(device)
            grown = torch.cuda.max_memory_allocated(device) - before
        elif device.type == "cpu":
            grown = resident_peak(lambda: net(lq))
        else:
            grown = None
    return None if grown is None else (held + lq.nbytes + grown) / _MIB


def _image(net: nn.Module, lq_hw: tuple[int, int], device: torch.device) -> Tensor:
    # Of a generator of its own: measuring must not move the random numbers of a training.
    channels = getattr(net, "image_channels", 3)  # 1 of a network of Y
    image = torch.rand(1, channels, *lq_hw, generator=torch.Generator().manual_seed(0))
    return image.to(device).contiguous(memory_format=torch.channels_last)


def _on_cuda(net: nn.Module, lq: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(lq.device):
        torch.cuda.synchronize()
        start.record()
        net(lq)
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end)


def _by_the_clock(net: nn.Module, lq: Tensor) -> float:
    began = time.perf_counter()
    net(lq)
    return 1000 * (time.perf_counter() - began)
