"""How much memory this process can still get, of the machine and of a device, and how much a call takes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def available_memory() -> int:
    """Bytes of memory that are free or hold what can be read again, at most what the process's cgroups allow it."""
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_rooms()]
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                bounds.append(int(line.split()[1]) * 1024)
    return min(bounds)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still get on `device`; for a CPU, of main memory."""
    if device.type != "cuda":
        return available_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _cgroup_rooms(listing: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What the process's memory cgroup and those around it, of version 2 and version 1, still allow."""
    found = []
    with suppress(OSError):
        for line in listing.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = mount / "memory" if controllers else mount
            names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
            folder = root / path.strip("/")
            # Inside a container the path may be the host's; then only the mount itself exists.
            for place in {root, folder, *folder.parents}:
                with suppress(OSError, ValueError):
                    limit, used = (int((place / f"memory.{name}").read_text(encoding="ascii")) for name in names)
                    found.append(max(limit - used + _droppable(place), 0))
    return found


def _droppable(cgroup: Path) -> int:
    """Bytes of files in the cache of `cgroup` that the system may drop, which count as used."""
    with suppress(OSError):
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
        # Version 1 lists the cgroup's own bytes and the sum with its children; the sum is the larger.
        return max((int(line.split()[1]) for line in lines if "inactive_file" in line), default=0)
    return 0


def resident_peak(call: Callable[[], object]) -> int | None:
    """Bytes by which `call` raised the resident memory of this process at its peak; None where the system has no such
    counter (it is Linux's VmHWM).

    All of the process counts, whatever allocated it: other threads must be quiet. Memory that was free inside the
    process is handed back to the system first, or it would be reused uncounted.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
    try:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM to what is resident now
    except (OSError, KeyError):
        return None
    call()
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024
