"""Devices: which one, in which precision, and how torch's backends are set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from mtkd.contracts import MtkdError

Net = TypeVar("Net", bound=nn.Module)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Reduced precisions by the names of option files; "fp32" is none of them."""


def set_backends(*, tf32: bool = True, deterministic: bool = False, sizes_vary: bool = False) -> None:
    """Set torch's backends, before any network runs. The defaults are those of option files.

    Args:
        tf32: products of float32 matrices and convolutions may use TF32 on CUDA.
        deterministic: take deterministic kernels where there are any.
        sizes_vary: images come in many sizes, on each of which cuDNN's benchmark would try all its algorithms.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic and not sizes_vary
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within the block float32 is computed in float32 on `device`: no autocast, no TF32.

    TF32 keeps 10 bits: LPIPS on a GPU would be off by 3e-4 of its value, and depend on how the training is set.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def choose_device(num_gpu: int | Literal["auto"], local_rank: int = 0) -> torch.device:
    """The CUDA device of process `local_rank` on this machine; the CPU where there is none or `num_gpu` is 0."""
    if not torch.cuda.is_available() or num_gpu == 0:
        return torch.device("cpu")
    # slurm may show each process only its own device.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def named_device(name: str | torch.device) -> torch.device:
    """The device that a user names: "cpu", "cuda", "cuda:1", ...; a CUDA device has its index.

    Raises:
        MtkdError: torch has no device of that name, or this machine has none.
    """
    try:
        device = torch.device(name)
        if device.type != "cuda":
            # torch accepts names of devices that this machine lacks, and `meta`, which holds no values.
            torch.ones(1, device=device).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise MtkdError(f"There is no device {name} here. Use cpu, cuda or cuda:N.") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise MtkdError(f"There is no device {name}: torch sees {count} CUDA devices here.")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def usual_device() -> torch.device:
    """The device of a command that was given none: CUDA where there is any, else the CPU."""
    return named_device("cuda" if torch.cuda.is_available() else "cpu")


def move(net: Net, device: torch.device, memory_format: torch.memory_format) -> Net:
    """`net`, moved in place to `device`, its 4-D parameters and buffers laid out as `memory_format` says."""
    return net.to(device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context for `precision` "fp32", "bf16" or "fp16" on `device`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
