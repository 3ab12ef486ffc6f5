"""Make one store of finished shards."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from mtkd.build import open_training_images
from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.data.store import ImageStore, StoreWriter, missing_images
from mtkd.runtime.progress import Log, Progress
from mtkd.targets.shards import Shard
from mtkd.targets.store_check import (
    bytes_to_write,
    check_disk,
    check_facts,
    complete_already,
    exists,
    fingerprint,
)


def merge(options: Options, path: Path, *, progress: Log = print) -> ImageStore:
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
            f"{path.parent} holds {problem} of {path.name}; needed are all shards of one division. "
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
            raise MtkdError(f"{store.path} does not hold the images of the shard in its name. Was the file renamed?")
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


def _merged_already(options: Options, path: Path, progress: Log) -> ImageStore:
    """The finished store `path`, checked; what is left of the shards that it was made of is removed."""
    with Progress("decoding the training images", progress) as decoding:
        images = open_training_images(options, decoding)
    merged = complete_already(path, {**ImageStore(path).facts, "fingerprint": fingerprint(options, images)})
    progress(f"targets: {path} is complete already")
    for left in sorted(path.parent.glob(f"{glob.escape(path.name)}.shard-*-of-*[0-9]")):
        try:
            check_facts(ImageStore(left), merged.facts, "")
        except MtkdError:
            progress(f"{left} is not a shard of {path}, and is left as it is")
            continue
        left.unlink(missing_ok=True)
    return merged
