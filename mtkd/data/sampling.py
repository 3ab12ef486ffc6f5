"""`CropSampler`: training batches cut from image stores, on the device, in memory, or by worker processes.

On a device the crops are gathered. Position, flips and transpose of a crop are three numbers: where its first pixel
lies in the store, and how far to step for the next row and the next column (a negative step is a flip, swapped steps
are a transpose). So a whole augmented batch is `values[first + y * row_step + x * column_step]`, and the host never
waits for it. The CPU is several times faster at copying rows (`Crops.cut`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkd.contracts import Batch, MtkdError
from mtkd.data.crops import Crops, Draw
from mtkd.data.paired import raise_problems
from mtkd.data.residence import Residence, choose_residence
from mtkd.data.store import ImageStore
from mtkd.data.workers import prefetch_in_workers
from mtkd.runtime.luma import luma


class CropSampler:
    """Random crops with BasicSR's augmentations, the same for lq, gt and target.

    `batch(k)` is a pure function of (stores, seed, k, rank, world_size, batch_size, gt_size): there is no state, so a
    run that resumes at iteration k sees what it would have seen. Where the stores live does not change it.

    Each pass over the data set is a fresh permutation; iteration k takes its positions
    [k * world_size * batch_size + rank * batch_size, + batch_size), so that ranks never share a position and every
    image is visited once per pass (a batch may straddle two passes).

    Args:
        lq, gt: stores of the same images; gt is exactly `scale` times as high and wide. Without gt, None, batches have
            none either.
        target: store of teacher images, `scale` times as high and wide as lq, or None.
        answers: teacher -> store of its answers, sized as `target`; their crops are `Batch.answers`.
        scale: gt side / lq side.
        gt_size: side of the square gt crop in pixels, a multiple of `scale`.
        batch_size: samples per rank.
        use_hflip: mirror left-right with probability 1/2.
        use_rot: mirror top-bottom with probability 1/2 and transpose with probability 1/2, independently.
        seed: of the run, the same on all ranks.
        rank, world_size: this process among all that train together.
        device: where batches are wanted.
        residence: where the stores live: "device"; "ram", memory-mapped and held by the system's page cache; "disk",
            memory-mapped and larger than that; or "auto": `choose_residence` decides.
        workers: processes that cut crops ahead in `batches`, with residence "disk" alone; 0 cuts them in this one.
        memory_format: of the images in a batch.
        color: "y" gives Y alone, one channel, of every image of a batch. Stores stay RGB; crops are converted on
            `device` by `runtime.luma`, as floats and without rounding to 8 bits, as BasicSR does.

    Raises:
        MtkdError: stores that do not belong together, a gt_size that does not divide or does not fit.
    """

    def __init__(
        self,
        *,
        lq: ImageStore,
        gt: ImageStore | None,
        target: ImageStore | None = None,
        answers: Mapping[str, ImageStore] | None = None,
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
        workers: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
        color: Literal["rgb", "y"] = "rgb",
    ) -> None:
        if not 0 <= rank < world_size or batch_size < 1:
            raise MtkdError(
                f"batch_size {batch_size}, rank {rank} and world_size {world_size} do not fit together: "
                f"0 <= rank < world_size, batch_size >= 1."
            )
        self.scale, self.gt_size, self.batch_size = scale, gt_size, batch_size
        self.workers = workers
        self.device = _with_index(torch.device(device))
        self.memory_format, self.color = memory_format, color
        _check_together(lq, gt, target, scale)
        for name, store in (answers or {}).items():
            _check_together(lq, None, store, scale, f"answers of {name}")
        large = {"gt": gt, "target": target}
        self._words = [word for word, store in large.items() if store is not None]
        self._answering = tuple(answers or ())
        stores = [lq, *(store for store in large.values() if store is not None), *(answers or {}).values()]
        self._crops = Crops(
            stores,
            [1, *[scale] * (len(stores) - 1)],
            batch_size=batch_size,
            use_hflip=use_hflip,
            use_rot=use_rot,
            seed=seed,
            rank=rank,
            world_size=world_size,
            memory_format=memory_format,
        )
        self._smallest_gt = int(self._crops.lq_sizes.min()) * scale
        self._check_gt_size(gt_size)
        if residence == "auto":
            residence = choose_residence(sum(store.nbytes for store in stores), self.device)
        self.residence: Residence = residence
        if residence == "device":
            self._pixels = [store.flat.to(self.device).view(-1, 3) for store in stores]
            self._first_pixel = [np.array(store.offsets, dtype=np.int64) // 3 for store in stores]

    def __len__(self) -> int:
        """Number of images, which is the number of samples in one pass."""
        return len(self._crops.lq_sizes)

    def batch(self, k: int, gt_size: int | None = None) -> Batch:
        """The batch of iteration `k` (from 0) on `device`; `gt_size` replaces the constructor's for this one.

        Images are float32 in [0, 1], (batch_size, 3, gt_size / scale or gt_size, likewise); one channel with color "y".

        Raises:
            MtkdError: gt_size does not divide by scale or is larger than the smallest image.
        """
        draw = self._crops.draw(k, self._lq_side(gt_size))
        if self.residence == "device":
            return self._gathered(draw)
        if self.residence == "disk":
            self._crops.announce(draw)
        index, pin_memory = torch.from_numpy(draw.index), self.device.type == "cuda"
        crops = self._crops.cut(draw, pin_memory=pin_memory)
        return self._converted(index.pin_memory() if pin_memory else index, *crops)

    def batches(self, start: int, stop: int, gt_size: int | Callable[[int], int] | None = None) -> Iterator[Batch]:
        """`batch(k)` for k in [start, stop); `gt_size` may be a function of k.

        With `workers`, processes cut the crops ahead. Without, on CUDA, the next batch is made by a thread on a side
        stream while the current one is in use.

        Raises:
            MtkdError: as `batch`; a worker died.
        """

        def size(k: int) -> int | None:
            return gt_size(k) if callable(gt_size) else gt_size

        if self.residence == "disk" and self.workers:
            keys = ((k, self._lq_side(size(k))) for k in range(start, stop))
            pin_memory = self.device.type == "cuda"
            with closing(prefetch_in_workers(self._crops, keys, workers=self.workers, pin_memory=pin_memory)) as made:
                for parts in made:
                    yield self._converted(*parts)
        elif self.device.type == "cuda":
            yield from self._on_side_stream(start, stop, size)
        else:
            # On the CPU, prefetching would compete with the step for cores.
            yield from (self.batch(k, size(k)) for k in range(start, stop))

    def _on_side_stream(self, start: int, stop: int, size: Callable[[int], int | None]) -> Iterator[Batch]:
        side = torch.cuda.Stream(self.device)
        # The stores may still be on their way to the device on the current stream.
        side.wait_stream(torch.cuda.current_stream(self.device))

        def make(k: int) -> tuple[Batch, torch.cuda.Event]:
            with torch.cuda.device(self.device), torch.cuda.stream(side):
                batch, ready = self.batch(k, size(k)), torch.cuda.Event()
                ready.record(side)
                return batch, ready

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            coming = thread.submit(make, start) if start < stop else None
            k = start
            while coming is not None:
                batch, ready = coming.result()
                k += 1
                coming = thread.submit(make, k) if k < stop else None
                current = torch.cuda.current_stream(self.device)
                current.wait_event(ready)
                for tensor in (batch.lq, batch.gt, batch.index, batch.target, *(batch.answers or {}).values()):
                    if tensor is not None:
                        # Otherwise the side stream could reuse this memory while the step still reads it.
                        tensor.record_stream(current)
                yield batch

    def _gathered(self, draw: Draw) -> Batch:
        steps = [
            self._steps(draw, first_pixel, factor)
            for first_pixel, factor in zip(self._first_pixel, self._crops.factors, strict=True)
        ]
        # One small copy to the device for the whole batch.
        plan = torch.from_numpy(np.concatenate([draw.index[None], *steps]))
        plan = (plan.pin_memory() if self.device.type == "cuda" else plan).to(self.device, non_blocking=True)
        crops = [
            _gather(pixels, *plan[1 + 3 * i : 4 + 3 * i], side=draw.lq_side * factor)
            for i, (pixels, factor) in enumerate(zip(self._pixels, self._crops.factors, strict=True))
        ]
        return self._converted(plan[0], *crops)

    def _steps(self, draw: Draw, first_pixel: NDArray[np.int64], factor: int) -> NDArray[np.int64]:
        """First pixel, row step and column step of each crop in one store, (3, batch_size), in pixels."""
        last = draw.lq_side * factor - 1
        width = self._crops.lq_sizes[draw.index, 1] * factor
        top = draw.top * factor + np.where(draw.vflip, last, 0)
        left = draw.left * factor + np.where(draw.hflip, last, 0)
        down = np.where(draw.vflip, -width, width)
        right = np.where(draw.hflip, -1, 1)
        row_step = np.where(draw.transpose, right, down)
        column_step = np.where(draw.transpose, down, right)
        return np.stack([first_pixel[draw.index] + top * width + left, row_step, column_step])

    def _converted(self, index: Tensor, *crops: Tensor) -> Batch:
        """A batch on the device from what the stores hold, which crosses to it before it grows to float32."""
        images = []
        for part in crops:
            image = part.to(self.device, non_blocking=True).to(torch.float32, memory_format=self.memory_format)
            image = image.div_(255) if part.dtype == torch.uint8 else image
            images.append(luma(image) if self.color == "y" else image)
        count = len(images) - len(self._answering)
        large = dict(zip(self._words, images[1:count], strict=True))
        answers = dict(zip(self._answering, images[count:], strict=True)) or None
        # No method whose active terms read gt is given images without: the option file is refused before.
        gt = cast(Tensor, large.get("gt"))
        return Batch(images[0], gt, index.to(self.device, non_blocking=True), large.get("target"), answers)

    def _lq_side(self, gt_size: int | None) -> int:
        if gt_size is None:
            gt_size = self.gt_size
        elif gt_size != self.gt_size:
            self._check_gt_size(gt_size)
        return gt_size // self.scale

    def _check_gt_size(self, gt_size: int) -> None:
        if gt_size < self.scale or gt_size % self.scale:
            raise MtkdError(f"gt_size {gt_size} must be a positive multiple of the scale {self.scale}.")
        if gt_size > self._smallest_gt:
            raise MtkdError(
                f"gt_size {gt_size} is larger than the smallest training image, whose shorter side is "
                f"{self._smallest_gt} pixels. Use a smaller gt_size or leave such images out (meta_info_file)."
            )


def _gather(pixels: Tensor, first: Tensor, row_step: Tensor, column_step: Tensor, *, side: int) -> Tensor:
    along = torch.arange(side, device=pixels.device)
    rows = first[:, None] + row_step[:, None] * along
    where = (rows[:, :, None] + column_step[:, None, None] * along).view(-1)
    return pixels.index_select(0, where).view(-1, side, side, 3).permute(0, 3, 1, 2)


def _with_index(device: torch.device) -> torch.device:
    # A plain "cuda" means another device in a new thread than in this one.
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_together(
    lq: ImageStore, gt: ImageStore | None, target: ImageStore | None, scale: int, word: str = "target"
) -> None:
    problems: list[str] = []
    if gt is None:
        if target is not None:
            _check_target(lq, target, scale, word, problems)
        raise_problems(f"The image stores do not fit together at scale {scale}", problems)
        return
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
        f"gt image {name} is {h}x{w} (height x width), not a multiple of {scale}"
        for name, (h, w) in zip(gt.names, gt.sizes, strict=True)
        if h % scale or w % scale
    ]
    raise_problems(f"The image stores do not fit together at scale {scale}", problems)


def _check_target(lq: ImageStore, target: ImageStore, scale: int, word: str, problems: list[str]) -> None:
    if target.names != lq.names:
        problems.append(f"{word} store {target.path} holds other images, or another order, than lq store {lq.path}")
        return
    problems += [
        f"{word} image {name} is {size[0]}x{size[1]} (height x width) and must be {h * scale}x{w * scale}"
        for name, size, (h, w) in zip(lq.names, target.sizes, lq.sizes, strict=True)
        if size != (h * scale, w * scale)
    ]
