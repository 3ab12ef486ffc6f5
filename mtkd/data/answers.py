"""What a network answered to a set of images, kept: a folder of images named as those they answer, or a store.

A teacher that lives in another program, or that is too slow to run for each student again, is its answers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkd.contracts import MtkdError
from mtkd.data.cache import cached, decode_all
from mtkd.data.images import IMAGE_SUFFIXES, expanded
from mtkd.data.paired import raise_problems
from mtkd.data.sources import FolderImages
from mtkd.data.store import ImageStore, StoreWriter, cpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RULE = "answers 1: RGB uint8"
TRAIN = "train"
"""What the training images are called where answers are divided by data set."""


def place_of(images: str | Mapping[str, str], names: Sequence[str], *, flat: bool) -> Path | None:
    """Where the answers to the data set called one of `names` are; None where there are none.

    Args:
        images: a folder of answers or a store; a folder that holds one of these for each data set, by its name; or a
            mapping data set -> folder or store.
        names: of the data set, the first that is found counts.
        flat: a folder of answers, or a store, that is not divided by data set answers this one.

    Raises:
        MtkdError: the path cannot be one.
    """
    if not isinstance(images, str):
        return next((expanded(images[name]) for name in names if name in images), None)
    whole = expanded(images)
    if not whole.is_dir():
        return whole if flat else None
    parts = (whole / name for name in names)
    found = next((part for part in parts if part.exists()), None)
    return found or (whole if flat and not (whole / TRAIN).exists() else None)


class Answers(Sequence["NDArray[Any]"]):
    """The answers to some images, in the order of these. Nothing is decoded before it is asked for.

    Args:
        place: a store, or a folder of images with the names of those they answer. `~` is expanded.
        names: of the images they answer.
        sizes: height and width that each answer must have.
        exact: an answer to none of the images is a problem; False where only some of a folder's images are used.
        marks: what a store's fingerprint must say where it says it (`scale`, and `images`, the digest of the lq).

    Attributes:
        store: the store; None of a folder.
        paths: the files of a folder, one for each name.

    Raises:
        MtkdError: it is neither, or answers are missing, ambiguous, of another size, of other images, or to none of
            the images; all of it is listed.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        *,
        exact: bool = True,
        marks: Mapping[str, Any] | None = None,
    ) -> None:
        self.place, self.names = expanded(place), list(names)
        self.sizes = [(height, width) for height, width in sizes]
        self.store: ImageStore | None = None
        self.paths: list[Path] = []
        problems: list[str] = []
        if self.place.is_dir():
            self._folder = FolderImages(self.place)
            self._pair(exact, problems)
        elif self.place.is_file():
            self.store = ImageStore(self.place)
            self._compare(self.store, marks or {}, problems)
        else:
            raise MtkdError(
                f"There are no answers at {self.place}. Name a folder of images, each called as the image it answers, "
                "or a store made by `mtkd teach`."
            )
        raise_problems(f"The answers in {self.place} do not fit the images", problems)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> NDArray[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Answer `i`, (H, W, 3): uint8, or the float16 of a store.

        Raises:
            MtkdError: the file cannot be decoded, or not to the size in its header.
        """
        if self.store is not None:
            return self.store[i]
        image = self._folder.read(self.paths[i])
        if image.shape[:2] != self.sizes[i]:
            raise MtkdError(
                f"{self.paths[i]} decodes to another size than its header has, or it changed since the run began. "
                "Export it again."
            )
        return image

    def decoded(
        self,
        cache_dir: str | os.PathLike[str],
        *,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageStore:
        """All of them as a store, each compared with its checksum: the store that they are, or one in `cache_dir`,
        made when it is not there. An entry takes 3 bytes per pixel.

        Args:
            workers: decoding threads; default is the number of CPUs this process may use.
            progress: called as progress(done, total) while it is made.

        Raises:
            MtkdError: files that cannot be decoded, all listed, or a damaged store.
        """
        if self.store is not None:
            self.store.verify()
            return self.store
        try:
            stamps = [self._folder.stamp(path) for path in self.paths]
        except OSError as error:
            raise MtkdError(f"{self.place} changed while it was read: {error.strerror or error}.") from error
        # Names too: the order of the images is theirs.
        files = hashlib.sha256(json.dumps([self.names, stamps]).encode()).hexdigest()
        facts = {"rule": _RULE, "files": files}

        def opened(entry: Path) -> ImageStore:
            store = ImageStore(entry / "answers.safetensors")
            store.verify()
            return store

        def make(folder: Path) -> None:
            writer = StoreWriter(folder / "answers.safetensors", self.names, self.sizes, facts)
            try:
                decode_all(lambda i: writer.put(i, self[i]), len(self), self.place, workers or cpus(), progress)
                writer.finish()
            finally:
                writer.close()

        return cached(
            cache_dir, facts, opened=opened, make=make, what=f"The answers in {self.place}", source=self.place
        )

    def _pair(self, exact: bool, problems: list[str]) -> None:
        by_name: dict[str, list[Path]] = {}
        for path in self._folder.paths():
            by_name.setdefault(path.stem, []).append(path)
        for name, wanted in zip(self.names, self.sizes, strict=True):
            found = by_name.pop(name, [])
            if not found and "/" in name:
                # Images of one name in two folders have the folder in their name.
                found = [path for end in IMAGE_SUFFIXES if self._folder.has(path := self.place / f"{name}{end}")]
            if len(found) != 1:
                many = f"several images answer it: {', '.join(path.name for path in found)}"
                problems.append(f"{name}: {many if found else 'no image of this name'}")
                continue
            try:
                size = self._folder.size(found[0])
            except MtkdError as error:
                problems.append(str(error))
                continue
            self.paths += found
            if size != wanted:
                problems.append(_wrong_size(found[0].name, size, wanted))
        if exact:
            problems += [f"{path.name}: answers no image" for paths in by_name.values() for path in paths]

    def _compare(self, store: ImageStore, marks: Mapping[str, Any], problems: list[str]) -> None:
        fingerprint = store.facts.get("fingerprint")
        own = fingerprint if isinstance(fingerprint, dict) else {}
        if own.get("scale", wanted := marks.get("scale")) != wanted and wanted is not None:
            problems.append(f"it was made at scale {own['scale']}, and the run's is {wanted}")
        if store.names != self.names:
            lacking = [name for name in self.names if name not in set(store.names)]
            more = [name for name in store.names if name not in set(self.names)]
            problems += [f"{name}: no image of this name" for name in lacking]
            problems += [f"{name}: answers no image" for name in more]
            if not lacking and not more:
                problems.append("its images stand in another order")
            return
        problems += [
            _wrong_size(name, size, wanted)
            for name, size, wanted in zip(self.names, store.sizes, self.sizes, strict=True)
            if size != wanted
        ]
        if own.get("images", wanted := marks.get("images")) != wanted and wanted is not None:
            problems.append("it was made of other lq images, of the same names")


def _wrong_size(name: str, size: tuple[int, int], wanted: tuple[int, int]) -> str:
    return f"{name}: is {size[0]}x{size[1]} (height x width) and must be {wanted[0]}x{wanted[1]}"
