"""A random AlexNet under torchvision's names: what LPIPS is computed with needs no real weights."""

from __future__ import annotations

from pathlib import Path

import torch

from mtkd.metrics.lpips import ALEXNET_FILE

SHAPES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Index in `features` -> output channels, input channels and side of a convolution."""


def save_random_alexnet(folder: Path) -> Path:
    """The file of its convolutions, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i, (out, into, side) in SHAPES.items():
        state[f"features.{i}.weight"] = (
            torch.randn(out, into, side, side, generator=generator) / (into * side**2) ** 0.5
        )
        state[f"features.{i}.bias"] = 0.1 * torch.randn(out, generator=generator)
    torch.save(state, folder / ALEXNET_FILE)
    return folder / ALEXNET_FILE
