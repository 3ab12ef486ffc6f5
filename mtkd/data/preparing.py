"""Folders of images made ready: bicubic lq, checked pairs, meta_info files, sub-images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_size
from mtkd.data.images import list_images, read_image, write_bytes, write_image
from mtkd.data.paired import PairedImages, raise_problems
from mtkd.data.resize import bicubic_lq, levels_from_bicubic

Item = TypeVar("Item")


def make_lr(folder: Path, out: Path, scales: Sequence[int], filename_tmpl: str, workers: int) -> str:
    """Write OUT/X2/NAMEx2.png and so on: MATLAB's bicubic of each image, after cutting it to a multiple of the scale.

    `filename_tmpl` is the lq name without suffix; `{}` stands for the HR name and `{scale}` for the scale. Returns a
    sentence about what was done.

    Raises:
        MtkdError: images that cannot be read or written, all of them, or two with one name.
    """

    def one(path: Path) -> None:
        image = read_image(path)
        for scale in scales:
            name = filename_tmpl.replace("{scale}", str(scale)).replace("{}", path.stem)
            write_image(out / f"X{scale}" / f"{name}.png", bicubic_lq(image, scale))

    paths = _distinct(list_images(folder), "")
    for_each(one, paths, workers, f"The images of {folder} cannot all be made smaller")
    return f"{len(paths)} images of {folder} written to {', '.join(str(out / f'X{scale}') for scale in scales)}."


def check_pairs(pairs: PairedImages, bicubic: bool, workers: int) -> str:
    """Decode every pair; with `bicubic`, also compare each lq with MATLAB's bicubic of its gt, bit for bit.

    Returns a sentence about what was found.

    Raises:
        MtkdError: a pair is not sound; the text lists them.
    """

    def one(i: int) -> None:
        pair = pairs[i]
        if bicubic and (difference := levels_from_bicubic(pair.lq, pair.gt, pairs.scale)):
            raise MtkdError(f"{pair.name}: lq differs from MATLAB's bicubic by up to {difference} of 255 levels")

    for_each(one, range(len(pairs)), workers, f"The pairs of {pairs.dataroot_gt} are not sound")
    heights, widths = zip(*pairs.sizes, strict=True)
    return (
        f"{len(pairs)} pairs are sound: scale {pairs.scale}, gt height {min(heights)} to {max(heights)}, width "
        f"{min(widths)} to {max(widths)}, {sum(h * w for h, w in pairs.sizes) / 1e6:.1f} megapixels of gt."
        + (" Every lq is MATLAB's bicubic, bit for bit." if bicubic else "")
    )


def write_meta(folder: Path, out: Path, min_size: int) -> str:
    """Write `NAME (height,width,3)` lines, BasicSR's meta_info, for images with both sides at least `min_size`.

    Returns a sentence about what was done.

    Raises:
        MtkdError: no image is that large, or one cannot be read.
    """
    paths = list_images(folder)
    sizes = [read_size(path) for path in paths]
    lines = [f"{path.name} ({h},{w},3)\n" for path, (h, w) in zip(paths, sizes, strict=True) if min(h, w) >= min_size]
    if not lines:
        raise MtkdError(f"No image of {folder} has both sides of {min_size} pixels or more; {out} was not written.")
    write_bytes(out, "".join(lines).encode())
    return f"{len(lines)} of {len(paths)} images named in {out}."


def cut_sub_images(folder: Path, out: Path, size: int, step: int, strip: str, workers: int) -> str:
    """Cut images into overlapping squares, NAME_s001.png and so on, row by row; the last ones touch the far edges.

    `strip` is removed from the end of the names, so that lq (0001x4) and HR (0001) sub-images get equal names. Returns
    a sentence about what was done.

    Raises:
        MtkdError: an image is smaller than a square, cannot be read or written, or two have one name.
    """

    def one(path: Path) -> None:
        image = read_image(path)
        height, width = image.shape[:2]
        if min(height, width) < size:
            raise MtkdError(f"{path} is {height}x{width} (height x width), smaller than a sub-image of {size}.")
        places = [(top, left) for top in _starts(height, size, step) for left in _starts(width, size, step)]
        for number, (top, left) in enumerate(places, start=1):
            name = f"{path.stem.removesuffix(strip)}_s{number:03d}.png"
            write_image(out / name, image[top : top + size, left : left + size])

    paths = _distinct(list_images(folder), strip)
    for_each(one, paths, workers, f"The images of {folder} cannot all be cut")
    return f"{len(paths)} images of {folder} cut into {out}."


def for_each(
    work: Callable[[Item], object],
    items: Sequence[Item],
    workers: int,
    failure: str,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Call `work` on each of `items` by threads; `progress` is told how many of how many are done.

    Raises:
        MtkdError: `failure` and the problems of all items.
    """

    def attempt(item: Item) -> str | None:
        try:
            work(item)
        except MtkdError as error:
            return str(error)
        return None

    problems: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        for done, problem in enumerate(pool.map(attempt, items), start=1):
            problems += [problem] if problem else []
            if progress is not None:
                progress(done, len(items))
    raise_problems(failure, problems)


def _starts(length: int, size: int, step: int) -> list[int]:
    starts = list(range(0, length - size + 1, step))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def _distinct(paths: list[Path], strip: str) -> list[Path]:
    """`paths`, of which no two give files of one name."""
    first: dict[str, Path] = {}
    for path in paths:
        if first.setdefault(path.stem.removesuffix(strip), path) != path:
            raise MtkdError(
                f"{first[path.stem.removesuffix(strip)]} and {path} would give files of one name; rename one of them."
            )
    return paths
