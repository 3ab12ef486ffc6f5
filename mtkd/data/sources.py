"""Sources of image files, a folder or a BasicSR lmdb, with one interface."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from mtkd.contracts import MtkdError
from mtkd.data.headers import Header, read_header
from mtkd.data.images import IMAGE_SUFFIXES, decode_image, list_images, read_bytes, read_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_META_LINE = re.compile(r"(?P<name>\S.*?)\s+\((?P<height>\d+),\s*(?P<width>\d+)(,\s*\d+)?\)(\s+\d+)?\s*")
_LONGEST_META = 1 << 28
"""Bytes; ten million names."""


def read_meta_info(path: Path) -> list[tuple[str, tuple[int, int] | None]]:
    """(file name, (height, width) or None) from each line of a BasicSR meta_info file, `NAME.png (480,480,3)`.

    Names may hold blanks and brackets. What follows a name without size is ignored if the first word
    is an image's name; else the whole line is the name. Blank lines and a byte order mark are not names.

    Raises:
        MtkdError: the file cannot be read, is not UTF-8 text, or too long to be a list of names.
    """
    try:
        if path.stat().st_size > _LONGEST_META:
            raise MtkdError(f"{path} has more than {_LONGEST_META:,d} bytes, and a meta_info file is a list of names.")
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise MtkdError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    named: list[tuple[str, tuple[int, int] | None]] = []
    for line in filter(str.strip, lines):
        if (found := _META_LINE.fullmatch(line)) is not None:
            named.append((found["name"], (_whole(found["height"]), _whole(found["width"]))))
            continue
        first = line.split()[0]
        named.append((first if first.lower().endswith(IMAGE_SUFFIXES) else line.strip(), None))
    return named


def _whole(digits: str) -> int:
    # No image has a side of more digits, and Python refuses to read thousands of them.
    return int(digits[:18])


class ImageSource(Protocol):
    """Images with the paths `root / NAME.png`."""

    root: Path

    def paths(self) -> list[Path]:
        """All images, sorted by name."""
        ...

    def has(self, path: Path) -> bool:
        """There is an image at `path`."""
        ...

    def size(self, path: Path) -> tuple[int, int]:
        """Height and width without decoding."""
        ...

    def orientation(self, path: Path) -> int:
        """The EXIF tag that is applied to the image, 1 for none."""
        ...

    def read(self, path: Path) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, see `read_image`."""
        ...

    def stamp(self, path: Path) -> list[Any]:
        """What changes when the image at `path` does: its absolute path, a size and a modification time."""
        ...


class FolderImages:
    """Image files directly in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._headers: dict[Path, Header] = {}

    def paths(self) -> list[Path]:
        return list_images(self.root)

    def has(self, path: Path) -> bool:
        try:
            return path.is_file()
        except (OSError, ValueError):
            # Longer than the system takes, or a name that none can have.
            return False

    def size(self, path: Path) -> tuple[int, int]:
        return self._header(path).size

    def orientation(self, path: Path) -> int:
        return self._header(path).orientation

    def _header(self, path: Path) -> Header:
        found = self._headers.get(path)
        if found is None:
            found = self._headers[path] = replace(read_header(path), profile=None)
        return found

    def read(self, path: Path) -> NDArray[np.uint8]:
        return read_image(path)

    def stamp(self, path: Path) -> list[Any]:
        facts = path.stat()
        return [str(path.resolve()), facts.st_size, facts.st_mtime_ns]


class LmdbImages:
    """A folder NAME.lmdb made by BasicSR's `make_lmdb_from_imgs` or `LmdbMaker`.

    Its `meta_info.txt` has a line `NAME.png (height,width,channels) LEVEL` for every image; NAME is the key of the
    encoded file in the data base. Sizes are taken from that text.

    Raises:
        MtkdError: the folder is not such an lmdb, lmdb is not installed, or a line has another form.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.suffix != ".lmdb" or not (root / "data.mdb").is_file():
            raise MtkdError(
                f"{root} is not an lmdb. With `io_backend: {{type: lmdb}}` each data root is a folder whose name ends "
                "in .lmdb and that holds data.mdb and meta_info.txt. For a folder of images write `type: disk`."
            )
        meta = root / "meta_info.txt"
        self._sizes: dict[Path, tuple[int, int]] = {}
        for name, size in read_meta_info(meta):
            if size is None:
                raise MtkdError(
                    f"{meta}: the line of {name!r} is not of the form `NAME.png (height,width,channels) 1`. Make the "
                    "lmdb again."
                )
            self._sizes[root / name] = size
        if not self._sizes:
            raise MtkdError(f"{meta} names no image. Make the lmdb again.")
        self._environment = _open(root)

    def paths(self) -> list[Path]:
        return sorted(self._sizes, key=self._key)

    def has(self, path: Path) -> bool:
        return path in self._sizes

    def size(self, path: Path) -> tuple[int, int]:
        return self._sizes[path]

    def orientation(self, path: Path) -> int:
        return 1

    def read(self, path: Path) -> NDArray[np.uint8]:
        with self._environment.handle.begin() as transaction:
            data = transaction.get(self._key(path).encode())
        if data is None:
            raise MtkdError(f"{self.root} has no image with key {self._key(path)!r}, which its meta_info.txt names.")
        return decode_image(data, path)

    def stamp(self, path: Path) -> list[Any]:
        facts = (self.root / "data.mdb").stat()
        return [str(path.resolve()), facts.st_size, facts.st_mtime_ns]

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).with_suffix("").as_posix()


class _Environment:
    """An open data base, closed with its last user."""

    def __init__(self, root: Path) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise MtkdError("`io_backend: {type: lmdb}` needs the package lmdb: `pip install lmdb`.") from error
        try:
            self.handle = lmdb.open(str(root), readonly=True, lock=False, readahead=False, max_spare_txns=32)
        except lmdb.Error as error:
            raise MtkdError(f"{root} cannot be opened: {error}. Make the lmdb again.") from error

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.handle.close()


_OPEN: WeakValueDictionary[str, _Environment] = WeakValueDictionary()
"""By real path: lmdb refuses to open one data base twice in a process, and two sets may share one."""


def _open(root: Path) -> _Environment:
    where = os.path.realpath(root)
    found = _OPEN.get(where)
    if found is None:
        found = _OPEN[where] = _Environment(root)
    return found
