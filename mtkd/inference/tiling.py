"""Run a network over an image piece by piece, with enough context that no seam shows."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtkd.contracts import MtkdError
from mtkd.data.kept import kept_inside
from mtkd.runtime.memory import free_memory, resident_peak
from mtkd.runtime.progress import Log

SMALL_IMAGE = 256 * 256
"""lq pixels that run at once without measuring memory, and up to which tiles are batched on a GPU."""
SMALLEST_TILE = 16
ALIGNMENTS = (16, 8, 1)
"""Tiles begin at multiples of the first that leaves room for a step, so that networks with windows of 16 or 8 see the
windows of the whole image. From `tile_size` 31 on that is 16, and from 15 on at least 8."""
FREE_SHARE = {"cuda": 0.7, "cpu": 0.25}
"""Share of the free memory, less the result, that a run may take. Other programs share the CPU's memory, and larger
tiles are no faster there."""
LARGEST_RUN = {"cuda": 16 << 30, "cpu": 4 << 30}
"""Bytes of a run, at most. Far above those of a GPU single feature maps pass 2**31 elements, which not every kernel
takes."""

UNKNOWN_COST = 32 << 10
"""Bytes for each lq pixel where they cannot be measured: those of 256 channels that are enlarged by 4."""

Finish = Callable[[Tensor], Tensor]
"""Conversion of each piece of sr before it is put into the result, for example to 8 bits: a quarter of the memory."""


def tiled(
    predict: Callable[[Tensor], Tensor],
    lq: Tensor,
    *,
    scale: int,
    tile_size: int,
    tile_pad: int,
    finish: Finish = lambda sr: sr,
) -> Tensor:
    """`predict(lq)` computed in tiles of about `tile_size` lq pixels, each seen with `tile_pad` pixels of context.

    Equal to `predict(lq)` when the receptive field of the network is at most `tile_pad`, and close to it otherwise. All
    tiles have one shape, at most `tile_size + 2 * tile_pad` a side with their context. An image of that size is one
    tile. On a GPU small tiles run in batches.

    Args:
        predict: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale). One that needs kept answers (`data.kept`) gets the
            whole image.
        lq: (N, 3, H, W) in [0, 1].
        finish: applied to each tile's part of the result, which has the dtype and channels that it gives.
    """
    check_tiles(tile_size, tile_pad)
    number, (height, width) = len(lq), lq.shape[-2:]
    rows, h = _windows(height, tile_size, tile_pad)
    columns, w = _windows(width, tile_size, tile_pad)
    if isinstance(predict, nn.Module) and kept_inside(predict):
        # Answers are kept of whole images, and cost no memory that tiles would save.
        return finish(predict(lq))
    if len(rows) == len(columns) == 1:
        return finish(predict(lq))
    windows = [(top, left) for top in rows for left in columns]
    at_once = max(SMALL_IMAGE // (h * w * number), 1) if lq.is_cuda else 1
    row_cuts, column_cuts = _cuts(rows, h, height), _cuts(columns, w, width)
    sr: Tensor | None = None
    for first in range(0, len(windows), at_once):
        batch = windows[first : first + at_once]
        pieces = predict(torch.cat([lq[..., top : top + h, left : left + w] for top, left in batch]))
        if sr is None:
            sample = finish(pieces[:1, :, :1, :1])
            # The layout of image files, so that writers need not copy the result.
            sr = torch.empty(
                (number, sample.shape[1], height * scale, width * scale),
                dtype=sample.dtype,
                device=sample.device,
                memory_format=torch.channels_last,
            )
        for (top, left), piece in zip(batch, pieces.split(number), strict=True):
            (y0, y1), (x0, x1) = row_cuts[top], column_cuts[left]
            sr[..., y0 * scale : y1 * scale, x0 * scale : x1 * scale] = finish(
                piece[..., (y0 - top) * scale : (y1 - top) * scale, (x0 - left) * scale : (x1 - left) * scale]
            )
    assert sr is not None
    return sr


def check_tiles(tile_size: int, tile_pad: int) -> None:
    """Raise an MtkdError unless `tile_size` and `tile_pad` are valid sizes of tiles in pixels."""
    if tile_size < 1 or tile_pad < 0:
        raise MtkdError(f"Tiles need tile_size >= 1 and tile_pad >= 0, found {tile_size} and {tile_pad}.")


def _windows(length: int, tile: int, pad: int) -> tuple[list[int], int]:
    """Starts and common length of the windows that cover `length`; neighbours share at least 2 * `pad`."""
    limit = tile + 2 * pad
    if length <= limit:
        return [0], length
    # The last window ends with the image and starts aligned as well.
    windows = ((limit - (limit - length) % align, align) for align in ALIGNMENTS)
    window, align = next((window, align) for window, align in windows if window - 2 * pad >= align)
    count = 1 + math.ceil((length - window) / ((window - 2 * pad) // align * align))

    def largest_step(window: int) -> int:
        return math.ceil((length - window) // align / (count - 1)) * align

    while largest_step(window - align) <= window - align - 2 * pad:
        window -= align
    return [i * ((length - window) // align) // (count - 1) * align for i in range(count)], window


def _cuts(starts: list[int], window: int, length: int) -> dict[int, tuple[int, int]]:
    """Start of each window -> the pixels that are taken from it: up to the middle of what it shares with neighbours."""
    middles = [(b + a + window) // 2 for a, b in zip(starts, starts[1:], strict=False)]
    return {start: cut for start, *cut in zip(starts, [0, *middles], [*middles, length], strict=True)}  # pyright: ignore[reportReturnType]


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


class FittingTiles:
    """`net` on whole images where they fit into the free memory of their device, else in the largest tiles that do.

    When a GPU still runs out of memory, tiles are halved from then on, and `log` gets a line.

    Args:
        net: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale), in eval mode, on the device of the images to come.
        tile_size: lq pixels of a tile; None for `tile_size` of each image.
        tile_pad: lq pixels of context on each side of a tile.
        x8: each tile is the mean of its eight flips and rotations (`self_ensemble`).

    Raises:
        MtkdError: the sizes are not valid.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        scale: int,
        tile_size: int | None = None,
        tile_pad: int = 32,
        x8: bool = False,
        log: Log = print,
    ) -> None:
        check_tiles(1 if tile_size is None else tile_size, tile_pad)
        self._run, self._x8 = partial(self_ensemble, net) if x8 else net, x8
        self.net, self.scale, self.tile_pad, self.log = net, scale, tile_pad, log
        self._given = tile_size
        self._most: int | None = None

    def __call__(self, lq: Tensor, finish: Finish = lambda sr: sr, *, value_bytes: int = 4) -> Tensor:
        """`net(lq)`, each piece converted by `finish` (see `tiled`), which leaves `value_bytes` bytes per value."""
        size = self._given
        if size is None:
            size = tile_size(
                self.net, lq, scale=self.scale, tile_pad=self.tile_pad, x8=self._x8, value_bytes=value_bytes
            )
        if self._most is not None:
            size = min(size or self._most, self._most)
        while True:
            try:
                if size is None:
                    return finish(self._run(lq))
                return tiled(self._run, lq, scale=self.scale, tile_size=size, tile_pad=self.tile_pad, finish=finish)
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            # Outside the handler: inside, the traceback still holds the tensors of the failed call.
            torch.cuda.empty_cache()
            size = self._most = (size or max(lq.shape[-2:])) // 2
            if size < SMALLEST_TILE:
                raise MtkdError(f"Not even a tile of {2 * size} lq pixels fits into the device's memory: {reason}")
            self.log(f"The device ran out of memory; going on in tiles of {size} lq pixels.")


@torch.no_grad()
def tile_size(
    net: nn.Module, lq: Tensor, *, scale: int, tile_pad: int = 32, x8: bool = False, value_bytes: int = 4
) -> int | None:
    """The largest tile of `lq` whose run fits into its share of memory, or None when the whole image does.

    That share is `FREE_SHARE` of what is free on its device, and `LARGEST_RUN` at most. The memory of a run is
    proportional to the pixels; a small run measures the factor, once for each network. The tile is meant for `tiled`,
    with the same `tile_pad`. The result is not cached: free memory changes from image to image.

    Args:
        net: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale), in eval mode, on the device of `lq`. One that
            is `outside_torch` takes main memory that torch does not see: the growth of the process is measured.
        lq: (N, 3, H, W) as `net` will get it, under the autocast it will get it under.
        x8: `self_ensemble` of `net` is run, which holds its mean, one output, and that output turned.
        value_bytes: of a value of the result.

    Raises:
        MtkdError: not even the smallest tile fits.
    """
    number, channels, height, width = lq.shape
    if getattr(net, "outside_torch", False):
        # Before its first image: later it may reuse memory that it kept, and seem to take less.
        _bytes_per_pixel(net, lq)
    if number * height * width <= SMALL_IMAGE:
        return None
    per_pixel = number * (_bytes_per_pixel(net, lq) + (3 * channels * scale**2 * 4 if x8 else 0))
    kind = "cuda" if lq.is_cuda else "cpu"
    free = free_memory(lq.device)
    if height * width * per_pixel <= min(FREE_SHARE[kind] * free, LARGEST_RUN[kind]):
        return None
    # The result lies in memory beside the run of a tile.
    free = max(free - number * channels * height * width * scale**2 * value_bytes, 0)
    size = math.isqrt(int(min(FREE_SHARE[kind] * free, LARGEST_RUN[kind]) / per_pixel)) - 2 * tile_pad
    if size < SMALLEST_TILE:
        smallest = (SMALLEST_TILE + 2 * tile_pad) ** 2 * per_pixel
        raise MtkdError(
            f"{type(net).__name__} takes {per_pixel / 1024:.0f} KiB for every lq pixel: the smallest tile needs "
            f"{smallest / 2**20:.0f} MiB beside the {height * scale}x{width * scale} result, and too little memory is "
            f"free on {lq.device}. Free some, or cut the image."
        )
    return size


_COSTS: WeakKeyDictionary[nn.Module, dict[Any, float]] = WeakKeyDictionary()


def _bytes_per_pixel(net: nn.Module, lq: Tensor) -> float:
    """Memory that a run of `net` takes at its peak for each lq pixel of one image."""
    setting = (lq.device, lq.dtype, torch.is_autocast_enabled(lq.device.type))
    known = _COSTS.setdefault(net, {})
    if setting not in known:
        on_gpu = lq.device.type == "cuda"
        outside = getattr(net, "outside_torch", False)
        side = 128 if on_gpu or outside else 32
        probe = torch.rand((1, lq.shape[1], side, side), device=lq.device, dtype=lq.dtype)
        # Not net(): the tensors of a compiled network cannot be counted, and it takes no more memory.
        peak = _peak_outside if outside else _peak_on_gpu if on_gpu else _peak_on_cpu
        known[setting] = peak(net.forward, probe) / side**2
    return known[setting]


def _peak_on_gpu(run: Callable[[Tensor], Tensor], probe: Tensor) -> int:
    run(probe)  # the first call allocates memory that libraries keep
    before = torch.cuda.memory_allocated(probe.device)
    torch.cuda.reset_peak_memory_stats(probe.device)
    run(probe)
    return torch.cuda.max_memory_allocated(probe.device) - before


def _peak_on_cpu(run: Callable[[Tensor], Tensor], probe: Tensor) -> int:
    with _LiveTensors() as live:
        run(probe)
    # Kernels copy tensors into layouts of their own: up to 1.25 times the tensors were measured in fp32, and 4.3 times
    # where a CPU without bf16 instructions unfolds its convolutions.
    return int(live.peak * (5 if torch.is_autocast_enabled("cpu") else 1.5))


def _peak_outside(run: Callable[[Tensor], Tensor], probe: Tensor) -> int:
    grown = resident_peak(lambda: run(probe))
    # What was kept of earlier runs is not counted, and libraries keep memory of their own.
    return int(1.5 * grown) if grown else probe.shape[-2] * probe.shape[-1] * UNKNOWN_COST


class _LiveTensors(TorchDispatchMode):
    """Bytes of the tensors made inside the block that live at once, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
