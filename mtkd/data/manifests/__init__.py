"""Manifests: the names, sizes and pixels of published image sets, one CSV a folder of images, beside this file.

A line is `name,width,height,sha256`. The name has no suffix, and the hash is that of the decoded pixels, rows of RGB
bytes as `read_image` gives them: PNG, lossless WebP and BMP of one image pass alike. A name may stand on several lines;
the first one is the whole image, those below it are the same cut at the bottom and the right, as some archives hold it.
`mtkd data manifest FOLDER` makes such a file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER = ("name", "width", "height", "sha256")


class Form(NamedTuple):
    """One form of an image: sides in pixels and SHA-256 of its pixels, 64 hexadecimal digits."""

    width: int
    height: int
    sha256: str

    def lq_size(self, scale: int) -> tuple[int, int]:
        """Width and height of the standard lq image: sides of a form that differ only in what is cut give one."""
        return self.width // scale, self.height // scale


@dataclass(frozen=True)
class Manifest:
    """What is known of the images of one folder.

    Attributes:
        count: how many there are.
        forms: name without suffix -> its forms, the whole image first; none where only the name is known. Empty where
            not even names are known.
    """

    count: int
    forms: Mapping[str, Sequence[Form]]

    @cached_property
    def by_form(self) -> dict[Form, list[str]]:
        """Form -> names; several where a set holds one image twice, as T91 does (t36 and t65)."""
        found: dict[Form, list[str]] = {}
        for name, forms in self.forms.items():
            for form in forms:
                found.setdefault(form, []).append(name)
        return found

    @cached_property
    def sizes(self) -> set[tuple[int, int]]:
        """Every (width, height): an image of another size is none of these and need not be decoded."""
        return {(form.width, form.height) for form in self.by_form}

    @property
    def has_pixels(self) -> bool:
        """The pixels of every image are known."""
        return bool(self.forms) and all(self.forms.values())


def digest(image: NDArray[np.uint8]) -> Form:
    """Size and hash of an (H, W, 3) uint8 RGB image."""
    height, width = image.shape[:2]
    return Form(width, height, hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest())


@lru_cache
def shipped(name: str) -> Manifest:
    """The manifest NAME.csv of this folder.

    Raises:
        MtkdError: it is missing or is no manifest.
    """
    path = Path(__file__).with_name(f"{name}.csv")
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise MtkdError(f"{path} is missing: this installation of mtkd is not whole. Install it again.") from error


def named(pattern: str, first: int, last: int) -> Manifest:
    """The manifest of images of which only the names are known: `pattern` of each number from `first` to `last`."""
    names = [pattern.format(number) for number in range(first, last + 1)]
    return Manifest(len(names), {name: () for name in names})


def parse(text: str, source: str) -> Manifest:
    """The manifest that `text` is; messages name `source`.

    Raises:
        MtkdError: a line has another form.
    """
    forms: dict[str, list[Form]] = {}
    rows = csv.reader(io.StringIO(text))
    if tuple(next(rows, ())) != HEADER:
        raise MtkdError(f"{source} is not a manifest: its first line must be {','.join(HEADER)}.")
    for row in rows:
        sound = len(row) == 4 and row[0] and re.fullmatch("[0-9a-f]{64}", row[3])
        if not sound or not all(re.fullmatch("[1-9][0-9]{0,5}", side) for side in row[1:3]):
            raise MtkdError(f"{source}, line {rows.line_num}: expected name,width,height,sha256, found {row!r}.")
        forms.setdefault(row[0], []).append(Form(int(row[1]), int(row[2]), row[3]))
    return Manifest(len(forms), forms)


def make(folder: Path, *, filename_tmpl: str = "{}", cuts: Sequence[int] = (), workers: int = 1) -> str:
    """The manifest of the images in `folder`, as text, sorted by file name.

    Args:
        filename_tmpl: the name in the manifest; `{}` stands for the file's without suffix.
        cuts: add the forms whose sides are cut to multiples of these.
        workers: threads.

    Raises:
        MtkdError: an image cannot be read, or two have one name.
    """
    if filename_tmpl.count("{}") != 1:
        raise MtkdError(f"filename_tmpl {filename_tmpl!r} must hold {{}} once: the place of the name.")
    paths = list_images(folder)
    names: set[str] = set()
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(HEADER)
    with ThreadPoolExecutor(workers) as pool:
        for path, forms in zip(paths, pool.map(lambda path: list(_forms(read_image(path), cuts)), paths), strict=True):
            name = filename_tmpl.replace("{}", path.stem)
            if name in names:
                raise MtkdError(f"{folder} has several images called {name}; a manifest needs one.")
            names.add(name)
            rows.writerows((name, *form) for form in forms)
    return out.getvalue()


def _forms(image: NDArray[np.uint8], cuts: Sequence[int]) -> Iterator[Form]:
    height, width = image.shape[:2]
    sides = dict.fromkeys([(height, width), *((height - height % cut, width - width % cut) for cut in cuts)])
    for height, width in sides:
        if height and width:
            yield digest(image[:height, :width])
