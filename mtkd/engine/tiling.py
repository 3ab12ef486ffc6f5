"""Run a network over an image piece by piece, with enough context that no seam shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtkd.contracts import MtkdError


def tiled(predict: Callable[[Tensor], Tensor], lq: Tensor, *, scale: int, tile_size: int, tile_pad: int) -> Tensor:
    """`predict(lq)` computed in tiles of `tile_size` lq pixels, each seen with `tile_pad` pixels of real context.

    Equal to `predict(lq)` when the receptive field of the network is at most `tile_pad`, and close to it otherwise.

    Args:
        predict: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale).
        lq: (N, 3, H, W) in [0, 1].
    """
    if tile_size < 1 or tile_pad < 0:
        raise MtkdError(f"Tiles need tile_size >= 1 and tile_pad >= 0, not {tile_size} and {tile_pad}.")
    height, width = lq.shape[-2:]
    if height <= tile_size and width <= tile_size:
        return predict(lq)
    sr: Tensor | None = None
    for top in range(0, height, tile_size):
        for left in range(0, width, tile_size):
            bottom, right = min(top + tile_size, height), min(left + tile_size, width)
            y0, x0 = max(top - tile_pad, 0), max(left - tile_pad, 0)
            y1, x1 = min(bottom + tile_pad, height), min(right + tile_pad, width)
            piece = predict(lq[..., y0:y1, x0:x1])
            if sr is None:
                sr = piece.new_empty((*lq.shape[:-3], piece.shape[-3], height * scale, width * scale))
            inner_y, inner_x = (top - y0) * scale, (left - x0) * scale
            sr[..., top * scale : bottom * scale, left * scale : right * scale] = piece[
                ..., inner_y : inner_y + (bottom - top) * scale, inner_x : inner_x + (right - left) * scale
            ]
    assert sr is not None
    return sr


def self_ensemble(predict: Callable[[Tensor], Tensor], lq: Tensor) -> Tensor:
    """Mean of `predict` over the eight flips and rotations of `lq`, each undone on its output (EDSR's "+")."""
    total: Tensor | None = None
    for transpose in (False, True):
        turned = lq.transpose(-1, -2) if transpose else lq
        for dims in ((), (-1,), (-2,), (-2, -1)):
            sr = torch.flip(predict(torch.flip(turned, dims)), dims)
            sr = sr.transpose(-1, -2) if transpose else sr
            total = sr if total is None else total + sr
    assert total is not None
    return total / 8
