"""Prepare folders of images: make bicubic LR, check pairs, write a meta_info file, cut sub-images.

python datasets/prepare.py lr    datasets/Set5/HR datasets/Set5/LR_bicubic --scale 2 3 4
python datasets/prepare.py check datasets/Set5/HR --lq datasets/Set5/LR_bicubic/X4 --scale 4 --filename_tmpl '{}x4'
python datasets/prepare.py meta  datasets/DIV2K/DIV2K_train_HR datasets/DIV2K/meta_info.txt --min_size 192
python datasets/prepare.py sub   datasets/DIV2K/DIV2K_train_HR datasets/DIV2K/DIV2K_train_HR_sub --size 480 --step 240
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_size
from mtkd.data.images import list_images, read_image, write_bytes, write_image
from mtkd.data.paired import PairedImages, raise_problems
from mtkd.data.resize import bicubic_lq


def make_lr(folder: Path, out: Path, scales: Sequence[int], filename_tmpl: str, workers: int) -> None:
    """Write OUT/X2/NAMEx2.png and so on: MATLAB's bicubic of each image, after cutting it to a multiple of the scale.

    `filename_tmpl` is the LR name without suffix; `{}` stands for the HR name and `{scale}` for the scale.
    """

    def one(path: Path) -> None:
        image = read_image(path)
        for scale in scales:
            name = filename_tmpl.replace("{scale}", str(scale)).replace("{}", path.stem)
            write_image(out / f"X{scale}" / f"{name}.png", bicubic_lq(image, scale))

    paths = _distinct(list_images(folder), "")
    _for_each(one, paths, workers, f"The images of {folder} cannot all be made smaller")
    print(f"{len(paths)} images of {folder} written to {', '.join(str(out / f'X{scale}') for scale in scales)}.")


def check_pairs(pairs: PairedImages, bicubic: bool, workers: int) -> None:
    """Decode every pair; with `bicubic`, also compare each lq with MATLAB's bicubic of its gt, bit for bit."""

    def one(i: int) -> None:
        pair = pairs[i]
        if bicubic:
            difference = np.abs(pair.lq.astype(int) - bicubic_lq(pair.gt, pairs.scale)).max()
            if difference:
                raise MtkdError(f"{pair.name}: lq differs from MATLAB's bicubic by up to {difference} of 255 levels")

    _for_each(one, range(len(pairs)), workers, f"The pairs of {pairs.dataroot_gt} are not sound")
    heights, widths = zip(*pairs.sizes, strict=True)
    print(
        f"{len(pairs)} pairs are sound: scale {pairs.scale}, gt height {min(heights)} to {max(heights)}, width "
        f"{min(widths)} to {max(widths)}, {sum(h * w for h, w in pairs.sizes) / 1e6:.1f} megapixels of gt."
        + (" Every lq is MATLAB's bicubic, bit for bit." if bicubic else "")
    )


def write_meta(folder: Path, out: Path, min_size: int) -> None:
    """Write `NAME (height,width,3)` lines, BasicSR's meta_info, for images with both sides at least `min_size`."""
    paths = list_images(folder)
    sizes = [read_size(path) for path in paths]
    lines = [f"{path.name} ({h},{w},3)\n" for path, (h, w) in zip(paths, sizes, strict=True) if min(h, w) >= min_size]
    if not lines:
        raise MtkdError(f"No image of {folder} has both sides of {min_size} pixels or more; {out} was not written.")
    write_bytes(out, "".join(lines).encode())
    print(f"{len(lines)} of {len(paths)} images named in {out}.")


def cut_sub_images(folder: Path, out: Path, size: int, step: int, strip: str, workers: int) -> None:
    """Cut images into overlapping squares, NAME_s001.png and so on, row by row; the last ones touch the far edges.

    `strip` is removed from the end of the names, so that LR (0001x4) and HR (0001) sub-images get equal names.
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
    _for_each(one, paths, workers, f"The images of {folder} cannot all be cut")
    print(f"{len(paths)} images of {folder} cut into {out}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 1 after a problem, which is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: all CPUs)")
    commands = parser.add_subparsers(dest="command", required=True)

    lr = commands.add_parser("lr", help="make LR folders with MATLAB's bicubic")
    lr.add_argument("folder", type=Path, help="HR images")
    lr.add_argument("out", type=Path, help="receives X2/, X3/, ...")
    lr.add_argument("--scale", type=int, nargs="+", required=True)
    lr.add_argument("--filename_tmpl", default="{}x{scale}", help="LR name without suffix (default: %(default)s)")

    check = commands.add_parser("check", help="check that lq and gt images pair up and decode")
    check.add_argument("gt", type=Path)
    check.add_argument("--lq", type=Path, required=True)
    check.add_argument("--scale", type=int, required=True)
    check.add_argument("--filename_tmpl", default="{}", help="lq name without suffix, such as '{}x4'")
    check.add_argument("--meta_info_file", type=Path)
    check.add_argument("--gt_size", type=int, help="training crop that every gt must be able to give")
    check.add_argument("--bicubic", action="store_true", help="lq must be MATLAB's bicubic of gt, bit for bit")

    meta = commands.add_parser("meta", help="write a meta_info file")
    meta.add_argument("folder", type=Path)
    meta.add_argument("out", type=Path)
    meta.add_argument("--min_size", type=int, default=1, help="leave out images with a shorter side")

    sub = commands.add_parser("sub", help="cut images into squares (mtkd itself does not need them)")
    sub.add_argument("folder", type=Path)
    sub.add_argument("out", type=Path)
    sub.add_argument("--size", type=int, default=480)
    sub.add_argument("--step", type=int, default=240)
    sub.add_argument("--strip", default="", help="ending removed from names, such as x4")

    given = parser.parse_args(arguments)
    for name in ("workers", "size", "step"):
        if getattr(given, name, 1) < 1:
            parser.error(f"--{name} must be 1 or more")
    try:
        if given.command == "lr":
            make_lr(given.folder, given.out, given.scale, given.filename_tmpl, given.workers)
        elif given.command == "check":
            pairs = PairedImages(
                dataroot_gt=given.gt,
                dataroot_lq=given.lq,
                scale=given.scale,
                filename_tmpl=given.filename_tmpl,
                meta_info_file=given.meta_info_file,
                min_gt_size=given.gt_size,
            )
            check_pairs(pairs, given.bicubic, given.workers)
        elif given.command == "meta":
            write_meta(given.folder, given.out, given.min_size)
        else:
            cut_sub_images(given.folder, given.out, given.size, given.step, given.strip, given.workers)
    except MtkdError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


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


def _for_each(work: Callable, items: Sequence, workers: int, failure: str) -> None:
    def attempt(item: object) -> str | None:
        try:
            work(item)
        except MtkdError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        raise_problems(failure, [problem for problem in pool.map(attempt, items) if problem])


if __name__ == "__main__":
    sys.exit(main())
