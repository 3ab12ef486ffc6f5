"""What the zoo keeps in the folder of weights, for `mtkd cache`: converted weights, and what transfers have left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from mtkd.runtime.cached import Cached
from mtkd.zoo.table import ENTRIES


def entries(folder: Path) -> list[Cached]:
    """Converted weights and downloads in `folder`. Only what bears the name of an entry or of its published file is
    ours; the record `NAME.json` beside weights stays when they go, because it knows which file came the first time.
    """
    found = []
    for item in ENTRIES.values():
        path = folder / f"{item.name}.safetensors"
        if path.is_file() and not item.shipped:
            about = f"{item.arch.rpartition(':')[2]}{f' x{item.scale}' if item.scale else ''}, trained on {item.data}"
            guard = _guard(folder, item.name)
            found.append(Cached("weights", f"zoo:{item.name}", about, path, path.stat().st_mtime, guard))
    return [*found, *_downloads(folder)]


def _downloads(folder: Path) -> Iterator[Cached]:
    names: dict[str, list[str]] = {}
    for item in ENTRIES.values():
        for source in item.sources:
            names.setdefault(source.file, []).append(item.name)
    place = folder / "downloads"
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        # The longest, where the name of one file begins that of another.
        file = max((name for name in names if _is_of(path.name, name)), key=len, default=None)
        if file is None or not path.is_file():
            continue
        state = "a transfer that has not ended" if ".part" in path.name[len(file) :] else "as it was published"
        state = "its hash was wrong" if ".bad-" in path.name[len(file) :] else state
        about = f"{', '.join(names[file][:3])}{', ...' if len(names[file]) > 3 else ''}: {state}"
        guard = _guard(folder, f"downloads-{file}")
        yield Cached("downloads", path.name, about, path, path.stat().st_mtime, guard)


def _is_of(name: str, file: str) -> bool:
    return name == file or name.startswith((f"{file}.bad-", f"{file}.")) and (".part" in name or ".bad-" in name)


def _guard(folder: Path, name: str) -> Callable[[], AbstractContextManager[str]]:
    """Holds the lock of the zoo for `name`; see `cache._locked`."""

    @contextlib.contextmanager
    def guard() -> Iterator[str]:
        from filelock import FileLock, Timeout

        path = folder / "downloads" / f".{name}.lock"
        why, lock = "", FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            why = "another process fetches or converts it"
        except OSError as error:
            why = f"its lock cannot be taken: {error.strerror or error}"
        try:
            yield why
        finally:
            lock.release()

    return guard
