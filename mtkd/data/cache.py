"""The cache of decoded images: an entry is made once, by one process, and made again when it is damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.paired import raise_problems
from mtkd.data.store import ImageStore
from mtkd.runtime.cached import Cached, touch

logger = logging.getLogger("mtkd")

T = TypeVar("T")
_DAY = 24 * 3600
_SOURCE = "source.json"
_STORES = ("lq", "gt", "answers")


def cached(
    cache_dir: str | os.PathLike[str],
    facts: Mapping[str, Any],
    *,
    opened: Callable[[Path], T],
    make: Callable[[Path], None],
    what: str,
    source: str | os.PathLike[str] = "",
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
        source: where they come from, for `mtkd cache`, which tells it.

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
            there = opened(entry)
            touch(entry)
            return there
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
                _fill(entry, make, source)
                there = opened(entry)
        return there
    except OSError as error:
        raise MtkdError(f"The image cache {cache} cannot be written: {error.strerror or error}.") from error


def entries(cache_dir: Path) -> list[Cached]:
    """What lies in `cache_dir`: entries, and what processes left there that were killed while they made one."""
    found = []
    for path in sorted(cache_dir.iterdir()) if cache_dir.is_dir() else ():
        key = re.fullmatch(r"([0-9a-f]{20})|\.([0-9a-f]{20})\.[\w.]+", path.name)
        if key is None or path.is_symlink() or not path.is_dir():
            continue
        about = _about(path) if key[1] else "left by a process that was ended"
        guard = partial(_nobody_makes, cache_dir / f"{key[1] or key[2]}.lock")
        found.append(Cached("images", path.name, about, path, path.stat().st_mtime, guard))
    return found


def _about(entry: Path) -> str:
    """Images, scale and source of an entry, as far as it tells them."""
    try:
        stores = [ImageStore(path) for name in _STORES if (path := entry / f"{name}.safetensors").is_file()]
    except MtkdError:
        stores = []
    if not stores:
        return "damaged"
    scale = stores[0].facts.get("scale")
    text = f"{len(stores[0])} images" if scale else f"answers to {len(stores[0])} images"
    text += f" at x{scale}" if scale else ""
    try:
        return f"{text}, {json.loads((entry / _SOURCE).read_text(encoding='utf-8'))['source']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{text}: {', '.join(stores[0].names[:3])}, ..."


@contextmanager
def _nobody_makes(lock: Path) -> Iterator[str]:
    """Hold the lock of an entry, if nobody does; gives why not, or ""."""
    with open(lock, "a") as file:
        why = ""
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            why = "another process makes it"
        except (ImportError, OSError):
            pass
        yield why


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


def _fill(entry: Path, make: Callable[[Path], None], source: str | os.PathLike[str]) -> None:
    _remove_leftovers(entry)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
    try:
        make(temporary)
        if source:
            (temporary / _SOURCE).write_text(json.dumps({"source": os.path.abspath(source)}), encoding="utf-8")
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
