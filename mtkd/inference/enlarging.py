"""One photograph through a network: what goes in, what comes out, and how it is rounded."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.data.photo import Photo
from mtkd.data.resize import imresize
from mtkd.runtime.background import staged
from mtkd.runtime.device import named_device, usual_device
from mtkd.runtime.pixels import to_levels


def place(net: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where `net` runs: on `device`, without one on the GPU where there is one. A network that another library runs
    (`outside_torch`) has its images on the CPU.

    Raises:
        MtkdError: there is no such device, or `net` cannot run there.
    """
    if getattr(net, "outside_torch", False):
        if device is not None and named_device(device).type != "cpu":
            raise MtkdError(f"{type(net).__name__} runs on the CPU, and {device} is asked for. Leave the device out.")
        return torch.device("cpu")
    return usual_device() if device is None else named_device(device)


def stage(photo: Photo, device: torch.device) -> Tensor:
    """The colours of `photo` on the host, (H, W, 3), as `pixels.to_tensor` wants them: uint8, or float in [0, 1]."""
    pixels = photo.pixels
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.float32) / 65535
    elif pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
    return staged(pixels, device)


class Levels:
    """Rounds pieces of sr, float (N, 3, h, w), to the levels of `photo`: uint8, or int32 for 16 bits, in one channel
    where it is grey; floating point pixels are clamped to [0, 1] alone. `finite` covers all pieces together.
    """

    def __init__(self, photo: Photo) -> None:
        # Few operations of torch support uint16.
        kinds = {"uint8": (torch.uint8, 255, 1), "uint16": (torch.int32, 65535, 4)}
        self.dtype, self.most, self.nbytes = kinds.get(photo.pixels.dtype.name, (torch.float32, 0, 4))
        self.grey = photo.grey
        self._finite: Tensor | None = None

    @property
    def finite(self) -> Tensor:
        assert self._finite is not None
        return self._finite

    def __call__(self, sr: Tensor) -> Tensor:
        sr = sr.float()
        finite = sr.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        if self.grey:
            sr = sr.mean(1, keepdim=True)
        return to_levels(sr, self.most).to(self.dtype) if self.most else sr.clamp(0, 1)


def enlarged(photo: Photo, levels: Tensor, scale: int) -> Photo:
    """`photo` with the pixels `levels`, (H * scale, W * scale, 3 or 1) on the host, and its transparency enlarged by
    bicubic interpolation.
    """
    pixels = np.ascontiguousarray(levels.squeeze(-1).numpy(), dtype=photo.pixels.dtype)
    return replace(photo, pixels=pixels, alpha=None if photo.alpha is None else _enlarged_alpha(photo.alpha, scale))


def _enlarged_alpha(alpha: np.ndarray, scale: int) -> np.ndarray:
    if alpha.dtype in (np.uint8, np.uint16):
        return imresize(alpha, scale)
    return imresize(torch.from_numpy(alpha.astype(np.float32)), scale).clamp(0, 1).numpy().astype(alpha.dtype)


NOT_FINITE = "the network's output is not finite. In fp16 values above 65504 overflow: use bf16 or fp32."


@contextmanager
def naming(path: Path | str) -> Generator[None, None, None]:
    """Turn errors of a network into one that names the image."""
    try:
        yield
    except MtkdError as error:
        raise MtkdError(f"{path}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        reason = str(error) or "too little memory"
        raise MtkdError(f"{path}: the network failed on this image: {reason}") from error
