"""What is stored beside a measured number: hardware, versions and commit."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """Hardware, versions and git commit.

    Args:
        device: what the numbers come from; None: the GPU where there is one, else the CPU.
    """
    import importlib.metadata

    versions = {"python": platform.python_version()}
    for package in ("mtkd", "torch", "torchvision", "numpy", "basicsr", "pytorch-wavelets", "lightning-fabric"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        "cpu_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions,
        "commit": _commit(),
    }


def device_name(device: torch.device | str) -> str:
    """The name that the maker gives a CUDA device or the CPU; of other devices torch's."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else str(device)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout the package runs from, with `-dirty` when it differs; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
