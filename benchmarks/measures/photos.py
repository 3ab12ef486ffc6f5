"""Training folders of real photographs in any number and size, for measurements that read files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtkd.data.images import read_image, write_image
from mtkd.data.resize import bicubic_lq
from mtkd.runtime import shipped

_CELL = 256
"""Side of the pieces of a mosaic, in pixels; no photograph is smaller."""


def pairs(folder: Path, count: int, size: tuple[int, int], scale: int) -> tuple[Path, Path]:
    """Write `count` PNG pairs into `folder` and return the folders of gt and of lq.

    Each gt is a mosaic, at their own resolution, of pieces of the colour photographs that scikit-image ships; DIV2K's
    size is (1356, 2040). lq is MATLAB's bicubic of it, under the same name. What is drawn is the same in every call.

    Args:
        size: (height, width) of gt, multiples of `scale`.

    Raises:
        MtkdError: scikit-image is missing.
    """
    gt_folder, lq_folder = folder / f"gt_{size[0]}x{size[1]}", folder / f"lq_{size[0]}x{size[1]}_x{scale}"
    photos = colour_photographs()
    for i in range(count):
        gt = mosaic(photos, size, np.random.default_rng(i))
        write_image(gt_folder / f"{i:04d}.png", gt)
        write_image(lq_folder / f"{i:04d}.png", bicubic_lq(gt, scale))
    return gt_folder, lq_folder


def colour_photographs() -> list[NDArray[np.uint8]]:
    """The photographs of the demo that are in colour: grey ones would make smaller files than a data set's."""
    listed = shipped.file("datasets/demo/train_photographs.txt").read_text(encoding="utf-8").splitlines()
    images = [read_image(shipped.photographs() / line.split()[0]) for line in listed if line.strip()]
    return [image for image in images if (image[..., 0] != image[..., 1]).any()]


def mosaic(photos: list[NDArray[np.uint8]], size: tuple[int, int], random: np.random.Generator) -> NDArray[np.uint8]:
    """Image of `size` (height, width) from pieces of `photos`, drawn with `random`."""
    height, width = size
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _CELL):
        for left in range(0, width, _CELL):
            rows, columns = min(_CELL, height - top), min(_CELL, width - left)
            photo = photos[random.integers(len(photos))]
            y = random.integers(photo.shape[0] - rows + 1)
            x = random.integers(photo.shape[1] - columns + 1)
            canvas[top : top + rows, left : left + columns] = photo[y : y + rows, x : x + columns]
    return canvas
