"""Training folders -> image stores in a cache folder: decoded once, in parallel, reused as long as nothing changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mtkd.data.cache import cached, decode_all
from mtkd.data.paired import PairedImage, PairedImages
from mtkd.data.store import ImageStore, StoreWriter, cpus
from mtkd.data.unlabelled import UnlabelledImages, images_of_section

_RULE = "1: RGB uint8, gt cut to lq * scale, lq bicubic as MATLAB when there is no dataroot_lq"
_Images: TypeAlias = PairedImages | UnlabelledImages


@dataclass(frozen=True)
class TrainingSet:
    """The stores of one training set; image i of `lq` belongs to image i of `gt`, which is `scale` times as large.

    Attributes:
        gt: None where the photographs have no ground truth.
    """

    lq: ImageStore
    gt: ImageStore | None
    scale: int

    def __len__(self) -> int:
        return len(self.lq)

    @property
    def names(self) -> list[str]:
        """Of the images, in order."""
        return self.lq.names

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each gt, or of what a teacher makes of each lq."""
        return [(height * self.scale, width * self.scale) for height, width in self.lq.sizes]


def open_training_set(
    options: Mapping[str, Any],
    *,
    scale: int,
    cache_dir: str | os.PathLike[str],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingSet:
    """Stores of the images that a BasicSR data set section names, made in `cache_dir` or found there.

    The cache entry is keyed by the files' paths, sizes and modification times, the pairing, the scale and the decoding
    rule, so any change makes a new entry; old ones are never deleted. The entry appears by one rename when it is
    complete; every image in it is compared with its checksum whenever it is opened, and an entry that is damaged or
    lacks a file is made again. Processes that want the same entry at the same time wait for the first one to make it.

    Args:
        options: `dataroot_gt`, `dataroot_lq`, `meta_info_file`, `filename_tmpl`, `io_backend` as in `PairedImages`, and
            `gt_size`, which no image may be smaller than. Other keys are for others and ignored here. Without
            `dataroot_gt` the images of `dataroot_lq` are photographs without ground truth (`UnlabelledImages`).
        scale: gt side / lq side.
        cache_dir: made when it does not exist. An entry takes 3 bytes per pixel of all lq and gt images.
        workers: decoding threads; default is the number of CPUs this process may use.
        progress: called as progress(done, total) after each pair, in the calling thread; never when the entry exists.

    Raises:
        MtkdError: everything `PairedImages` or `UnlabelledImages` finds wrong, or files that cannot be decoded, all
            listed at once.
    """
    images = images_of_section(options, scale=scale)
    facts = _facts(images)
    return cached(
        cache_dir,
        facts,
        opened=lambda entry: _opened(entry, images),
        make=lambda folder: _decode(images, facts, folder, workers or cpus(), progress),
        what="The training images",
        source=_root(images),
    )


def _opened(entry: Path, images: _Images) -> TrainingSet:
    """The stores of `entry`, every image compared with its checksum."""
    lq = ImageStore(entry / "lq.safetensors")
    gt = ImageStore(entry / "gt.safetensors") if isinstance(images, PairedImages) else None
    lq.verify()
    if gt is not None:
        gt.verify()
    return TrainingSet(lq=lq, gt=gt, scale=images.scale)


def _root(images: _Images) -> Path:
    return images.dataroot_gt if isinstance(images, PairedImages) else images.dataroot_lq


def _facts(images: _Images) -> dict[str, Any]:
    return {
        "rule": _RULE,
        "scale": images.scale,
        "lq": "bicubic" if images.lq_paths is None else "files",
        "files": hashlib.sha256(json.dumps(images.stamps()).encode()).hexdigest(),
        "sizes": hashlib.sha256(json.dumps(images.sizes).encode()).hexdigest(),
        # Entries of pairs keep the key that they always had.
        **({} if isinstance(images, PairedImages) else {"gt": "none"}),
    }


def _decode(
    images: _Images,
    facts: dict[str, Any],
    folder: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    lq_sizes = [(height // images.scale, width // images.scale) for height, width in images.sizes]
    with ExitStack() as at_end:
        lq = StoreWriter(folder / "lq.safetensors", images.names, lq_sizes, facts)
        at_end.callback(lq.close)
        gt = None
        if isinstance(images, PairedImages):
            gt = StoreWriter(folder / "gt.safetensors", images.names, images.sizes, facts)
            at_end.callback(gt.close)

        def decode(i: int) -> None:
            image = images[i]
            lq.put(i, image.lq)
            if gt is not None and isinstance(image, PairedImage):
                gt.put(i, image.gt)

        decode_all(decode, len(images), _root(images), workers, progress)
        lq.finish()
        if gt is not None:
            gt.finish()
