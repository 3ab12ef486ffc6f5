"""Data sets from outside: any map-style class with BasicSR's contract, in training and in evaluation.

Such a class is built as `cls(opt)` with its section of the option file, to which `phase` and `scale` are added, and
gives `{"lq": tensor, "gt": tensor, "lq_path": text, "gt_path": text}`: float RGB images in [0, 1] as (3, H, W), gt
`scale` times as large; the paths may be absent. In training it makes its own crops and augmentation, from the global
random generators of Python, numpy and torch. These are seeded here before each item, so that resuming is exact.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtkd.contracts import Batch, MtkdError
from mtkd.data.crops import PassOrder
from mtkd.data.paired import PairedImage
from mtkd.data.workers import prefetch_in_workers
from mtkd.runtime.pixels import to_image

_PATHS = ("dataroot_gt", "dataroot_lq", "meta_info_file")


class ForeignItems:
    """A data set from outside, its items checked.

    Args:
        cls: the class, called with one dict.
        options: the section of the option file, with `name`, `type` and the class's own keys; not changed.
        phase: "train", "val" or "test".
        scale: gt side / lq side.
        seed: of the run.

    Raises:
        MtkdError: the class cannot be built, is empty, or its first item breaks the contract.
    """

    def __init__(self, cls: Any, options: Mapping[str, Any], *, phase: str, scale: int, seed: int = 0) -> None:
        self.name, self.scale, self.seed = f"data set {options['name']!r} ({options['type']})", scale, seed
        # BasicSR's classes take keys out of what they are given.
        given = {**copy.deepcopy(dict(options)), "phase": phase, "scale": scale}
        given |= {key: os.path.expanduser(given[key]) for key in _PATHS if isinstance(given.get(key), str)}
        try:
            self.source = cls(given)
            self._length = len(self.source)
        except Exception as error:
            raise MtkdError(f"The {self.name} cannot be built: {type(error).__name__}: {error}.") from error
        if self._length < 1:
            raise MtkdError(f"The {self.name} is empty.")
        self.draw(0, 0)

    def __len__(self) -> int:
        return self._length

    def draw(self, index: int, position: int) -> dict[str, Any]:
        """Item `index`, a pure function of (seed, index, position); no random generator is left changed.

        Raises:
            MtkdError: reading fails, or the item breaks the contract.
        """
        with _seeded(self.seed, position):
            try:
                item = self.source[index]
            except Exception as error:
                raise MtkdError(f"Item {index} of the {self.name}: {type(error).__name__}: {error}.") from error
        for key in ("lq", "gt"):
            image = item.get(key) if isinstance(item, Mapping) else None
            if not isinstance(image, Tensor) or image.dim() != 3 or len(image) != 3 or not image.is_floating_point():
                found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
                no_gt = isinstance(item, Mapping) and key == "gt" and key not in item
                without = " Enlarge images without gt with `mtkd upscale`." if no_gt else ""
                raise MtkdError(
                    f"Item {index} of the {self.name} must be a dict whose {key!r} is a float (3, H, W) tensor in "
                    f"[0, 1], found {found}.{without}"
                )
            # Resampling may exceed [0, 1] a little; images of another range exceed it by far.
            if not -0.5 <= image.min() <= image.max() <= 1.5:
                raise MtkdError(f"Item {index} of the {self.name} has {key} values outside [0, 1].")
        return dict(item)


class ForeignImages(Sequence[PairedImage]):
    """`ForeignItems` as whole images for evaluation: rounded to 8 bits, gt cut to lq * scale.

    An image is named after its gt_path or lq_path, else by its number.
    """

    def __init__(self, items: ForeignItems) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> PairedImage:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= i < len(self):
            raise IndexError(i)
        item = self.items.draw(i, i)
        path = item.get("gt_path") or item.get("lq_path")
        lq, gt = to_image(item["lq"]), to_image(item["gt"])
        height, width = (side * self.items.scale for side in lq.shape[:2])
        return PairedImage(Path(path).stem if path else f"{i:05d}", lq, np.ascontiguousarray(gt[:height, :width]))


class ForeignSampler:
    """Training batches of `ForeignItems`, with the interface of `CropSampler`.

    `batch(k)` is a pure function of (seed, k, rank, world_size, batch_size) as long as the class draws its random
    numbers from the global generators and keeps no state. Images are visited in the order of `PassOrder`.

    Args:
        batch_size: samples per rank.
        workers: processes that read items ahead in `batches`; 0 reads them in this one.
        device: where batches are wanted.
        memory_format: of the images in a batch.
    """

    def __init__(
        self,
        items: ForeignItems,
        *,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.items, self.batch_size, self.workers = items, batch_size, workers
        self.rank, self.world_size = rank, world_size
        self.device, self.memory_format = torch.device(device), memory_format
        self._drawn = _Drawn(items)

    def __len__(self) -> int:
        """Number of items, which is the number of samples in one pass."""
        return len(self.items)

    def batch(self, k: int) -> Batch:
        """The batch of iteration `k` (from 0) on `device`.

        Raises:
            MtkdError: items that break the contract, or crops of several sizes.
        """
        return self._to_device(self._drawn[self._positions(k)])

    def batches(self, start: int, stop: int, gt_size: None = None) -> Iterator[Batch]:
        """`batch(k)` for k in [start, stop). Crops are the class's own, so `gt_size` must be None.

        Raises:
            MtkdError: as `batch`; a worker died.
        """
        if gt_size is not None:
            raise MtkdError(f"The {self.items.name} makes its own crops, so their size cannot be changed.")
        if self.workers == 0:
            yield from map(self.batch, range(start, stop))
            return
        keys, pin_memory = map(self._positions, range(start, stop)), self.device.type == "cuda"
        with closing(prefetch_in_workers(self._drawn, keys, workers=self.workers, pin_memory=pin_memory)) as made:
            yield from map(self._to_device, made)

    def _positions(self, k: int) -> list[int]:
        first = (k * self.world_size + self.rank) * self.batch_size
        return list(range(first, first + self.batch_size))

    def _to_device(self, parts: tuple[Tensor, Tensor, Tensor]) -> Batch:
        lq, gt, index = (part.to(self.device, non_blocking=True) for part in parts)
        return Batch(lq.to(memory_format=self.memory_format), gt.to(memory_format=self.memory_format), index, None)


class _Drawn:
    """Batches of items by their positions in the whole training."""

    def __init__(self, items: ForeignItems) -> None:
        self.items = items
        self.order = PassOrder(items.seed, len(items))

    def __getitem__(self, positions: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        return self._together([self._item(position) for position in positions])

    def _item(self, position: int) -> tuple[Tensor, Tensor, int]:
        index = self.order(position)
        item = self.items.draw(index, position)
        lq, gt, scale = item["lq"].float(), item["gt"].float(), self.items.scale
        if gt.shape[1:] != (lq.shape[1] * scale, lq.shape[2] * scale):
            raise MtkdError(
                f"Item {index} of the {self.items.name}: gt is {tuple(gt.shape[1:])} and lq {tuple(lq.shape[1:])}, "
                f"which do not fit together at scale {scale}."
            )
        return lq, gt, index

    def _together(self, parts: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        sizes = {tuple(gt.shape[1:]) for _, gt, _ in parts}
        if len(sizes) > 1:
            raise MtkdError(
                f"The {self.items.name} gives gt crops of {len(sizes)} sizes in one batch, such as {min(sizes)} and "
                f"{max(sizes)}. In training its items must be crops of one size."
            )
        lq, gt, index = zip(*parts, strict=True)
        return torch.stack(lq), torch.stack(gt), torch.tensor(index)


@contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Python's, numpy's and torch's global CPU generators seeded from (seed, position), and put back afterwards."""
    words = np.random.SeedSequence(seed % 2**64, spawn_key=(2, position)).generate_state(4)
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(int(words[0]))
        np.random.seed(words[1:3])
        torch.random.default_generator.manual_seed(int(words[3]))
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
