"""Pay the teachers once: run them over the training images, keep the answers, train students from the store.

The target of an output-level method never changes, so it is computed once per image at full size (no crop borders in
its context) and stored as uint8 or float16. A store carries the fingerprint of what made it: teacher and fusion
weights, their arguments and order, the scale and the images. Training from a store that does not match is an error.

Several jobs may share the work: each writes the images of its shard to a file of its own, and `merge` makes one store
of them. They need nothing of each other while they run, not even a common disk.
"""

from __future__ import annotations

import datetime
import glob
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mtkd import __version__, zoo
from mtkd.config import ItemTrainSetOptions, Options, TrainSetOptions
from mtkd.contracts import MtkdError
from mtkd.data.paired import PairedImages
from mtkd.data.store import ImageStore, StoreDtype, StoreWriter, missing_images
from mtkd.data.training import TrainingSet, open_training_set
from mtkd.engine import build
from mtkd.engine.evaluate import Predict, to_image, to_tensor
from mtkd.engine.overlap import Behind
from mtkd.engine.tiling import FittingTiles, self_ensemble
from mtkd.methods.base import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Say = Callable[[str], None]

_SAY_EVERY = 30.0
"""Seconds between two lines of progress."""
_PROBE_SIDE = {"cpu": 64, "cuda": 256}
"""Side of the lq crop on which a dry run times the teachers: large enough for the device to be busy."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the teachers answer.

    Attributes:
        x8: average over the eight flips and rotations of each lq.
        tile_size: run larger lq images in tiles of this many pixels; None runs every image whole where the free memory
            allows, and in the largest tiles that fit else.
        tile_pad: context around each tile, in lq pixels. Where the teachers see no further, no seam is left at all.
        precision: "fp32", "bf16" or "fp16" (autocast); None is what the option file gives teachers on line. bf16 moves
            the mean of the demo's teachers by 0.08 of 255 on average, a third of what rounding to 8 bits does.
        dtype: "uint8" clamps and rounds as an image file does; "float16" keeps the answer as it is, unclamped, as
            teachers on line give it.
    """

    x8: bool = False
    tile_size: int | None = None
    tile_pad: int = 32
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    dtype: StoreDtype = "uint8"

    def facts(self, options: Options) -> dict[str, Any]:
        """What a store remembers of it."""
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


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count`, from 1: every `count`-th image. 1 of 1 is the whole."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise MtkdError(f"There is no shard {self}: shards are counted from 1, as in 1/{max(self.count, 1)}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Shard from "3/16"."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise MtkdError(f"--shard {text} is no share: write its number and their count, such as --shard 3/16.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def path(self, targets: Path) -> Path:
        """Its file beside the store `targets`."""
        if self.count == 1:
            return targets
        return targets.with_name(f"{targets.name}.shard-{self.number:0{len(str(self.count))}d}-of-{self.count}")

    def indices(self, total: int) -> range:
        """Its images among `total`."""
        if self.count > total:
            raise MtkdError(f"{total} images cannot be shared out over {self.count} jobs; take {total} or fewer.")
        return range(self.number - 1, total, self.count)


WHOLE = Shard()


def launched(launcher: str, options: Options) -> tuple[Shard, torch.device]:
    """This process's share and device when `launcher` ("pytorch" or "slurm") started one process a device: its rank.

    Raises:
        MtkdError: the launcher's environment variables are not there.
    """
    keys = {"pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")}
    absent = [key for key in keys[launcher] if key not in os.environ]
    if absent:
        starter = {"pytorch": "torchrun --nproc_per_node N -m mtkd teach ...", "slurm": "srun mtkd teach ..."}[launcher]
        raise MtkdError(f"--launcher {launcher}: {absent[0]} is not set. Start the processes with `{starter}`.")
    rank, world, local = (int(os.environ[key]) for key in keys[launcher])
    return Shard(rank + 1, world), choose_device(options, local)


def choose_device(options: Options, local_rank: int = 0) -> torch.device:
    """The CUDA device of process `local_rank` on this machine; the CPU where there is none or `num_gpu` is 0."""
    if not torch.cuda.is_available() or options.num_gpu == 0:
        return torch.device("cpu")
    # slurm may show each process its own device alone.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def open_training_images(options: Options, progress: Callable[[int, int], None] | None = None) -> TrainingSet:
    """The training images of `options`, decoded once into the cache folder (`MTKD_HOME`, or the platform's)."""
    return open_training_set(
        _training_section(options).model_dump(),
        scale=options.scale,
        cache_dir=zoo.home().parent / "datasets",
        progress=progress,
    )


def _training_section(options: Options) -> TrainSetOptions:
    if options.datasets.train is None:
        raise MtkdError("The option file has no `datasets.train` section.")
    if isinstance(options.datasets.train, ItemTrainSetOptions):
        raise MtkdError(
            f"datasets.train.type is {options.datasets.train.type}, which makes its own crops; targets are made for "
            "the whole images of a PairedImageDataset."
        )
    return options.datasets.train


def _training_pairs(options: Options) -> PairedImages:
    """The training images where they lie, nothing decoded."""
    section = _training_section(options)
    return PairedImages(
        dataroot_gt=section.dataroot_gt,
        dataroot_lq=section.dataroot_lq,
        scale=options.scale,
        meta_info_file=section.meta_info_file,
        filename_tmpl=section.filename_tmpl,
        io_backend=section.io_backend,
        min_gt_size=section.gt_size,
    )


def fingerprint(options: Options, images: TrainingSet) -> dict[str, Any]:
    """What determines the targets of `options`: networks with their weights' hashes, in order, scale and lq images.

    An option file that names a store and no teachers is held to scale and images alone.
    """
    marks: dict[str, Any] = {"scale": options.scale, "images": images.lq.digest()}
    if not options.teachers:
        return marks
    marks["teachers"] = [{"name": name, **_weights(teacher)} for name, teacher in options.teachers.items()]
    marks["fusion"] = options.fusion
    if options.fusion is not None and options.fusion != "mean":
        marks["fusion"] = _weights(options.fusion)
    return marks


@torch.no_grad()
def teach(
    options: Options,
    path: Path,
    recipe: Recipe = PLAIN,
    *,
    shard: Shard = WHOLE,
    device: str | torch.device | None = None,
    progress: Say = print,
) -> ImageStore:
    """Write the targets of `options` for all its training images, at gt size, to the store `path`, or to a shard of it.

    Interrupted, it goes on where it stopped when called again with the same networks, images and recipe. A shard that
    is complete already is left as it is.

    Raises:
        MtkdError: `path` exists, weights are missing, the declared teachers do not make one image, the disk or the
            device is too small, or an answer is not finite.
    """
    _refuse_existing(path)
    device = _set_up(options, device)
    predict = _over_images(_Teacher(options, recipe, device), options, recipe, progress)
    out = shard.path(path)
    about = "targets" if shard.count == 1 else f"shard {shard}"
    with Progress("decoding the training images", progress, bar=shard.count == 1) as decoding:
        images = open_training_images(options, decoding)
    lq, gt, share = images.lq, images.gt, shard.indices(len(images.gt))
    facts = {"fingerprint": fingerprint(options, images), **recipe.facts(options)}
    if out.exists():
        _check_facts(ImageStore(out), facts, "Delete it to make it anew.")
        progress(f"{about}: {out} is complete already")
        return ImageStore(out)
    names, sizes = [gt.names[i] for i in share], [gt.sizes[i] for i in share]
    _check_disk(out, _bytes_to_write(out, sizes, recipe.dtype))
    writer = StoreWriter(out, names, sizes, facts, dtype=recipe.dtype, durable=True)
    try:
        missing = writer.missing()
        if len(missing) < len(share):
            progress(f"{about}: going on with {len(missing)} of {len(share)} images")
        pixels = list(accumulate(sizes[i][0] * sizes[i][1] for i in missing))
        with Progress(about, progress, bar=shard.count == 1) as made, Behind(workers=1, waiting=4) as later:
            for done, position in enumerate(missing, start=1):
                answer = predict(to_tensor(lq[share[position]], device))
                later(writer.put, position, _stored(answer, recipe, names[position]))
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
    progress: Say = print,
) -> None:
    """Say what `teach` with the same arguments would make, on what, and about how long it would take; write nothing.

    The time is that of the teachers on one crop of a training image, scaled by pixels; reading, rounding and writing
    are left out. On the CPU large images are slower by the pixel than small ones.

    Raises:
        MtkdError: what `teach` would refuse before it runs the teachers.
    """
    _refuse_existing(path)
    out = shard.path(path)
    if out.exists():
        raise MtkdError(f"{out} is complete already.")
    pairs = _training_pairs(options)
    share = shard.indices(len(pairs))
    sizes = [pairs.sizes[i] for i in share]
    left = missing_images(out, len(share))
    device = _set_up(options, device)
    teacher = _Teacher(options, recipe, device)

    scale = options.scale
    lq = to_tensor(pairs[share[0]].lq, device)
    side = _PROBE_SIDE.get(device.type, 64)
    if recipe.tile_size is not None:
        side = min(side, recipe.tile_size + 2 * recipe.tile_pad)
    top, left_edge = (max(length - side, 0) // 2 for length in lq.shape[-2:])
    crop = lq[..., top : top + side, left_edge : left_edge + side]
    seconds = _time(lambda: teacher(crop), device)
    pixels = sum(_pixels_run(sizes[i][0] // scale, sizes[i][1] // scale, recipe) for i in left)
    total = seconds / (crop.shape[-2] * crop.shape[-1]) * pixels * (8 if recipe.x8 else 1)

    size = _bytes_to_write(out, sizes, recipe.dtype)
    here = f" for shard {shard}" if shard.count > 1 else ""
    begun = "" if len(left) == len(share) else f", {len(share) - len(left)} of them made already"
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    progress(
        f"{len(share)} of {len(pairs)} images{here}{begun}: {sum(h * w for h, w in sizes) / 1e6:,.1f} megapixels\n"
        f"to write: {size / 1e9:.2f} GB of {recipe.dtype} to {out}; free there: {_free(out) / 1e9:.2f} GB\n"
        f"device: {device}{name}, {recipe.resolved_precision(options)}\n"
        f"time: about {_clock(total)}, from {seconds:.3f} s for an lq crop of {crop.shape[-2]}x{crop.shape[-1]}"
    )
    _check_disk(out, size)


def merge(options: Options, path: Path, *, progress: Say = print) -> ImageStore:
    """Make the store `path` of its finished shards, which are removed; no network runs. It can be interrupted.

    Raises:
        MtkdError: shards are missing, or were not made alike, or not for this option file.
    """
    _refuse_existing(path)
    command = f"mtkd teach -opt {options.file or 'FILE'}"
    pattern = re.compile(re.escape(path.name) + r"\.shard-\d+-of-(\d+)(\.partial)?")
    there = [pattern.fullmatch(file.name) for file in path.parent.glob("*")] if path.parent.is_dir() else []
    counts = sorted({int(match[1]) for match in there if match})
    if len(counts) != 1:
        problem = f"shards of {' and of '.join(map(str, counts))}" if counts else "no shards"
        raise MtkdError(
            f"{path.parent} holds {problem} of {path.name}, and all shards of one division are needed. "
            + ("Delete those of the other." if counts else f"Make them with `{command} --shard 1/N` and following.")
        )
    shards = [Shard(number, counts[0]) for number in range(1, counts[0] + 1)]
    with Progress("decoding the training images", progress) as decoding:
        images = open_training_images(options, decoding)
    names, total = images.gt.names, len(images.gt)
    absent = [shard for shard in shards if not shard.path(path).exists()]
    if absent:
        lacking = sum(len(missing_images(shard.path(path), len(shard.indices(total)))) for shard in absent)
        raise MtkdError(
            f"{len(absent)} of {len(shards)} shards of {path} are not finished, with {lacking} of {total} images still "
            "to make. Run (as one job or several, with the options of the other shards) `for k in "
            f"{' '.join(str(shard.number) for shard in absent)}; do {command} --shard $k/{len(shards)}; done`, see "
            f"that the files {path.name}.shard-* are in {path.parent}, and merge again."
        )
    stores = [ImageStore(shard.path(path)) for shard in shards]
    facts = {**stores[0].facts, "fingerprint": fingerprint(options, images)}
    for shard, store in zip(shards, stores, strict=True):
        _check_facts(store, facts, f"Delete it and make it again: `{command} --shard {shard}`, like the others.")
        if store.names != [names[i] for i in shard.indices(total)]:
            raise MtkdError(f"{store.path} holds the images of another shard than its name says; was it renamed?")
    dtype = stores[0].dtype
    _check_disk(path, _bytes_to_write(path, images.gt.sizes, dtype))
    writer = StoreWriter(path, names, images.gt.sizes, facts, dtype=dtype, durable=True)
    try:
        with Progress("merging", progress) as merged:
            missing = writer.missing()
            for done, index in enumerate(missing, start=1):
                writer.put(index, stores[index % len(stores)][index // len(stores)])
                merged(done, len(missing))
        finished = writer.finish()
    finally:
        writer.close()
    for store in stores:
        store.path.unlink()
    return finished


def open_targets(options: Options, images: TrainingSet) -> ImageStore:
    """The store `options.target_store`, checked against the run.

    Raises:
        MtkdError: there is no such store, or other teachers, images or another scale made it; what differs is named.
    """
    assert options.target_store is not None
    path = Path(options.target_store).expanduser()
    if not path.exists():
        shards = any(path.parent.glob(f"{glob.escape(path.name)}.shard-*"))
        remedy = "Shards of it do: `mtkd teach -opt FILE --merge`" if shards else "Make it with `mtkd teach -opt FILE`"
        raise MtkdError(f"target_store {path} does not exist. {remedy}.")
    store = ImageStore(path)
    stored, wanted = store.facts.get("fingerprint", {}), fingerprint(options, images)
    differing = [key for key in wanted if stored.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        raise MtkdError(
            f"target_store {path} was made by another run: its {', '.join(differing)} differ from the option file's "
            f"({key}: stored {stored.get(key)}, here {wanted[key]}). Make a new one with `mtkd teach -opt FILE`."
        )
    return store


def _set_up(options: Options, device: str | torch.device | None) -> torch.device:
    build.set_backends(options, sizes_vary=True)
    found = choose_device(options) if device is None else build.named_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


class _Teacher(nn.Module):
    """The one teacher of `options` on `device`, lq -> float32 sr, in the precision of `recipe`."""

    def __init__(self, options: Options, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        from mtkd.engine.report import autocast

        precision = recipe.resolved_precision(options)
        if precision == "fp16" and device.type != "cuda":
            raise MtkdError("fp16 needs a CUDA device; use --precision bf16 or fp32 on the CPU.")
        teachers = build.build_teachers(options)
        if len(teachers) != 1:
            raise MtkdError(
                f"{len(teachers)} teachers are declared ({', '.join(teachers)}); say with `fusion` how they become one."
            )
        self.autocast = partial(autocast, precision, device)
        self.memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
        (net,) = teachers.values()
        self.net = Frozen(net).to(device).to(memory_format=self.memory_format)

    def forward(self, lq: Tensor) -> Tensor:
        with self.autocast():
            sr = self.net(lq.contiguous(memory_format=self.memory_format))
        # Before tiles are joined or flips averaged, which would round once more.
        return sr.float()


def _over_images(teacher: _Teacher, options: Options, recipe: Recipe, say: Say) -> Predict:
    """`teacher` for images of any size."""
    whole = FittingTiles(teacher, scale=options.scale, tile_size=recipe.tile_size, tile_pad=recipe.tile_pad, say=say)
    predict = partial(self_ensemble, whole) if recipe.x8 else whole

    def run(lq: Tensor) -> Tensor:
        # Here too, because the memory of a run is estimated from what is set outside the network.
        with teacher.autocast():
            return predict(lq)

    return run


def _pixels_run(height: int, width: int, recipe: Recipe) -> float:
    """lq pixels that the teachers see of an image, with the context of its tiles where their size is given."""
    tile, context = recipe.tile_size, 2 * recipe.tile_pad
    if tile is None or max(height, width) <= tile + context:
        return height * width
    return height * width * (1 + context / tile) ** 2


def _stored(sr: Tensor, recipe: Recipe, name: str) -> NDArray[np.uint8] | NDArray[np.float16]:
    """(1, 3, H, W) as an (H, W, 3) array of the store's dtype."""
    kept = sr.half() if recipe.dtype == "float16" else sr
    if not kept.isfinite().all():
        raise MtkdError(
            f"The teachers' answer to {name} is not finite. In fp16 values above 65504 overflow: use --precision bf16 "
            "or fp32. In fp32, look at the weights of the teachers."
        )
    return to_image(sr) if recipe.dtype == "uint8" else kept[0].permute(1, 2, 0).cpu().numpy()


def _time(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call after a first that does not count: the best of as many as fit in two seconds, at most 5."""

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


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise MtkdError(f"{path} already exists; remove it, or name another target_store.")


def _check_facts(store: ImageStore, facts: dict[str, Any], remedy: str) -> None:
    differing = [key for key in store.facts | facts if store.facts.get(key) != facts.get(key)]
    if differing:
        key = differing[0]
        raise MtkdError(
            f"{store.path} was made otherwise: its {', '.join(differing)} differ ({key}: stored "
            f"{store.facts.get(key)}, here {facts.get(key)}). {remedy}"
        )


def _bytes_to_write(path: Path, sizes: Sequence[tuple[int, int]], dtype: StoreDtype) -> int:
    """Bytes of the images that the store at `path` still lacks; files of half-written stores are sparse."""
    return sum(sizes[i][0] * sizes[i][1] for i in missing_images(path, len(sizes))) * (3 if dtype == "uint8" else 6)


def _free(path: Path) -> int:
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(folder).free


def _check_disk(path: Path, nbytes: int) -> None:
    free = _free(path)
    if nbytes > free:
        raise MtkdError(
            f"{path} needs {nbytes / 1e9:.2f} GB more, and its disk has {free / 1e9:.2f} GB free. Make room, or put "
            "target_store elsewhere."
        )


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


class Progress:
    """How far a long job is: a bar on a terminal, else a line after the first image, now and then, and at the end."""

    def __init__(self, about: str, say: Say, *, bar: bool = True) -> None:
        self.about, self.say = about, say
        self._began, self._said = time.perf_counter(), 0.0
        self._bar = None
        if bar and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(TextColumn("{task.description}"), BarColumn())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, share: float | None = None) -> None:
        """`done` of `total` images are made, which is the `share` of the work."""
        share = done / total if share is None else share
        now = time.perf_counter()
        seconds = now - self._began
        left = f"{_clock(seconds / share * (1 - share))} left" if done < total else f"in {_clock(seconds)}"
        text = f"{self.about}: {done} of {total} images, {done / seconds:.3g} images/s, {left}"
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task(text, total=1.0)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=share, description=text)
        elif done in (1, total) or now - self._said >= _SAY_EVERY:
            self._said = now
            self.say(text)


def _weights(options: Any) -> dict[str, Any]:
    network = {"type": options.network.type, "args": build.plain(options.network.args)}
    return {"network": network, "sha256": _file_hash(options.pretrain), "param_key": options.param_key}


def _file_hash(source: str) -> str:
    digest = hashlib.sha256()
    with zoo.resolve(source).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
