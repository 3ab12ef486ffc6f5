"""The photographs of a user: found in folders and their sub-folders, looked at, and sorted into good and left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_header
from mtkd.data.images import IMAGE_SUFFIXES, read_image

_OTHER_SUFFIXES = frozenset(
    ".heic .heif .avif .gif .jxl .jp2 .psd .svg .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf".split()
)
"""Pictures that cannot be read here."""
_THREADS = 4
_RECORD = "distill.json"
"""A folder with such a file is the work of `mtkd distill`, whose pictures are no photographs."""
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's names of pixels of more than 8 bits."""


@dataclass(frozen=True)
class Photo:
    """One photograph: its path below the root, and its height and width, upright."""

    name: str
    height: int
    width: int

    @property
    def smaller(self) -> int:
        """Its shorter side."""
        return min(self.height, self.width)


@dataclass
class Photos:
    """The photographs below a root that can be used, and why others cannot.

    Attributes:
        root: the folder that names start at.
        good: in the order of their names.
        left_out: reason -> (name, detail) of those that are not used.
    """

    root: Path
    good: list[Photo]
    left_out: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def leave_out(self, name: str, reason: str, detail: str = "") -> None:
        """Note why one is not used; it is taken from the good ones."""
        self.left_out.setdefault(reason, []).append((name, detail))
        self.good = [photo for photo in self.good if photo.name != name]

    def remarks(self) -> list[str]:
        """One line for each reason: how many, why, and the first of them."""
        return [
            f"left out: {len(found)} {reason} ({found[0][0]}{f', {found[0][1]}' if found[0][1] else ''}"
            f"{', ...' if len(found) > 1 else ''})"
            for reason, found in self.left_out.items()
        ]


def find_photos(place: Path, *, without: Sequence[Path] = ()) -> Photos:
    """The images in `place`, a file or a folder with its sub-folders, whose headers can be read.

    Hidden files and folders, folders that `mtkd distill` has made, and the folders `without` are not looked at.

    Raises:
        MtkdError: there is none; what was left out is said.
    """
    if place.is_file():
        root, names = place.parent, [place.name]
    else:
        root, names = place, sorted(_names(place, [os.path.realpath(path) for path in without]))
    photos = Photos(root, [])
    good: list[Photo] = []
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in _OTHER_SUFFIXES:
            photos.leave_out(name, "of a kind that is not read here; save them as JPEG or PNG")
        elif suffix not in IMAGE_SUFFIXES:
            continue
        elif not _can_be_listed(name):
            photos.leave_out(ascii(name), "whose names hold a line break or are no UTF-8 text; rename them")
        else:
            try:
                header = read_header(root / name)
            except MtkdError as error:
                photos.leave_out(name, "that cannot be opened", _short(error, root / name))
                continue
            if header.mode in _DEEP:
                photos.leave_out(name, "with more than 8 bits a channel; export them with 8 bits")
                continue
            good.append(Photo(name, *header.size))
    photos.good = good
    if not good:
        kinds = " ".join(IMAGE_SUFFIXES)
        why = "".join(f"\n  {line}" for line in photos.remarks())
        raise MtkdError(f"{place} holds no photograph that can be used ({kinds}, sub-folders included).{why}")
    return photos


def decode_all(photos: Photos, work: Callable[[Photo], object] | None = None) -> None:
    """Decode every good photograph, by threads, and leave out those that cannot be.

    Args:
        work: done instead of decoding alone; its MtkdError is the photograph's.
    """

    def attempt(photo: Photo) -> str | None:
        try:
            if work is not None:
                work(photo)
            else:
                read_image(photos.root / photo.name)
        except MtkdError as error:
            return _short(error, photos.root / photo.name)
        return None

    good = list(photos.good)
    with ThreadPoolExecutor(_THREADS) as pool:
        for photo, problem in zip(good, pool.map(attempt, good), strict=True):
            if problem is not None:
                photos.leave_out(photo.name, "that cannot be decoded", problem)
    if not photos.good:
        why = "".join(f"\n  {line}" for line in photos.remarks())
        raise MtkdError(f"None of the photographs in {photos.root} can be decoded.{why}")


def spread(length: int, count: int) -> list[int]:
    """`count` of `length` places, evenly spread."""
    return [length * (2 * number + 1) // (2 * count) for number in range(count)]


def _names(folder: Path, without: Sequence[str]) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        if _RECORD in files:
            folders.clear()
            continue
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(where, name)) not in without
        ]
        for name in files:
            path = os.path.join(where, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield os.path.relpath(path, folder)


def _can_be_listed(name: str) -> bool:
    """Whether a line of a text file can name it."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return len(name.splitlines()) == 1 and name == name.strip()


def _short(error: MtkdError, path: Path) -> str:
    return " ".join(str(error).removeprefix(f"{path} ").split())[:160]
