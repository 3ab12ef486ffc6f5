"""Training folders -> image stores in a cache folder: decoded once, in parallel, reused as long as nothing changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.paired import PairedImage, PairedImages, raise_problems
from mtkd.data.store import ImageStore, StoreWriter, cpus
from mtkd.data.unlabelled import UnlabelledImages, images_of_section

logger = logging.getLogger("mtkd")

_RULE = "1: RGB uint8, gt cut to lq * scale, lq bicubic as MATLAB when there is no dataroot_lq"
_DAY = 24 * 3600
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
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    cache = expanded(cache_dir)
    entry = cache / key
    try:
        cache.mkdir(parents=True, exist_ok=True)
        found = _opened(entry, images)
        if found is None:
            with _locked(cache / f"{key}.lock"):
                # Another process may have made it in the meantime.
                found = _opened(entry, images)
                if found is None:
                    _discard(entry)
                    _decode(images, facts, entry, workers or cpus(), progress)
        return found or _stores(entry, images)
    except OSError as error:
        raise MtkdError(f"The image cache {cache} cannot be written: {error.strerror or error}.") from error


def _stores(entry: Path, images: _Images) -> TrainingSet:
    gt = ImageStore(entry / "gt.safetensors") if isinstance(images, PairedImages) else None
    return TrainingSet(lq=ImageStore(entry / "lq.safetensors"), gt=gt, scale=images.scale)


def _opened(entry: Path, images: _Images) -> TrainingSet | None:
    """The stores of `entry`, every image compared with its checksum; None where they must be made (again)."""
    if not entry.is_dir():
        return None
    try:
        found = _stores(entry, images)
        found.lq.verify()
        if found.gt is not None:
            found.gt.verify()
        return found
    except MtkdError as error:
        logger.warning("%s The training images are decoded again.", str(error).partition(" Delete it")[0])
        return None


def _discard(entry: Path) -> None:
    """Remove a damaged entry. Processes that have it mapped keep their view."""
    if entry.is_dir():
        damaged = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
        entry.rename(damaged / "damaged")
        shutil.rmtree(damaged, ignore_errors=True)


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
    entry: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    _remove_leftovers(entry)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
    lq_sizes = [(height // images.scale, width // images.scale) for height, width in images.sizes]
    with ExitStack() as at_end:
        at_end.callback(shutil.rmtree, temporary, ignore_errors=True)
        lq = StoreWriter(temporary / "lq.safetensors", images.names, lq_sizes, facts)
        at_end.callback(lq.close)
        gt = None
        if isinstance(images, PairedImages):
            gt = StoreWriter(temporary / "gt.safetensors", images.names, images.sizes, facts)
            at_end.callback(gt.close)

        def decode(i: int) -> None:
            image = images[i]
            lq.put(i, image.lq)
            if gt is not None and isinstance(image, PairedImage):
                gt.put(i, image.gt)

        problems: dict[int, str] = {}
        # Threads suffice: OpenCV, torch and file writing all release the interpreter lock.
        with ThreadPoolExecutor(workers) as pool:
            jobs = {pool.submit(decode, i): i for i in range(len(images))}
            try:
                for done, job in enumerate(as_completed(jobs), start=1):
                    try:
                        job.result()
                    except MtkdError as error:
                        problems[jobs[job]] = str(error)
                    if progress is not None:
                        progress(done, len(images))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        root = images.dataroot_gt if isinstance(images, PairedImages) else images.dataroot_lq
        raise_problems(f"The images of {root} cannot be used", [problems[i] for i in sorted(problems)])
        lq.finish()
        if gt is not None:
            gt.finish()
        # mkdtemp lets only the owner in; a cache may be shared.
        temporary.chmod(0o755)
        try:
            temporary.rename(entry)
        except OSError:
            # Without working locks (some network file systems) another process may have been first.
            if not entry.is_dir():
                raise


def _remove_leftovers(entry: Path) -> None:
    for folder in entry.parent.glob(f".{entry.name}.*"):
        if time.time() - folder.stat().st_mtime > _DAY:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock, which ends with the process. Without locks go on: renaming keeps the cache sound.

    Not filelock, with which the zoo locks its folder: where a file system has no locks, it waits for a file to vanish,
    and that of a killed process never does.
    """
    with open(path, "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield
