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
from typing import Any

from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.paired import PairedImages, raise_problems
from mtkd.data.store import ImageStore, StoreWriter, cpus

logger = logging.getLogger("mtkd")

_RULE = "1: RGB uint8, gt cut to lq * scale, lq bicubic as MATLAB when there is no dataroot_lq"
_DAY = 24 * 3600


@dataclass(frozen=True)
class TrainingSet:
    """The stores of one training set; image i of `lq` belongs to image i of `gt`, which is `scale` times as large."""

    lq: ImageStore
    gt: ImageStore


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
            `gt_size`, which no image may be smaller than. Other keys are for others and ignored here.
        scale: gt side / lq side.
        cache_dir: made when it does not exist. An entry takes 3 bytes per pixel of all lq and gt images.
        workers: decoding threads; default is the number of CPUs this process may use.
        progress: called as progress(done, total) after each pair, in the calling thread; never when the entry exists.

    Raises:
        MtkdError: everything `PairedImages` finds wrong, or files that cannot be decoded, all listed at once.
    """
    pairs = PairedImages.of_section(options, scale=scale)
    facts = _facts(pairs)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    cache = expanded(cache_dir)
    entry = cache / key
    try:
        cache.mkdir(parents=True, exist_ok=True)
        found = _opened(entry)
        if found is None:
            with _locked(cache / f"{key}.lock"):
                # Another process may have made it in the meantime.
                found = _opened(entry)
                if found is None:
                    _discard(entry)
                    _decode(pairs, facts, entry, workers or cpus(), progress)
        return found or _stores(entry)
    except OSError as error:
        raise MtkdError(f"The image cache {cache} cannot be written: {error.strerror or error}.") from error


def _stores(entry: Path) -> TrainingSet:
    return TrainingSet(lq=ImageStore(entry / "lq.safetensors"), gt=ImageStore(entry / "gt.safetensors"))


def _opened(entry: Path) -> TrainingSet | None:
    """The stores of `entry`, every image compared with its checksum; None where they must be made (again)."""
    if not entry.is_dir():
        return None
    try:
        found = _stores(entry)
        found.lq.verify()
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


def _facts(pairs: PairedImages) -> dict[str, Any]:
    return {
        "rule": _RULE,
        "scale": pairs.scale,
        "lq": "bicubic" if pairs.lq_paths is None else "files",
        "files": hashlib.sha256(json.dumps(pairs.stamps()).encode()).hexdigest(),
        "sizes": hashlib.sha256(json.dumps(pairs.sizes).encode()).hexdigest(),
    }


def _decode(
    pairs: PairedImages,
    facts: dict[str, Any],
    entry: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    _remove_leftovers(entry)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
    lq_sizes = [(height // pairs.scale, width // pairs.scale) for height, width in pairs.sizes]
    with ExitStack() as at_end:
        at_end.callback(shutil.rmtree, temporary, ignore_errors=True)
        lq = StoreWriter(temporary / "lq.safetensors", pairs.names, lq_sizes, facts)
        at_end.callback(lq.close)
        gt = StoreWriter(temporary / "gt.safetensors", pairs.names, pairs.sizes, facts)
        at_end.callback(gt.close)

        def decode(i: int) -> None:
            pair = pairs[i]
            lq.put(i, pair.lq)
            gt.put(i, pair.gt)

        problems: dict[int, str] = {}
        # Threads suffice: OpenCV, torch and file writing all release the interpreter lock.
        with ThreadPoolExecutor(workers) as pool:
            jobs = {pool.submit(decode, i): i for i in range(len(pairs))}
            try:
                for done, job in enumerate(as_completed(jobs), start=1):
                    try:
                        job.result()
                    except MtkdError as error:
                        problems[jobs[job]] = str(error)
                    if progress is not None:
                        progress(done, len(pairs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        raise_problems(f"The images of {pairs.dataroot_gt} cannot be used", [problems[i] for i in sorted(problems)])
        lq.finish()
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
