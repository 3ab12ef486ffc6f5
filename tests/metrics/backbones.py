"""Random AlexNet and VGG16 under torchvision's names: what learned metrics are computed with needs no real weights."""

from __future__ import annotations

from pathlib import Path

import torch

from mtkd.metrics.dists import VGG16_FILE
from mtkd.metrics.lpips import ALEXNET_FILE

ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Index in `features` -> output channels, input channels and side of a convolution."""

VGG16 = {
    0: (64, 3, 3), 2: (64, 64, 3),
    5: (128, 64, 3), 7: (128, 128, 3),
    10: (256, 128, 3), 12: (256, 256, 3), 14: (256, 256, 3),
    17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3),
    24: (512, 512, 3), 26: (512, 512, 3), 28: (512, 512, 3),
}  # fmt: skip


def save_random_alexnet(folder: Path) -> Path:
    """The file of its convolutions, the same at every call."""
    return _save(ALEXNET, folder / ALEXNET_FILE)


def save_random_vgg16(folder: Path) -> Path:
    """The file of its convolutions, the same at every call."""
    return _save(VGG16, folder / VGG16_FILE)


def _save(convolutions: dict[int, tuple[int, int, int]], path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i, (out, into, side) in convolutions.items():
        # He's: the maps of a deep network would vanish else.
        gain = 2**0.5 if convolutions is VGG16 else 1
        state[f"features.{i}.weight"] = (
            gain * torch.randn(out, into, side, side, generator=generator) / (into * side**2) ** 0.5
        )
        state[f"features.{i}.bias"] = 0.1 * torch.randn(out, generator=generator)
    torch.save(state, path)
    return path
