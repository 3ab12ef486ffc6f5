"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONG = 200
"""Bytes of a name to which nothing can be added: file systems take 255."""


@contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends, and is removed when the block fails.

    A reader of `path` sees the old file or the new one, never a part of it. Missing folders are made. The file gets the
    rights of the umask. A killed process leaves its temporary file behind; `is_temporary` recognises it.

    Args:
        durable: flush the content to the disk before it gets its name, so that this also holds when the machine stops.

    Raises:
        OSError: the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_of(path)
    try:
        # Some libraries make files for their owner alone, useless in a shared folder: note the umask's rights first.
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        if durable:
            flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _temporary_of(path: Path) -> Path:
    """A new name beside `path` that `is_temporary` recognises."""
    name = path.name if len(os.fsencode(path.name)) <= _LONG else "long"
    # Processes in containers on one network disk may have one number.
    return path.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether `path` is the unfinished file of a writer."""
    return path.name.endswith(".tmp")


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
