"""mtkd: knowledge distillation for image super-resolution.

Several pretrained teachers, a DCT-Swin fusion network, a compact student, a wavelet loss (MTKD, Jiang et al.,
ECCV 2024), and the methods it must be compared with, in one trainer. Read `docs/architecture.md` first, then
`mtkd/catalog.py`, which lists everything that exists.
"""

from typing import Any

__version__ = "0.1.0"

_LATE = {"distill": "mtkd.distilling.run"}
"""Name -> the module that has it: `import mtkd` loads none of them."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'mtkd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
