"""Image files in folders and archives that a user has, whatever their layout."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mtkd.contracts import MtkdError
from mtkd.data.images import IMAGE_SUFFIXES, read_bytes
from mtkd.runtime import archives, given

LARGEST = 1 << 28
"""Bytes of an encoded image; one of 90 megapixels that nothing shrinks has so many."""


@dataclass(frozen=True)
class Incoming:
    """One image file: the name it has inside `source`, and its bytes, or the file where they are."""

    source: Path
    name: str
    file: Path | None = None
    data: bytes = b""

    def __str__(self) -> str:
        return str(self.file) if self.file is not None else f"{self.name} in {self.source}"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            MtkdError: the file cannot be read, or is larger than any image.
        """
        if self.file is None:
            return self.data
        if self.file.stat().st_size > LARGEST:
            raise MtkdError(f"{self.file} has more than {LARGEST:,} bytes, and no image of a known set has.")
        return read_bytes(self.file)


def check_source(source: Path) -> None:
    """Check that `source` is a folder or a file.

    Raises:
        MtkdError: nothing is there, or it is a pipe or a device.
    """
    given.check_readable(source)
    if not source.exists():
        raise MtkdError(f"{source} does not exist. --from takes archives (zip, tar, tgz) and folders.")


def names_in(source: Path) -> list[str]:
    """Names of the image files in a folder, with its sub-folders, or in an archive, sorted. Hidden ones are left out.

    Raises:
        MtkdError: it cannot be read, or is an archive that is damaged, refused, or has two files of one name.
    """
    if source.is_dir():
        return sorted(_walk(source))
    names = Counter(filter(_is_image, archives.names(source)))
    if twice := [name for name, count in names.items() if count > 1]:
        raise MtkdError(
            f"{source} holds {twice[0]} more than once, and nothing says which is meant. Unpack it and name the folder."
        )
    return sorted(names)


def images_in(source: Path, names: Collection[str]) -> Iterator[Incoming]:
    """The image files called `names`; those of an archive in its order, with their bytes.

    Raises:
        MtkdError: as `names_in`; or an archive unpacks to more than it may.
    """
    if source.is_dir():
        for name in names:
            yield Incoming(source, name, file=source / name)
        return
    wanted = set(names)
    for name, data in archives.read(source, wanted.__contains__, largest=LARGEST):
        yield Incoming(source, name, data=data)


def archives_in(source: Path) -> list[str]:
    """Names of files directly in the folder `source` that look like archives."""
    ends = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
    return sorted(entry.name for entry in os.scandir(source) if entry.name.lower().endswith(ends) and entry.is_file())


def _is_image(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    # macOS adds ._NAME.png, which is no image, for every NAME.png.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and "__MACOSX" not in path.parts


def _walk(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise MtkdError(f"{error.filename} cannot be read: {error.strerror}.") from error

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            path = Path(place, file)
            if _is_image(file) and path.is_file():
                yield path.relative_to(folder).as_posix()
