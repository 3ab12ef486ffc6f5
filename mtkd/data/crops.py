"""`Crops`: which crops the batch of an iteration holds, and how the CPU cuts them from memory-mapped stores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkd.data.store import ImageStore

_PERMUTATION, _CROPS = 0, 1


@dataclass(frozen=True)
class Draw:
    """Image, position and orientation of each sample of a batch, all (batch_size,).

    Attributes:
        lq_side: of the crops, in lq pixels.
        index: of the image in the stores.
        top, left: first row and column of the crop, in lq pixels.
        hflip, vflip, transpose: mirror left-right, then top-bottom, then exchange rows and columns.
    """

    lq_side: int
    index: NDArray[np.int64]
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    hflip: NDArray[np.bool_]
    vflip: NDArray[np.bool_]
    transpose: NDArray[np.bool_]


class Crops:
    """Random crops with BasicSR's augmentations, a pure function of (stores, seed, k, rank) and the arguments.

    Random numbers are uniform doubles of numpy's Philox generator, keyed through `SeedSequence` by (seed, k, rank) for
    crops and (seed, pass) for the order of the images.

    A pickled copy holds the stores' paths and opens them again, so that worker processes share the pages of one map.

    Args:
        stores: of the same images; the first is lq.
        factors: side of each store's images / side of lq.
        batch_size: samples per rank.
        use_hflip: mirror left-right with probability 1/2.
        use_rot: mirror top-bottom with probability 1/2 and transpose with probability 1/2, independently.
        seed: of the run, the same on all ranks.
        rank, world_size: this process among all that train together.
        memory_format: of the crops.
    """

    def __init__(
        self,
        stores: Sequence[ImageStore],
        factors: Sequence[int],
        *,
        batch_size: int,
        use_hflip: bool,
        use_rot: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.stores, self.factors = list(stores), list(factors)
        self.batch_size, self.use_hflip, self.use_rot = batch_size, use_hflip, use_rot
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.memory_format = memory_format
        self.lq_sizes = np.array(stores[0].sizes, dtype=np.int64)
        self._order = PassOrder(seed, len(self.lq_sizes))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stores": [store.path for store in self.stores]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, stores=[ImageStore(path) for path in state["stores"]])

    def draw(self, k: int, lq_side: int) -> Draw:
        """What batch `k` holds when lq crops are `lq_side` pixels wide and high."""
        position = (k * self.world_size + self.rank) * self.batch_size + np.arange(self.batch_size)
        index = np.array([self._order(p) for p in position.tolist()], dtype=np.int64)
        chance = _random(self.seed, _CROPS, k, self.rank).random((5, self.batch_size))
        room = self.lq_sizes[index] - lq_side + 1
        return Draw(
            lq_side=lq_side,
            index=index,
            top=(chance[3] * room[:, 0]).astype(np.int64),
            left=(chance[4] * room[:, 1]).astype(np.int64),
            hflip=(chance[0] < 0.5) & self.use_hflip,
            vflip=(chance[1] < 0.5) & self.use_rot,
            transpose=(chance[2] < 0.5) & self.use_rot,
        )

    def cut(self, draw: Draw, *, pin_memory: bool = False) -> tuple[Tensor, ...]:
        """The crops of `draw`, per store (batch_size, 3, side, side) of its dtype on the CPU."""
        return tuple(
            self._cut(store, factor, draw, pin_memory) for store, factor in zip(self.stores, self.factors, strict=True)
        )

    def announce(self, draw: Draw) -> None:
        """Announce to the system the rows that `cut` will read of stores outside memory, so that it reads all at once.

        Otherwise each row of a crop costs a page fault of its own. With the hint of random access (MADV_RANDOM) the
        system reads less at a time and is slower still.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        for store, factor in zip(self.stores, self.factors, strict=True):
            # The file may have been removed; its pages are still mapped.
            with suppress(OSError), open(store.path, "rb", buffering=0) as file:
                width = store.flat.element_size()
                header = os.fstat(file.fileno()).st_size - store.nbytes
                for i, top in zip(draw.index.tolist(), (draw.top * factor).tolist(), strict=True):
                    row = store.sizes[i][1] * 3
                    first, length = store.offsets[i] + top * row, draw.lq_side * factor * row
                    os.posix_fadvise(file.fileno(), header + first * width, length * width, os.POSIX_FADV_WILLNEED)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        """(k, lq_side) -> image indices and crops of batch `k`, announced before they are cut."""
        draw = self.draw(*key)
        self.announce(draw)
        return torch.from_numpy(draw.index), *self.cut(draw)

    def _cut(self, store: ImageStore, factor: int, draw: Draw, pin_memory: bool) -> Tensor:
        side = draw.lq_side * factor
        made = torch.empty(
            (self.batch_size, 3, side, side),
            dtype=store.flat.dtype,
            memory_format=self.memory_format,
            pin_memory=pin_memory,
        )
        values, top, left = store.flat.numpy(), draw.top * factor, draw.left * factor
        samples = zip(
            *(numbers.tolist() for numbers in (draw.index, top, left, draw.hflip, draw.vflip, draw.transpose)),
            strict=True,
        )
        for out, (i, y, x, hflip, vflip, transpose) in zip(made.numpy(), samples, strict=True):
            (height, width), start = store.sizes[i], store.offsets[i]
            image = values[start : start + height * width * 3].reshape(height, width, 3)
            # Row by row out of the image first, so that the strided copies below read from the processor's cache.
            crop = image[y : y + side, x : x + side].copy()
            crop = crop[:, ::-1] if hflip else crop
            crop = crop[::-1] if vflip else crop
            planes = crop.transpose(2, 1, 0) if transpose else crop.transpose(2, 0, 1)
            for channel in range(3):
                # Over all three at once numpy would loop over the channels innermost, several times slower.
                np.copyto(out[channel], planes[channel])
        return made


class PassOrder:
    """Which image stands at a position of the whole training: a fresh permutation in each pass, all from `seed`."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self._passes: dict[int, NDArray[np.int64]] = {}

    def __call__(self, position: int) -> int:
        """Index of the image at `position`, from 0."""
        data_pass, place = divmod(position, self.length)
        if data_pass not in self._passes:
            # A batch may straddle two passes.
            self._passes = {key: self._passes[key] for key in (data_pass - 1,) if key in self._passes}
            # Sorting doubles instead of Generator.permutation, whose algorithm numpy may change between versions.
            chance = _random(self.seed, _PERMUTATION, data_pass).random(self.length)
            self._passes[data_pass] = np.argsort(chance, kind="stable")
        return int(self._passes[data_pass][place])


def _random(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed % 2**64, spawn_key=key)))
