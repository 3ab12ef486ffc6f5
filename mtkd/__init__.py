"""mtkd: knowledge distillation for image super-resolution.

Several pretrained teachers, a DCT-Swin fusion network, a compact student, a wavelet loss (MTKD, Jiang et al.,
ECCV 2024), and the methods it must be compared with, in one trainer. Read `docs/architecture.md` first, then
`mtkd/catalog.py`, which lists everything that exists.

`import mtkd` alone loads nothing heavy: `load` and `distill` import what they need when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    import torch

    from mtkd.distilling.run import distill
    from mtkd.inference.upscaler import Upscaler

__version__ = "0.1.0"

__all__ = ["Upscaler", "__version__", "distill", "load"]

_LATE = {"Upscaler": "mtkd.inference.upscaler", "distill": "mtkd.distilling.run"}
"""Name -> the module that has it: `import mtkd` loads none of them."""


def load(
    source: str | os.PathLike[str], *, scale: int | None = None, device: str | torch.device | None = None
) -> Upscaler:
    """A network that upscales images, from whatever you have.

    Args:
        source: "tiny_x4" or another student that comes with mtkd, "zoo:NAME" (published weights), a .pth, .safetensors
            or .onnx file, the folder of a run, "hf:USER/NAME[@REVISION]" (Hugging Face, extra `hub`).
        scale: what it must enlarge by; None for any scale.
        device: where it runs, such as "cpu" or "cuda:1"; None for the GPU where there is one, else the CPU.

    Returns:
        An `Upscaler`: `net.upscale(image)` takes a path, a PIL image, an array or a tensor, and `net.scale`.

    Raises:
        mtkd.contracts.MtkdError: nothing has that name, or it cannot be used; the text says what to do.
    """
    from mtkd.inference.upscaler import load

    return load(source, scale=scale, device=device)


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
