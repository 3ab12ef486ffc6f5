"""Upscale image files with a network."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.data.images import IMAGE_SUFFIXES, list_images, read_image, write_image
from mtkd.engine.build import autocast, named_device
from mtkd.engine.evaluate import Predict, compile_for_images, to_pixels, to_tensor
from mtkd.engine.overlap import Behind, ahead, staged, to_host
from mtkd.engine.progress import Say, tracked
from mtkd.engine.tiling import FittingTiles, self_ensemble


def upscale(
    net: nn.Module,
    source: Path,
    destination: Path,
    *,
    tile_size: int | None = None,
    tile_pad: int = 32,
    x8: bool = False,
    precision: str = "fp32",
    compile: bool = False,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    say: Say = print,
) -> int:
    """Upscale the image `source`, or every image of the folder `source`, and return how many were written.

    A folder gives PNG files of the same names in the folder `destination`. The next images are decoded, and earlier
    ones encoded, while the network runs; a file appears under its name when it is complete.

    Args:
        net: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale), with its `scale`; it is moved to `device`.
        tile_size: run in tiles of so many lq pixels; None for whole images where they fit into memory, else the largest
            tiles that do.
        tile_pad: lq pixels of context on each side of a tile.
        x8: average over the eight flips and rotations.
        compile: `torch.compile` the network, or say why it cannot be.
        overwrite: replace images that exist.
        skip_existing: leave images that exist, and make the others.
        say: takes lines about what is not as asked.

    Raises:
        MtkdError: nothing to read, or a file to write exists and neither `overwrite` nor `skip_existing` is given;
            nothing is written then. Or an image cannot be read, upscaled or written: it is named, and those before it
            are written.
    """
    pairs = _pairs(source, destination)
    existing = [out for _, out in pairs if out.exists()]
    if skip_existing:
        pairs = [(image, out) for image, out in pairs if not out.exists()]
        if existing:
            say(f"{len(existing)} {'image exists' if len(existing) == 1 else 'images exist'} in {destination}.")
    elif existing and not overwrite:
        raise MtkdError(
            f"{existing[0]} exists ({len(existing)} such files); choose another folder, or add --overwrite, or "
            "--skip_existing to make only the others."
        )
    if not pairs:
        return 0
    if (origin := getattr(net, "origin", None)) is not None:
        say(f"Weights: {origin}")
    where = named_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = net.eval().to(where, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if compile:
        compile_for_images(net, where, partial(autocast, precision, where), say)
    predict: Predict = FittingTiles(net, scale=net.scale, tile_size=tile_size, tile_pad=tile_pad, say=say)  # pyright: ignore[reportArgumentType]
    if x8:
        predict = partial(self_ensemble, predict)

    def read(pair: tuple[Path, Path]) -> Tensor:
        return staged(read_image(pair[0]), where)

    with torch.no_grad(), autocast(precision, where), Behind() as later, closing(ahead(read, pairs)) as images:
        for (path, out), image in zip(tracked(pairs, "upscaling"), images, strict=True):
            with _naming(path):
                sr = predict(to_tensor(image, where))
            later(_write, path, out, to_host(to_pixels(sr)), to_host(sr.isfinite().all()))
    return len(pairs)


def _write(path: Path, out: Path, pixels: Callable[[], Tensor], finite: Callable[[], Tensor]) -> None:
    if not finite():
        raise MtkdError(
            f"{path}: the network's output is not finite. In fp16 values above 65504 overflow: use bf16 or fp32."
        )
    write_image(out, pixels().numpy())


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except MtkdError as error:
        raise MtkdError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise MtkdError(f"{path}: the network failed on this image: {error}") from error


def _pairs(source: Path, destination: Path) -> list[tuple[Path, Path]]:
    if source.is_dir():
        pairs = [(path, destination / f"{path.stem}.png") for path in list_images(source)]
        first: dict[Path, Path] = {}
        for path, out in pairs:
            if first.setdefault(out, path) != path:
                raise MtkdError(f"{first[out]} and {path} would both become {out}; rename one of them.")
    elif source.exists():
        pairs = [(source, destination / f"{source.stem}.png" if destination.is_dir() else destination)]
        if pairs[0][1].suffix.lower() not in IMAGE_SUFFIXES:
            raise MtkdError(f"{destination} is neither a folder nor an image's name: {' '.join(IMAGE_SUFFIXES)}.")
    else:
        raise MtkdError(f"There is no image or folder {source}.")
    for path, out in pairs:
        if out.exists() and out.samefile(path):
            raise MtkdError(f"{path} would be replaced by its own enlargement; choose another place to write to.")
    return pairs
