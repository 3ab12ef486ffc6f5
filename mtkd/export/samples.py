"""Photos that exported networks are tried, calibrated and measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtkd.data.images import list_images, read_image
from mtkd.data.resize import bicubic_lq
from mtkd.runtime import shipped
from mtkd.runtime.pixels import to_tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZES = ((37, 53), (61, 45), (29, 71))
"""Height and width of what every file is tried on: odd, no multiples of a window, none the size of an export."""
LARGEST_SIDE = 480
"""Of a gt that the cost of a precision is measured on."""
MOST_PHOTOS = 16
"""Photos that are read of a folder, spread over it."""


@dataclass(frozen=True)
class Photos:
    """Photos of the user, or the five of the demo.

    Attributes:
        folder: what was named, None for the demo's.
    """

    folder: Path | None

    @cached_property
    def files(self) -> list[Path]:
        """At most `MOST_PHOTOS` files, evenly spread over the folder.

        Raises:
            MtkdError: there is no folder, or no image in it.
        """
        folder = shipped.file("datasets/demo/test") if self.folder is None else self.folder
        found = list_images(folder)
        step = max(1, len(found) // MOST_PHOTOS)
        return found[::step][:MOST_PHOTOS]

    def crops(self, channels: int) -> list[Tensor]:
        """A photo cut to each of `SIZES`: (1, channels, h, w) in [0, 1]. A small photo is repeated to the size.

        More than three channels are neighbouring crops, as unlike as the answers of teachers at least.
        """
        files = self.files
        return [_cut(read_image(files[i % len(files)]), size, channels) for i, size in enumerate(SIZES)]

    def split(self) -> tuple[list[Path], list[Path]]:
        """Files to calibrate with, and others to measure on, in turns; a single one serves twice."""
        return self.files[::2], self.files[1::2] or self.files


def pairs(files: Sequence[Path], scale: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(lq, gt) of each file, (1, 3, h, w) and (1, 3, h * scale, w * scale): its middle, made small by MATLAB's bicubic.

    Photos that are too small for that are left out.
    """
    for file in files:
        gt = read_image(file)
        h, w = (min(side, LARGEST_SIDE) // scale * scale for side in gt.shape[:2])
        if min(h, w) < 8 * scale:
            continue
        top, left = (gt.shape[0] - h) // 2, (gt.shape[1] - w) // 2
        gt = gt[top : top + h, left : left + w]
        yield to_tensor(bicubic_lq(gt, scale)), to_tensor(gt)


def _cut(image: NDArray[np.uint8], size: tuple[int, int], channels: int) -> Tensor:
    x = to_tensor(image)
    room = 2 * (channels // 3 - 1)
    repeats = [-(-(side + room) // have) for side, have in zip(size, x.shape[-2:], strict=True)]
    x = x.repeat(1, 1, *repeats)
    top, left = ((have - side - room) // 2 for side, have in zip(size, x.shape[-2:], strict=True))
    return torch.cat(
        [x[:, :, top + d : top + d + size[0], left + d : left + d + size[1]] for d in range(0, room + 1, 2)], 1
    )
