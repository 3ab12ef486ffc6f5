"""Several jobs share the making of targets: each writes the images of its shard to a file, `merge` makes one of them.

The jobs need nothing of each other while they run, not even a common disk.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.data.store import ImageStore, StoreWriter, missing_images
from mtkd.runtime.device import choose_device
from mtkd.runtime.launch import place_of
from mtkd.runtime.progress import Progress, Say
from mtkd.targets.store_check import (
    bytes_to_write,
    check_disk,
    check_facts,
    complete_already,
    exists,
    fingerprint,
    open_training_images,
)


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
        if len(text) > 18:
            raise MtkdError(f"--shard {text[:18]}...: there are not so many shards.")
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
    here = place_of(launcher, "teach")
    return Shard(here.rank + 1, here.world_size), choose_device(options.num_gpu, here.local_rank)


def merge(options: Options, path: Path, *, progress: Say = print) -> ImageStore:
    """Make the store `path` of its finished shards, which are removed; no network runs. It can be interrupted, also
    between the two: a store that is complete already is left as it is.

    Raises:
        MtkdError: shards are missing, damaged, or were not made alike, or not for this option file.
    """
    if exists(path):
        return _merged_already(options, path, progress)
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
        check_facts(store, facts, f"Delete it and make it again: `{command} --shard {shard}`, like the others.")
        if store.names != [names[i] for i in shard.indices(total)]:
            raise MtkdError(f"{store.path} holds the images of another shard than its name says; was it renamed?")
        store.verify()
    dtype = stores[0].dtype
    check_disk(path, bytes_to_write(path, images.gt.sizes, dtype))
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
        store.path.unlink(missing_ok=True)
    return finished


def _merged_already(options: Options, path: Path, progress: Say) -> ImageStore:
    """The finished store `path`, checked; what is left of the shards that it was made of is removed."""
    with Progress("decoding the training images", progress) as decoding:
        images = open_training_images(options, decoding)
    merged = complete_already(path, {**ImageStore(path).facts, "fingerprint": fingerprint(options, images)})
    progress(f"targets: {path} is complete already")
    for left in sorted(path.parent.glob(f"{glob.escape(path.name)}.shard-*-of-*[0-9]")):
        try:
            check_facts(ImageStore(left), merged.facts, "")
        except MtkdError:
            progress(f"{left} is no shard of {path}, and is left as it is")
            continue
        left.unlink(missing_ok=True)
    return merged
