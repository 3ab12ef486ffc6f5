"""Image sets that lie in their folders, held against their manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_size
from mtkd.data.images import list_images, read_image
from mtkd.data.known import KnownSet, Part
from mtkd.data.manifests import Form, Manifest, digest
from mtkd.data.preparing import for_each

Tell = Callable[[int, int], object]
"""Told how many of how many images are done."""


@dataclass
class State:
    """What lies in the HR folder of one part of a set.

    Attributes:
        folder: of the set.
        images: name -> file that is right, as far as was looked.
        forms: name -> which form of the image it is, where the manifest knows any.
        wrong: sentences on files that are called like an image of the set and are not it.
        strangers: image files that are called otherwise.
    """

    folder: Path
    part: Part
    manifest: Manifest
    images: dict[str, Path] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    strangers: list[Path] = field(default_factory=list)

    @property
    def hr(self) -> Path:
        """Folder of the HR images."""
        return self.folder / self.part.hr

    @property
    def lacking(self) -> int:
        """How many images are not there."""
        return max(self.manifest.count - len(self.images), 0)

    @property
    def missing(self) -> list[str]:
        """Names that are not there; none where the names are not known."""
        return [name for name in self.manifest.forms if name not in self.images]

    @property
    def complete(self) -> bool:
        """Every image is there, and nothing else."""
        return not (self.lacking or self.wrong or self.strangers)

    def unfit(self, scale: int) -> list[str]:
        """Names of images that are cut so that their lq at `scale` is not the standard one."""
        return [
            name
            for name, form in self.forms.items()
            if form.lq_size(scale) != self.manifest.forms[name][0].lq_size(scale)
        ]

    def lq_files(self, scale: int) -> Iterator[tuple[str, Path]]:
        """Name of each image and the standard place of its lq image, `NAMEx2.png`."""
        folder = self.part.lq_folder(self.folder, scale)
        for name in self.images:
            yield name, folder / f"{name}x{scale}.png"

    def said_missing(self) -> str:
        """How many images are missing, and the first of their names."""
        names = self.missing
        shown = f": {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
        return f"{self.lacking} of {self.manifest.count} images are missing{shown}"


def inspect(
    known: KnownSet, part: Part, root: Path, *, pixels: bool, workers: int = 1, progress: Tell | None = None
) -> State:
    """What lies in the HR folder of `part` under `root`.

    Args:
        pixels: decode every image and compare its pixels where the manifest has them; else names and sizes alone.

    Raises:
        MtkdError: the folder cannot be read.
    """
    state = State(root / known.name, part, part.manifest())
    try:
        paths = list_images(state.hr) if state.hr.exists() else []
    except MtkdError as error:
        if "holds no image" not in str(error):
            raise
        return state

    def one(path: Path) -> None:
        name, forms = path.stem, state.manifest.forms.get(path.stem, ())
        if state.manifest.forms and name not in state.manifest.forms:
            state.strangers.append(path)
            return
        try:
            if pixels:
                image = read_image(path)
                size, form = image.shape[:2], digest(image) if forms else None
            else:
                size = read_size(path)
                form = next((form for form in forms if (form.height, form.width) == size), None)
        except MtkdError as error:
            state.wrong.append(str(error).rstrip("."))
            return
        if forms and form not in forms:
            state.wrong.append(f"{path} {difference(size, forms)}")
        elif state.images.setdefault(name, path) != path:
            state.wrong.append(f"{path} and {state.images[name].name} have one name; remove one of them")
        elif form is not None:
            state.forms[name] = form

    for_each(one, paths, workers, f"{state.hr} cannot be read", progress)
    # Threads end in any order.
    state.images = {name: state.images[name] for name in sorted(state.images)}
    state.wrong.sort()
    state.strangers.sort()
    return state


def difference(size: tuple[int, int], forms: tuple[Form, ...] | list[Form]) -> str:
    """How an image of `size` (height, width) that has the name of `forms` and is none of them differs from them."""
    height, width = size
    whole = forms[0]
    if any((form.height, form.width) == size for form in forms):
        return "holds other pixels than the published image: it was compressed again, or is another version"
    return f"has {width}x{height} pixels (width x height), and the published image {whole.width}x{whole.height}"


def lq_problems(
    state: State, scale: int, *, bicubic: bool, workers: int = 1, progress: Tell | None = None
) -> list[str]:
    """What is wrong with the lq images of `scale`: missing, of another size, or, with `bicubic`, other pixels than the rule.

    The images of `state` are read again.
    """
    from mtkd.data.resize import bicubic_lq

    problems: list[str] = []

    def one(of: tuple[str, Path]) -> None:
        name, file = of
        if not file.exists():
            problems.append(f"{file} is missing")
            return
        try:
            if bicubic:
                lq, expected = read_image(file), bicubic_lq(read_image(state.images[name]), scale)
                size, right = lq.shape[:2], expected.shape[:2]
            else:
                lq = expected = np.empty(0)
                height, width = read_size(state.images[name])
                size, right = read_size(file), (height // scale, width // scale)
            if size != right:
                problems.append(f"{file} is {size[0]}x{size[1]} (height x width), and must be {right[0]}x{right[1]}")
            elif not np.array_equal(lq, expected):
                problems.append(f"{file} is not MATLAB's bicubic of {state.images[name].name}")
        except MtkdError as error:
            problems.append(str(error).rstrip("."))

    for_each(one, list(state.lq_files(scale)), workers, f"The lq images of {state.hr} cannot be read", progress)
    return sorted(problems)
