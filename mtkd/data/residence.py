"""Where decoded training images stay: on the device, in memory, or on the disk when they fit into neither."""

from __future__ import annotations

from typing import Literal

import torch

from mtkd.runtime.memory import available_memory

Residence = Literal["device", "ram", "disk"]


def choose_residence(nbytes: int, device: torch.device | str) -> Residence:
    """ "device" when `nbytes` of images take at most half of the CUDA device's free memory, "ram" when they take at
    most three quarters of `available_memory`, else "disk".
    """
    device = torch.device(device)
    if device.type == "cuda" and nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
        return "device"
    return "ram" if nbytes <= available_memory() * 3 // 4 else "disk"
