"""Peak memory of a call, and the memory that a process tree holds."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch

GIB = 2**30


def peak(call: Callable[[], object], device: str) -> float:
    """GiB that `call` needs at its peak beside what was held before: of the device, or on the CPU of this process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / GIB
    # What was freed and not given back to the system would be reused and not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    # Linux: 5 resets the high-water mark.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0) / GIB


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def of_processes() -> float:
    """GiB that this process and its children hold now, shared pages counted once, files in the page cache left out."""
    pids = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        pids += [int(pid) for pid in (task / "children").read_text().split()]
    return sum(_held(pid) for pid in pids) / GIB


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        # It has ended meanwhile.
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
