"""Archives from outside, zip and tar: read entry by entry, in memory. No name in them is ever used as a path."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from mtkd.contracts import MtkdError
from mtkd.runtime import given

LARGEST_GAIN = 20
"""Times its own size (and 64 MB) that an archive may unpack to; weights and images hardly shrink at all."""
MOST_ENTRIES = 1 << 20
"""Entries of an archive; a table of more of them could fill the memory."""
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors that are the disk's and not the archive's."""


class Opened(NamedTuple):
    """An open archive: names of its regular files, and functions of a name."""

    names: list[str]
    size_of: Callable[[str], int]
    open: Callable[[str], Any]


def most_bytes(archive: Path) -> int:
    """Bytes that `archive` may unpack to, by its own size."""
    return LARGEST_GAIN * archive.stat().st_size + (64 << 20)


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[Opened]:
    """Open a zip or a tar (bare, gzip, bzip2 or xz), which its first bytes show to be one.

    Links and devices are left out: only the bytes of regular files can be read.

    Raises:
        MtkdError: the archive is damaged, of another kind, holds a path that leads outside its folder or more entries
            than `MOST_ENTRIES`, or, as a packed tar, unpacks to more than `most_bytes`.
    """
    with _damage_of(archive), _opened(archive) as found:
        outside = [name for name in found.names if _escapes(name)]
        if outside:
            raise MtkdError(f"{archive} is refused: its entry {outside[0]!r} would be written outside its folder.")
        yield found


def read(archive: Path, wanted: Callable[[str], bool], *, largest: int) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of the regular files whose name is `wanted`, in the order of the archive.

    Args:
        largest: bytes; an entry that claims more is refused.

    Raises:
        MtkdError: as `opened`; or an entry is too large, or all together unpack to more than `most_bytes`.
    """
    left = most_bytes(archive)
    with opened(archive) as found:
        for name in filter(wanted, found.names):
            size = found.size_of(name)
            left -= size
            if size > largest:
                raise MtkdError(f"{archive} is refused: {name} claims {size:,} bytes; {largest:,} are allowed.")
            if left < 0:
                raise MtkdError(f"{archive} is refused: it unpacks to more than {LARGEST_GAIN} times its size.")
            with found.open(name) as file:
                yield name, file.read()


def names(archive: Path) -> list[str]:
    """Names of the regular files.

    Raises:
        MtkdError: as `opened`.
    """
    with opened(archive) as found:
        return found.names


@contextlib.contextmanager
def _damage_of(archive: Path) -> Iterator[None]:
    """Turn what a broken archive raises, which may be any exception, into an MtkdError."""
    try:
        yield
    except MtkdError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK):
            raise
        raise MtkdError(
            f"{archive} is damaged, truncated, encrypted or packed in an unknown way "
            f"({type(error).__name__}: {error}). Fetch it again."
        ) from error


def _escapes(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else False


class _Bounded:
    """A file that is unpacked as it is read, of which at most `most` bytes are read."""

    def __init__(self, source: IO[bytes], most: int, archive: Path) -> None:
        self.source, self.most, self.archive = source, most, archive
        self.tell = source.tell

    def read(self, count: int = -1) -> bytes:
        left = self.most - self.tell()
        block = self.source.read(left + 1 if count < 0 else min(count, left + 1))
        self._check(self.tell())
        return block

    def seek(self, position: int, whence: int = 0) -> int:
        self._check(position + (self.tell() if whence == 1 else 0))
        return self.source.seek(position, whence)

    def _check(self, position: int) -> None:
        if position > self.most:
            raise MtkdError(f"{self.archive} is refused: it unpacks to more than {LARGEST_GAIN} times its size.")


_UNPACK: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Opened]:
    given.check_readable(archive)
    with open(archive, "rb") as file:
        head = file.read(512)
    unpack = next((function for magic, function in _UNPACK.items() if head.startswith(magic)), None)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(archive) as opened:
            found = opened.infolist()
            _check_number(archive, len(found))
            names = [info.filename for info in found if not info.is_dir()]
            yield Opened(names, lambda name: opened.getinfo(name).file_size, opened.open)
    elif unpack is not None or head[257:262] == b"ustar":
        with contextlib.ExitStack() as stack:
            source: Any = None
            if unpack is not None:
                source = _Bounded(stack.enter_context(unpack(archive)), most_bytes(archive), archive)
            tar = stack.enter_context(tarfile.open(archive, fileobj=source, mode="r:"))
            files: list[tarfile.TarInfo] = []
            for number, info in enumerate(tar, start=1):
                _check_number(archive, number)
                files += [info] if info.isfile() else []
            # By name, tarfile would search all entries, and could find a link.
            last = {info.name: info for info in files}
            names = [info.name for info in files]
            yield Opened(names, lambda name: last[name].size, lambda name: tar.extractfile(last[name]))
    else:
        raise MtkdError(f"{archive} is neither a zip nor a tar archive, or is truncated. Fetch it again.")


def _check_number(archive: Path, number: int) -> None:
    if number > MOST_ENTRIES:
        raise MtkdError(f"{archive} is refused: it has more than {MOST_ENTRIES:,} entries.")
