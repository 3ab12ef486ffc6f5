"""Pictures of a report: where to cut them, and how a page carries them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mtkd.contracts import MtkdError
from mtkd.data.images import encode
from mtkd.metrics.color import y_channel
from mtkd.report.content import Picture

LARGEST = 256
"""Pixels of a side that `cropped` leaves by default: eight pictures of fifteen rows make a page of about 10 MB."""


def luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y of BT.601, (H, W) float64 in [16, 235], of (H, W, 3) uint8 RGB: the channel of every PSNR-Y."""
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return y_channel(levels)[0, 0].double().numpy()


def choose_crop(answers: Sequence[NDArray[np.uint8]], size: int = LARGEST) -> tuple[int, int]:
    """(top, left) of the `size` x `size` part in which `answers` to one image differ most.

    Most of a photograph is flat, where all networks answer alike; a cut from the middle would show that they are equal.
    The part with the largest variance of Y between the answers, summed over its pixels, is the one where a reader can
    see what the methods do. It is therefore no sample of the image: scores of a crop are not those of the image, and
    ground truth plays no part in the choice, so that it favours no row.

    Args:
        answers: (H, W, 3) uint8 RGB, all of one size.
        size: pixels of a side. A side of the image that is shorter is kept whole.

    Returns:
        The topmost and leftmost of equally good places; (0, 0) for one answer, or none.

    Raises:
        MtkdError: the answers have different sizes.
    """
    _check_sizes(answers)
    if len(answers) < 2:
        return 0, 0
    spread = np.var([luma(answer) for answer in answers], axis=0)
    height, width = (min(size, side) for side in spread.shape)
    sums = np.pad(spread, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    # Rounding of the sums must not choose between places that are equal.
    best = int((windows >= windows.max() - 1e-9 * max(1.0, sums[-1, -1])).argmax())
    top, left = np.unravel_index(best, windows.shape)
    return int(top), int(left)


def cropped(picture: Picture, size: int = LARGEST) -> Picture:
    """The part of at most `size` x `size` pixels of `picture` that `choose_crop` finds among its answers.

    Where there are fewer than two answers, the bicubic image is one more. A picture that is small enough stays whole.

    Raises:
        MtkdError: its layers have different sizes.
    """
    height, width = picture.gt.shape[:2]
    answers = list(picture.answers.values())
    _check_sizes([picture.gt, picture.bicubic, *answers])
    if height <= size and width <= size:
        return picture
    top, left = choose_crop(answers if len(answers) > 1 else [*answers, picture.bicubic], size)
    part = np.s_[top : top + size, left : left + size]
    before = picture.crop or (0, 0)
    return replace(
        picture,
        gt=picture.gt[part],
        bicubic=picture.bicubic[part],
        answers={row: answer[part] for row, answer in picture.answers.items()},
        crop=(before[0] + top, before[1] + left),
    )


def data_uri(image: NDArray[np.uint8]) -> str:
    """Lossless WebP of an (H, W, 3) uint8 RGB image, as a `data:` address.

    Raises:
        MtkdError: a side is longer than 16,383 pixels, the most that WebP holds.
    """
    return "data:image/webp;base64," + base64.b64encode(encode(Path("picture.webp"), image)).decode("ascii")


def _check_sizes(images: Sequence[NDArray[np.uint8]]) -> None:
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted({image.shape[:2] for image in images}))
        raise MtkdError(f"The layers of a picture lie over each other, and these have different sizes: {sizes}.")
