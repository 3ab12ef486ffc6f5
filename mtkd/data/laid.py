"""Image sets that lie in their folders, held against their manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_size
from mtkd.data.images import list_images, read_image
from mtkd.data.known import KnownSet, Part
from mtkd.data.manifests import Form, Manifest, digest
from mtkd.data.paired import raise_problems
from mtkd.data.preparing import for_each
from mtkd.runtime.progress import Progress

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

    @property
    def cut(self) -> list[str]:
        """Names of images that are not whole."""
        return [name for name, form in self.forms.items() if form != self.manifest.forms[name][0]]

    def unfit(self, scale: int) -> list[str]:
        """Names of images that are cut so that their lq at `scale` is not the standard one."""
        return sorted(
            name
            for name, form in self.forms.items()
            if form.lq_size(scale) != self.manifest.forms[name][0].lq_size(scale)
        )

    def lq_files(self, scale: int) -> Iterator[tuple[str, Path]]:
        """Name of each image and the standard place of its lq image, `NAMEx2.png`."""
        folder = self.part.lq_folder(self.folder, scale)
        for name in self.images:
            yield name, folder / f"{name}x{scale}.png"

    def said_missing(self) -> str:
        """How many images are missing, and the first of their names."""
        names = f": {first_of(self.missing)}" if self.missing else ""
        return f"{self.lacking} of {self.manifest.count} images are missing{names}"


def first_of(names: Sequence[str]) -> str:
    """The first five of `names`."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


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
    if not state.manifest.forms and len(state.images) > state.manifest.count:
        state.wrong.append(f"{state.hr} holds {len(state.images)} images, and the set has {state.manifest.count}")
    state.wrong.sort()
    state.strangers.sort()
    return state


def difference(size: tuple[int, int], forms: Sequence[Form]) -> str:
    """How an image of `size` (height, width) that has the name of `forms` and is none of them differs from them."""
    height, width = size
    whole = forms[0]
    if any((form.height, form.width) == size for form in forms):
        return "holds other pixels than the published image: it was compressed again, or is another version"
    return f"has {width}x{height} pixels (width x height), and the published image {whole.width}x{whole.height}"


def lq_problems(
    state: State, scale: int, *, bicubic: bool, workers: int = 1, progress: Tell | None = None
) -> list[str]:
    """What is wrong with the lq images of `scale`: missing or of another size; with `bicubic`, also other pixels than
    MATLAB's bicubic of the images of `state`, which are read again for it.
    """
    from mtkd.data.resize import bicubic_lq

    problems: list[str] = []
    files = list(state.lq_files(scale))
    missing = [file for _, file in files if not file.exists()]
    if missing:
        shown = first_of([file.name for file in missing])
        problems.append(f"{missing[0].parent}: {len(missing)} of {len(files)} lq images are missing: {shown}")

    def one(of: tuple[str, Path]) -> None:
        name, file = of
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

    there = [(name, file) for name, file in files if file.exists()]
    for_each(one, there, workers, f"The lq images of {state.hr} cannot be read", progress)
    return sorted(problems)


def verify(
    known: KnownSet, root: Path, *, scales: Sequence[int] | None = None, bicubic: bool = False, workers: int = 1
) -> list[str]:
    """Hold a set against its manifest, every image decoded; sentences about what is right.

    Args:
        scales: of the lq images that must be there; None looks at those that are.
        bicubic: the lq images must be MATLAB's bicubic, bit for bit.

    Raises:
        MtkdError: an image is missing, wrong or not of the set; the text lists all.
    """
    lines, problems = [], []
    for part in known.parts:
        with Progress(f"Reading {known.name}/{part.hr}", _silent) as progress:
            state = inspect(known, part, root, pixels=True, workers=workers, progress=progress)
        problems += state.wrong + [f"{path} is not an image of {known.name}" for path in state.strangers]
        if state.lacking:
            problems.append(f"{state.hr}: {state.said_missing()}")
        else:
            lines.append(f"{state.hr}: {len(state.images)} images, {how_known(state)}.")
        for scale in range(2, 9) if scales is None else scales:
            folder = part.lq_folder(state.folder, scale)
            if scales is None and not folder.exists():
                continue
            if unfit := state.unfit(scale):
                problems.append(f"{state.hr}: {len(unfit)} images are cut too small for x{scale}: {first_of(unfit)}")
            with Progress(f"Reading lq x{scale} of {known.name}/{part.hr}", _silent) as progress:
                found = lq_problems(state, scale, bicubic=bicubic, workers=workers, progress=progress)
            problems += found
            if not (found or state.lacking or unfit):
                rule = "MATLAB's bicubic, bit for bit" if bicubic else "of the right size"
                lines.append(f"{folder}: {len(state.images)} lq images, {rule}.")
    raise_problems(f"{root / known.name} is not as it should be", problems)
    return lines


def how_known(state: State) -> str:
    """What the manifest could tell of the images that are there."""
    if not state.manifest.has_pixels:
        what = "names" if state.manifest.forms else "their number"
        return f"known by {what} alone (no manifest of their pixels is here)"
    cut = f", {len(state.cut)} of them cut at the bottom or the right" if state.cut else ""
    return f"pixels as published{cut}"


def _silent(_: str) -> None:
    """Without a terminal nothing is said before the end."""
