"""`CropSampler`: training batches cut from image stores by one gather per store.

Crop position, flips and transpose of a sample are three numbers: where its first pixel lies in the store, and how far
to step for the next row and the next column (a negative step is a flip, swapped steps are a transpose). So a whole
augmented batch is `values[first + y * row_step + x * column_step]`, on whatever device the stores live on, and the
host never waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkd.contracts import Batch, MtkdError
from mtkd.data.paired import raise_problems
from mtkd.data.store import ImageStore

Residence = Literal["device", "ram"]

_PERMUTATION, _CROPS = 0, 1


class CropSampler:
    """Random crops with BasicSR's augmentations, the same for lq, gt and target.

    `batch(k)` is a pure function of (stores, seed, k, rank, world_size, batch_size, gt_size): there is no state, so a
    run that resumes at iteration k sees what it would have seen. The random numbers are uniform doubles of numpy's
    Philox generator, keyed through `SeedSequence` by (seed, k, rank) for crops and (seed, pass) for
    the order of the images.

    Each pass over the data set is a fresh permutation; iteration k takes its positions
    [k * world_size * batch_size + rank * batch_size, + batch_size), so that ranks never share a position and every
    image is visited once per pass (a batch may straddle two passes).

    Args:
        lq, gt: stores of the same images; gt is exactly `scale` times as high and wide.
        target: store of teacher images, sized as gt, or None.
        scale: gt side / lq side.
        gt_size: side of the square gt crop in pixels, a multiple of `scale`.
        batch_size: samples per rank.
        use_hflip: mirror left-right with probability 1/2.
        use_rot: mirror top-bottom with probability 1/2 and transpose with probability 1/2, independently.
        seed: of the run, the same on all ranks.
        rank, world_size: this process among all that train together.
        device: where batches are wanted.
        residence: where the stores live: "device", "ram" (memory-mapped, gathered by the CPU), or "auto":
            `choose_residence` decides.
        memory_format: of the images in a batch.

    Raises:
        MtkdError: stores that do not belong together, a gt_size that does not divide or does not fit.
    """

    def __init__(
        self,
        *,
        lq: ImageStore,
        gt: ImageStore,
        target: ImageStore | None = None,
        scale: int,
        gt_size: int,
        batch_size: int,
        use_hflip: bool,
        use_rot: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        residence: Residence | Literal["auto"] = "auto",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if not 0 <= rank < world_size or batch_size < 1:
            raise MtkdError(f"batch_size {batch_size}, rank {rank} and world_size {world_size} make no sense together.")
        self.scale, self.gt_size, self.batch_size = scale, gt_size, batch_size
        self.use_hflip, self.use_rot, self.seed = use_hflip, use_rot, seed
        self.rank, self.world_size = rank, world_size
        self.device = _with_index(torch.device(device))
        self.memory_format = memory_format
        _check_together(lq, gt, target, scale)
        self._length = len(gt)
        self._lq_sizes = np.array(lq.sizes, dtype=np.int64)
        self._smallest_gt = int(self._lq_sizes.min()) * scale
        self._check_gt_size(gt_size)

        stores = [lq, gt] if target is None else [lq, gt, target]
        if residence == "auto":
            residence = choose_residence(sum(store.nbytes for store in stores), self.device)
        self.residence: Residence = residence
        home = self.device if residence == "device" else torch.device("cpu")
        self._pixels = [store.flat.to(home).view(-1, 3) for store in stores]
        self._first_pixel = [np.array(store.offsets, dtype=np.int64) // 3 for store in stores]
        self._factors = [1, scale, scale][: len(stores)]
        self._order = PassOrder(seed, self._length)

    def __len__(self) -> int:
        """Number of images, which is the number of samples in one pass."""
        return self._length

    def batch(self, k: int, gt_size: int | None = None) -> Batch:
        """The batch of iteration `k` (from 0) on `device`; `gt_size` replaces the constructor's for this one.

        Images are float32 in [0, 1], (batch_size, 3, gt_size / scale or gt_size, likewise).

        Raises:
            MtkdError: gt_size does not divide by scale or is larger than the smallest image.
        """
        gt_size = self.gt_size if gt_size is None else gt_size
        if gt_size != self.gt_size:
            self._check_gt_size(gt_size)
        index, steps = self._draw(k, gt_size // self.scale)
        plan = torch.from_numpy(np.concatenate([index[None], steps.reshape(-1, self.batch_size)]))
        if self.residence == "device":
            plan = self._to_device(plan)
        images = [
            self._gather(pixels, *plan[1 + 3 * i : 4 + 3 * i], side=gt_size // self.scale * factor)
            for i, (pixels, factor) in enumerate(zip(self._pixels, self._factors, strict=True))
        ]
        indices = plan[0] if self.residence == "device" else self._to_device(plan[0])
        return Batch(images[0], images[1], indices, images[2] if len(images) > 2 else None)

    def batches(self, start: int, stop: int, gt_size: int | Callable[[int], int] | None = None) -> Iterator[Batch]:
        """`batch(k)` for k in [start, stop); `gt_size` may be a function of k.

        On CUDA the next batch is made by a thread on a side stream while the current one is in use.
        """

        def make(k: int) -> Batch:
            return self.batch(k, gt_size(k) if callable(gt_size) else gt_size)

        if self.device.type != "cuda":
            yield from map(make, range(start, stop))
            return
        side = torch.cuda.Stream(self.device)
        # The stores may still be on their way to the device on the current stream.
        side.wait_stream(torch.cuda.current_stream(self.device))

        def make_aside(k: int) -> tuple[Batch, torch.cuda.Event]:
            with torch.cuda.device(self.device), torch.cuda.stream(side):
                batch, ready = make(k), torch.cuda.Event()
                ready.record(side)
                return batch, ready

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            coming = thread.submit(make_aside, start) if start < stop else None
            k = start
            while coming is not None:
                batch, ready = coming.result()
                k += 1
                coming = thread.submit(make_aside, k) if k < stop else None
                current = torch.cuda.current_stream(self.device)
                current.wait_event(ready)
                for tensor in (batch.lq, batch.gt, batch.index, batch.target):
                    if tensor is not None:
                        # Otherwise the side stream could reuse this memory while the step still reads it.
                        tensor.record_stream(current)
                yield batch

    def _draw(self, k: int, lq_side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Image indices (B,), and per store (first pixel, row step, column step): (stores, 3, B), in pixels."""
        position = (k * self.world_size + self.rank) * self.batch_size + np.arange(self.batch_size)
        index = np.array([self._order(p) for p in position.tolist()], dtype=np.int64)
        chance = _random(self.seed, _CROPS, k, self.rank).random((5, self.batch_size))
        hflip = (chance[0] < 0.5) & self.use_hflip
        vflip = (chance[1] < 0.5) & self.use_rot
        transpose = (chance[2] < 0.5) & self.use_rot
        room = self._lq_sizes[index] - lq_side + 1
        lq_top = (chance[3] * room[:, 0]).astype(np.int64)
        lq_left = (chance[4] * room[:, 1]).astype(np.int64)

        steps = np.empty((len(self._factors), 3, self.batch_size), dtype=np.int64)
        for i, factor in enumerate(self._factors):
            last = lq_side * factor - 1
            width = self._lq_sizes[index, 1] * factor
            top = lq_top * factor + np.where(vflip, last, 0)
            left = lq_left * factor + np.where(hflip, last, 0)
            down = np.where(vflip, -width, width)
            right = np.where(hflip, -1, 1)
            steps[i, 0] = self._first_pixel[i][index] + top * width + left
            steps[i, 1] = np.where(transpose, right, down)
            steps[i, 2] = np.where(transpose, down, right)
        return index, steps

    def _gather(self, pixels: Tensor, first: Tensor, row_step: Tensor, column_step: Tensor, *, side: int) -> Tensor:
        along = torch.arange(side, device=pixels.device)
        rows = first[:, None] + row_step[:, None] * along
        where = (rows[:, :, None] + column_step[:, None, None] * along).view(-1)
        if self.residence == "ram" and self.device.type == "cuda":
            crops = torch.empty((len(where), 3), dtype=pixels.dtype, pin_memory=True)
            crops = torch.index_select(pixels, 0, where, out=crops).to(self.device, non_blocking=True)
        else:
            crops = pixels.index_select(0, where).to(self.device)
        image = crops.view(-1, side, side, 3).permute(0, 3, 1, 2)
        image = image.to(torch.float32, memory_format=self.memory_format)
        return image.div_(255) if pixels.dtype == torch.uint8 else image

    def _to_device(self, numbers: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return numbers.pin_memory().to(self.device, non_blocking=True)
        return numbers.to(self.device)

    def _check_gt_size(self, gt_size: int) -> None:
        if gt_size < self.scale or gt_size % self.scale:
            raise MtkdError(f"gt_size {gt_size} must be a positive multiple of the scale {self.scale}.")
        if gt_size > self._smallest_gt:
            raise MtkdError(
                f"gt_size {gt_size} is larger than the smallest training image, whose shorter side is "
                f"{self._smallest_gt} pixels. Use a smaller gt_size or leave such images out (meta_info_file)."
            )


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


def choose_residence(nbytes: int, device: torch.device | str) -> Residence:
    """ "device" when `nbytes` of images take at most half of the CUDA device's free memory, else "ram"."""
    device = torch.device(device)
    if device.type != "cuda":
        return "ram"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if nbytes <= free // 2 else "ram"


def _with_index(device: torch.device) -> torch.device:
    # A plain "cuda" means another device in a new thread than in this one.
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_together(lq: ImageStore, gt: ImageStore, target: ImageStore | None, scale: int) -> None:
    problems = []
    for word, store, factor in (("lq", lq, 1), ("target", target, scale)):
        if store is None:
            continue
        if store.names != gt.names:
            problems.append(f"{word} store {store.path} holds other images, or another order, than gt store {gt.path}")
            continue
        expected = gt.sizes if factor == scale else [(h // scale, w // scale) for h, w in gt.sizes]
        problems += [
            f"{word} image {name} is {size[0]}x{size[1]} (height x width) and must be {want[0]}x{want[1]}"
            for name, size, want in zip(store.names, store.sizes, expected, strict=True)
            if size != want
        ]
    problems += [
        f"gt image {name} is {h}x{w} (height x width), no multiple of {scale}"
        for name, (h, w) in zip(gt.names, gt.sizes, strict=True)
        if h % scale or w % scale
    ]
    raise_problems(f"The image stores do not fit together at scale {scale}", problems)
