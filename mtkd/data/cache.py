"""The cache of decoded images: an entry is made once, by one process, and made again when it is damaged."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.paired import raise_problems

logger = logging.getLogger("mtkd")

T = TypeVar("T")
_DAY = 24 * 3600


def cached(
    cache_dir: str | os.PathLike[str],
    facts: Mapping[str, Any],
    *,
    opened: Callable[[Path], T],
    make: Callable[[Path], None],
    what: str,
) -> T:
    """`opened(entry)` of the entry that belongs to `facts`; `make(folder)` fills it where there is none.

    The entry appears by one rename when it is complete. Processes that want the same one at the same time wait for the
    first to make it. Old entries are never deleted.

    Args:
        facts: what the contents follow from, as JSON takes it.
        opened: opens the files of an entry and compares them with their checksums; where it raises MtkdError, the entry
            is made again.
        make: writes the files into an empty folder.
        what: the images, for the warning that they are decoded again.

    Raises:
        MtkdError: the cache cannot be written, or `make` cannot go on.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    cache = expanded(cache_dir)
    entry = cache / key

    def found() -> T | None:
        if not entry.is_dir():
            return None
        try:
            return opened(entry)
        except MtkdError as error:
            logger.warning("%s %s are decoded again.", str(error).partition(" Delete it")[0], what)
            return None

    try:
        cache.mkdir(parents=True, exist_ok=True)
        if (there := found()) is not None:
            return there
        with _locked(cache / f"{key}.lock"):
            # Another process may have made it in the meantime.
            if (there := found()) is None:
                _discard(entry)
                _fill(entry, make)
                there = opened(entry)
        return there
    except OSError as error:
        raise MtkdError(f"The image cache {cache} cannot be written: {error.strerror or error}.") from error


def decode_all(
    decode: Callable[[int], None],
    count: int,
    root: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Call `decode(i)` for `count` images in threads; `progress(done, count)` after each, in this thread.

    Raises:
        MtkdError: every image of `root` for which `decode` raised one, listed.
    """
    problems: dict[int, str] = {}
    # Threads suffice: OpenCV, torch and file writing all release the interpreter lock.
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(decode, i): i for i in range(count)}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                try:
                    job.result()
                except MtkdError as error:
                    problems[jobs[job]] = str(error)
                if progress is not None:
                    progress(done, count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    raise_problems(f"The images of {root} cannot be used", [problems[i] for i in sorted(problems)])


def _fill(entry: Path, make: Callable[[Path], None]) -> None:
    _remove_leftovers(entry)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
    try:
        make(temporary)
        # mkdtemp lets only the owner in; a cache may be shared.
        temporary.chmod(0o755)
        try:
            temporary.rename(entry)
        except OSError:
            # Without working locks (some network file systems) another process may have been first.
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _discard(entry: Path) -> None:
    """Remove a damaged entry. Processes that have it mapped keep their view."""
    if entry.is_dir():
        damaged = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
        entry.rename(damaged / "damaged")
        shutil.rmtree(damaged, ignore_errors=True)


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
