"""A thing in a cache folder, as `mtkd cache` lists and removes it."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path


def _free() -> AbstractContextManager[str]:
    return nullcontext("")


@dataclass(frozen=True)
class Cached:
    """One entry of a cache.

    Attributes:
        kind: "images", "weights", "downloads" or "logs".
        name: unique in its kind.
        about: what it belongs to, for readers.
        path: a file or folder of ours.
        used: when it was made or last used, seconds since 1970.
        guard: a block in which nobody makes it; it gives why it must stay, "" where it may go.
    """

    kind: str
    name: str
    about: str
    path: Path
    used: float
    guard: Callable[[], AbstractContextManager[str]] = field(default=_free, compare=False)

    @property
    def nbytes(self) -> int:
        """What it takes of the disk, as far as its files say."""
        return size_of(self.path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(inside) for inside in path.iterdir())
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def remove(entry: Cached) -> str:
    """Remove `entry`; the reason where somebody uses it and it stays, else "".

    A folder gets another name first, so that nobody finds half of it.

    Raises:
        OSError: the disk refuses.
    """
    with entry.guard() as why:
        why = why or used_by(entry.path)
        if why:
            return why
        if not entry.path.is_dir() or entry.path.is_symlink():
            entry.path.unlink(missing_ok=True)
            return ""
        away = entry.path.with_name(f".{entry.path.name.lstrip('.')}.{secrets.token_hex(4)}")
        entry.path.rename(away)
        shutil.rmtree(away)
    return ""


def used_by(path: Path) -> str:
    """A reason to leave `path` alone: a process of this machine has a file of it mapped; "" where none is known.

    Linux tells it of the user's own processes. What a process has mapped it keeps, but others that it starts later, as
    the workers of a training, would look for the files.
    """
    name, proc = os.path.realpath(path), Path("/proc")
    for process in proc.iterdir() if proc.is_dir() else ():
        if not process.name.isdecimal() or process.name == str(os.getpid()):
            continue
        with suppress(OSError):  # another user's, or it has ended
            text = (process / "maps").read_text(encoding="utf-8", errors="replace")
            if f" {name}\n" in text or f" {name}/" in text:
                return f"process {process.name} uses it"
    return ""


def touch(path: Path) -> None:
    """Note that `path` is used now; nothing where it belongs to somebody else."""
    with suppress(OSError):
        os.utime(path)


def age(used: float, now: float | None = None) -> str:
    """How long ago `used` was.

    Example:
        >>> age(0, 90), age(0, 5400), age(0, 3 * 86400)
        ('1 min', '1 h', '3 days')
    """
    seconds = max((time.time() if now is None else now) - used, 0.0)
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds // 3600:.0f} h"
    return f"{seconds // 86400:.0f} days"
