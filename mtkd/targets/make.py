"""Run the teachers once over the training images and store their images; students train from the store.

The target of an output-level method never changes, so it is computed once per image at full size (no crop borders in
its context) and stored as uint8 or float16.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mtkd import __version__, build
from mtkd.archs.ensemble import FusedTeacher
from mtkd.build import open_training_images, training_files
from mtkd.config import AnswersOptions, Options
from mtkd.contracts import MtkdError
from mtkd.data.answers import TRAIN
from mtkd.data.images import try_writing
from mtkd.data.kept import KeptAnswers, answering_anything, kept_inside
from mtkd.data.store import ImageStore, StoreDtype, StoreWriter, missing_images
from mtkd.inference.evaluate import Predict
from mtkd.inference.tiling import FittingTiles, self_ensemble
from mtkd.methods.base import Frozen
from mtkd.runtime.background import BackgroundCalls
from mtkd.runtime.device import autocast, choose_device, move, named_device, set_backends
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.runtime.progress import Log, Progress, clock
from mtkd.targets.shards import WHOLE, Shard
from mtkd.targets.store_check import (
    bytes_to_write,
    check_disk,
    complete_already,
    exists,
    fingerprint,
    free_bytes,
    size_text,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROBE_SIDE = {"cpu": 64, "cuda": 256}
"""Side of the lq crop on which a dry run times the teachers: large enough for the device to be busy."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the teachers are run.

    Attributes:
        x8: average over the eight flips and rotations of each lq.
        tile_size: run larger lq images in tiles of this many pixels; None runs every image whole where the free memory
            allows, and in the largest tiles that fit else.
        tile_pad: context around each tile, in lq pixels. Where the receptive field is no larger, no seam is left.
        precision: "fp32", "bf16" or "fp16" (autocast); None is what the option file gives teachers on line. bf16 moves
            the mean of the demo's teachers by 0.08 of 255 on average, a third of what rounding to 8 bits does.
        dtype: "uint8" clamps and rounds as an image file does; "float16" is not clamped, as from teachers on line.
    """

    x8: bool = False
    tile_size: int | None = None
    tile_pad: int = 32
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    dtype: StoreDtype = "uint8"

    def facts(self, options: Options) -> dict[str, Any]:
        """What a store records of it."""
        return {
            "x8": self.x8,
            "tile_size": self.tile_size,
            "tile_pad": self.tile_pad,
            "precision": self.resolved_precision(options),
            "dtype": self.dtype,
            "mtkd": __version__,
        }

    def resolved_precision(self, options: Options) -> str:
        """`precision`, or that of the teachers of `options`."""
        return self.precision or options.teacher_precision or options.precision


PLAIN = Recipe()


@torch.no_grad()
def teach(
    options: Options,
    path: Path,
    recipe: Recipe = PLAIN,
    *,
    shard: Shard = WHOLE,
    device: str | torch.device | None = None,
    progress: Log = print,
) -> ImageStore:
    """Write the targets of `options` for all its training images, at gt size, to the store `path`, or to a shard of it.

    Interrupted, it goes on where it stopped when called again with the same networks, images and recipe. A store or
    shard that is complete already is left as it is, and so is a shard whose store is.

    Raises:
        MtkdError: `path` was made otherwise or is damaged, weights are missing, the declared teachers do not make one
            image, the disk or the device is too small, or an image is not finite.
    """
    out = path if exists(path) else shard.path(path)
    finished = exists(out)
    if not finished:
        try_writing(out.absolute().parent)
    device = _set_up(options, device)
    teacher = None if finished else _Teacher(options, recipe, device)
    predict = teacher and _over_images(teacher, options, recipe, progress)
    about = "targets" if shard.count == 1 else f"shard {shard}"
    with Progress("decoding the training images", progress, bar=shard.count == 1) as decoding:
        images = open_training_images(options, decoding)
    lq, share = images.lq, shard.indices(len(images))
    facts = {"fingerprint": fingerprint(options, images), **recipe.facts(options)}
    if teacher is not None and (kept := kept_inside(teacher.bare)):
        answers = build.open_training_answers(options, images, imitated=True, log=progress)
        for member in kept:
            member.learn(TRAIN, answers[member.name], lq, images.sizes)
    if predict is None:
        # A whole store of an older mtkd stays valid. Shards must agree, because they are merged.
        version = {"mtkd": ImageStore(out).facts.get("mtkd")} if out == path else {}
        store = complete_already(out, facts | version)
        progress(f"{about}: {out} is complete already")
        return store
    names, sizes = [images.names[i] for i in share], [images.sizes[i] for i in share]
    check_disk(out, bytes_to_write(out, sizes, recipe.dtype))
    writer = StoreWriter(out, names, sizes, facts, dtype=recipe.dtype, durable=True)
    try:
        missing = writer.missing()
        if len(missing) < len(share):
            progress(f"{about}: going on with {len(missing)} of {len(share)} images")
        pixels = list(accumulate(sizes[i][0] * sizes[i][1] for i in missing))
        with Progress(about, progress, bar=shard.count == 1) as made, BackgroundCalls(workers=1, waiting=4) as calls:
            for done, position in enumerate(missing, start=1):
                answer = predict(to_tensor(lq[share[position]], device))
                calls.submit(writer.put, position, _stored(answer, recipe, names[position]))
                made(done, len(missing), pixels[done - 1] / pixels[-1])
        return writer.finish()
    finally:
        writer.close()


@torch.no_grad()
def dry_run(
    options: Options,
    path: Path,
    recipe: Recipe = PLAIN,
    *,
    shard: Shard = WHOLE,
    device: str | torch.device | None = None,
    progress: Log = print,
) -> None:
    """Log what `teach` with the same arguments would make, on what, and about how long it would take; write nothing.

    The time is that of the teachers on one crop of a training image, scaled by pixels; reading, rounding and writing
    are left out. On the CPU large images are slower by the pixel than small ones.

    Raises:
        MtkdError: as `teach`, before it runs the teachers.
    """
    out = path if exists(path) else shard.path(path)
    if exists(out):
        raise MtkdError(
            f"{out} exists already, so there is nothing to measure. `mtkd teach` without --dry_run checks that it fits."
        )
    files = training_files(options)
    share = shard.indices(len(files))
    sizes = [files.sizes[i] for i in share]
    left = missing_images(out, len(share))
    device = _set_up(options, device)
    teacher = _Teacher(options, recipe, device)

    scale = options.scale
    lq = to_tensor(files[share[0]].lq, device)
    side = _PROBE_SIDE.get(device.type, 64)
    if recipe.tile_size is not None:
        side = min(side, recipe.tile_size + 2 * recipe.tile_pad)
    top, left_edge = (max(length - side, 0) // 2 for length in lq.shape[-2:])
    crop = lq[..., top : top + side, left_edge : left_edge + side]
    with answering_anything(teacher.bare):
        seconds = _time(lambda: teacher(crop), device)
    pixels = sum(_pixels_run(sizes[i][0] // scale, sizes[i][1] // scale, recipe) for i in left)
    total = seconds / (crop.shape[-2] * crop.shape[-1]) * pixels * (8 if recipe.x8 else 1)

    size = bytes_to_write(out, sizes, recipe.dtype)
    here = f" for shard {shard}" if shard.count > 1 else ""
    begun = "" if len(left) == len(share) else f", {len(share) - len(left)} of them made already"
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    progress(
        f"{len(share)} of {len(files)} images{here}{begun}: {sum(h * w for h, w in sizes) / 1e6:,.1f} megapixels\n"
        f"to write: {size_text(size)} of {recipe.dtype} to {out}; free there: {size_text(free_bytes(out))}\n"
        f"device: {device}{name}, {recipe.resolved_precision(options)}\n"
        f"time: about {clock(total)}, from {seconds:.3f} s for an lq crop of {crop.shape[-2]}x{crop.shape[-1]}"
    )
    check_disk(out, size)


def _set_up(options: Options, device: str | torch.device | None) -> torch.device:
    set_backends(tf32=options.tf32, deterministic=options.deterministic, sizes_vary=True)
    found = choose_device(options.num_gpu) if device is None else named_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


class _InPrecision(nn.Module):
    """A frozen network under an autocast of its own, with float32 results."""

    def __init__(self, net: nn.Module, autocast: Any, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.net, self.autocast, self.memory_format = net, autocast, memory_format

    def forward(self, image: Tensor) -> Tensor:
        with self.autocast():
            answer = self.net(image.contiguous(memory_format=self.memory_format))
        # To float32 before tiles are joined or flips averaged: both would round once more.
        return answer.float()


class _Teacher(_InPrecision):
    """The one teacher of `options` on `device`, lq -> float32 sr, in the precision of `recipe`."""

    def __init__(self, options: Options, recipe: Recipe, device: torch.device) -> None:
        precision = recipe.resolved_precision(options)
        if precision == "fp16" and device.type != "cuda":
            raise MtkdError("fp16 needs a CUDA device; use --precision bf16 or fp32 on the CPU.")
        if recipe.x8 and (kept := [name for name, one in options.teachers.items() if isinstance(one, AnswersOptions)]):
            raise MtkdError(f"--x8 turns the images, and of {', '.join(kept)} there are only the kept answers to them.")
        teachers = build.build_teachers(options, imitated=True)
        if len(teachers) != 1:
            raise MtkdError(
                f"{len(teachers)} teachers are declared ({', '.join(teachers)}), and a store holds one image of each "
                "lq. Set `fusion` to say how they become one."
            )
        memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
        (net,) = teachers.values()
        if getattr(net, "image_channels", 3) == 1:
            raise MtkdError(
                f"{next(iter(teachers))} is a network of Y, one channel, and a store holds RGB images. Train with it "
                "on line: leave target_store out."
            )
        frozen = move(Frozen(net), device, memory_format)
        super().__init__(frozen, partial(autocast, precision, device), memory_format)

    @property
    def bare(self) -> nn.Module:
        """The network itself."""
        return self.net.net  # pyright: ignore[reportReturnType]  a Frozen

    def part(self, net: nn.Module) -> _InPrecision:
        """A network inside, run in the same way."""
        return _InPrecision(net, self.autocast, self.memory_format)


def _over_images(teacher: _Teacher, options: Options, recipe: Recipe, log: Log) -> Predict:
    """`teacher` for images of any size."""
    whole: Predict
    if kept_inside(teacher.bare):
        whole = _beside_kept_answers(teacher, recipe, log)
    else:
        tiles = {"tile_size": recipe.tile_size, "tile_pad": recipe.tile_pad}
        whole = FittingTiles(teacher, scale=options.scale, **tiles, log=log)
    predict = partial(self_ensemble, whole) if recipe.x8 else whole

    def run(lq: Tensor) -> Tensor:
        # Autocast here too: the estimate of a run's memory reads the setting outside the network.
        with teacher.autocast():
            return predict(lq)

    return run


def _beside_kept_answers(teacher: _Teacher, recipe: Recipe, log: Log) -> Predict:
    """`teacher`, of which members are kept answers: these are of whole images, and only what else runs is tiled."""

    def fitting(net: nn.Module, scale: int, by: int = 1) -> Predict:
        size = None if recipe.tile_size is None else recipe.tile_size * by
        return FittingTiles(teacher.part(net), scale=scale, tile_size=size, tile_pad=recipe.tile_pad * by, log=log)

    net = teacher.bare
    if not isinstance(net, FusedTeacher):
        return net
    members = [
        member if isinstance(member, KeptAnswers) else fitting(member, net.scale)
        for member in net.ensemble.members.values()
    ]
    fusion = fitting(net.fusion, 1, net.scale)
    return lambda lq: fusion(torch.cat([member(lq.clone()) for member in members], dim=1))


def _pixels_run(height: int, width: int, recipe: Recipe) -> float:
    """lq pixels of an image that the teachers run on, with the context of its tiles where their size is given."""
    tile, context = recipe.tile_size, 2 * recipe.tile_pad
    if tile is None or max(height, width) <= tile + context:
        return height * width
    return height * width * (1 + context / tile) ** 2


def _stored(sr: Tensor, recipe: Recipe, name: str) -> NDArray[np.uint8] | NDArray[np.float16]:
    """(1, 3, H, W) as an (H, W, 3) array of the store's dtype."""
    kept = sr.half() if recipe.dtype == "float16" else sr
    if not kept.isfinite().all():
        raise MtkdError(
            f"The teachers' image of {name} is not finite. In fp16 values above 65504 overflow: use --precision bf16 "
            "or fp32. In fp32, check the weights of the teachers."
        )
    return to_image(sr) if recipe.dtype == "uint8" else kept[0].permute(1, 2, 0).cpu().numpy()


def _time(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call after a warm-up call: the best of as many as fit in two seconds, at most 5."""

    def once() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    times = [once()]
    while len(times) < 5 and sum(times) < 2:
        times.append(once())
    return min(times)
