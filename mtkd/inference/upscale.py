"""Upscale image files with a network."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.data.images import IMAGE_SUFFIXES, list_images, try_writing
from mtkd.data.paired import raise_problems
from mtkd.data.photo import Photo, read_photo, write_photo
from mtkd.data.resize import imresize
from mtkd.inference.evaluate import compile_for_images
from mtkd.inference.tiling import FittingTiles
from mtkd.runtime.background import BackgroundCalls, prefetch, staged, to_host
from mtkd.runtime.device import autocast, move, named_device, usual_device
from mtkd.runtime.pixels import to_levels, to_tensor
from mtkd.runtime.progress import Log, tracked

_LARGE = 1 << 27
"""Values of a large result: only one such result is held in memory at once."""


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
    log: Log = print,
) -> int:
    """Upscale the image `source`, or every image of the folder `source`, and return how many were written.

    A folder gives PNG files of the same names in the folder `destination`. Transparency is enlarged by bicubic
    interpolation, and 16 bits, a colour profile and grey are kept; `log` names what is not kept. The next images are
    decoded, and earlier ones encoded, while the network runs; a file appears under its name when it is complete. One
    image of a folder that cannot be read or upscaled does not stop the others.

    Args:
        net: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale), with its `scale`; it is moved to `device`.
        tile_size: run in tiles of so many lq pixels; None for whole images where they fit into memory, else the largest
            tiles that do.
        tile_pad: lq pixels of context on each side of a tile.
        x8: average over the eight flips and rotations.
        compile: run `torch.compile` on the network; if that fails, `log` gets the reason.
        overwrite: replace images that exist.
        skip_existing: leave images that exist, and make the others.
        log: gets a line for each thing that was not done as the arguments say.

    Raises:
        MtkdError: nothing to read, or a file to write exists and neither `overwrite` nor `skip_existing` is given;
            nothing is written then. Or an image cannot be written; those before it are. Or, at the end, images could
            not be read or upscaled: they are listed, and all others are written.
    """
    pairs = _pairs(source, destination)
    existing = [out for _, out in pairs if out.exists()]
    if skip_existing:
        pairs = [(image, out) for image, out in pairs if not out.exists()]
        if existing:
            log(f"{len(existing)} {'image exists' if len(existing) == 1 else 'images exist'} in {destination}.")
    elif existing and not overwrite:
        raise MtkdError(
            f"{existing[0]} exists ({len(existing)} such files); choose another folder, or add --overwrite, or "
            "--skip_existing to make only the others."
        )
    if source.is_dir() and (others := _others(source)):
        log(f"Left out {len(others)} files of {source} that are not images by their names, such as {others[0]}.")
    if not pairs:
        return 0
    where = named_device(device) if device else usual_device()
    net = move(net.eval(), where, torch.channels_last)
    scale: int = net.scale  # pyright: ignore[reportAssignmentType]
    predict = FittingTiles(net, scale=scale, tile_size=tile_size, tile_pad=tile_pad, x8=x8, log=log)
    # The last check, because it makes the folder.
    try_writing(pairs[0][1].parent)
    if (origin := getattr(net, "origin", None)) is not None:
        log(f"Weights: {origin}")
    if compile:
        compile_for_images(net, where, partial(autocast, precision, where), log)
    failures: dict[Path, str] = {}

    def read(pair: tuple[Path, Path]) -> tuple[Photo, Tensor] | MtkdError:
        try:
            photo = read_photo(pair[0])
        except MtkdError as error:
            return error
        pixels = photo.pixels
        return photo, staged(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32) / 65535, where)

    def write(path: Path, out: Path, photo: Photo, levels: Callable[[], Tensor], finite: Callable[[], Tensor]) -> None:
        if not finite():
            failures[path] = (
                f"{path}: the network's output is not finite. In fp16 values above 65504 overflow: use bf16 or fp32."
            )
            return
        pixels = np.ascontiguousarray(levels().numpy(), dtype=photo.pixels.dtype)
        alpha = None if photo.alpha is None else imresize(photo.alpha, scale)
        lost = write_photo(out, replace(photo, pixels=pixels, alpha=alpha))
        for what in (*photo.lost, *lost):
            log(f"{path}: not kept: {what}.")

    with (
        torch.no_grad(),
        autocast(precision, where),
        BackgroundCalls() as calls,
        closing(prefetch(read, pairs)) as images,
    ):
        for (path, out), found in zip(tracked(pairs, "upscaling"), images, strict=True):
            if isinstance(found, MtkdError):
                failures[path] = str(found)
                continue
            photo, image = found
            if image.numel() * scale**2 > _LARGE:
                calls.settle()
            levels = _Levels(photo)
            try:
                with _naming(path):
                    sr = predict(to_tensor(image, where), levels, value_bytes=levels.nbytes)
            except MtkdError as error:
                failures[path] = str(error)
                continue
            # (1, C, H, W) -> (H, W, C), or (H, W) of a grey image
            calls.submit(write, path, out, photo, to_host(sr[0].movedim(0, -1).squeeze(-1)), to_host(levels.finite))
    if failures and not source.is_dir():
        raise MtkdError(next(iter(failures.values())))
    made = len(pairs) - len(failures)
    raise_problems(
        f"{made} of {len(pairs)} images were upscaled into {destination}, and these were not",
        [failures[path] for path, _ in pairs if path in failures],
    )
    return made


class _Levels:
    """Rounds pieces of sr, float (N, 3, h, w), to the levels of `photo`: uint8, or int32 for 16 bits, in one channel
    where it is grey. `finite` covers all pieces together.
    """

    def __init__(self, photo: Photo) -> None:
        deep = photo.pixels.dtype == np.uint16
        # Few operations of torch support uint16.
        self.dtype, self.most, self.nbytes = (torch.int32, 65535, 4) if deep else (torch.uint8, 255, 1)
        self.grey = photo.grey
        self._finite: Tensor | None = None

    @property
    def finite(self) -> Tensor:
        assert self._finite is not None
        return self._finite

    def __call__(self, sr: Tensor) -> Tensor:
        sr = sr.float()
        finite = sr.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        if self.grey:
            sr = sr.mean(1, keepdim=True)
        return to_levels(sr, self.most).to(self.dtype)


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except MtkdError as error:
        raise MtkdError(f"{path}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        reason = str(error) or "too little memory"
        raise MtkdError(f"{path}: the network failed on this image: {reason}") from error


def _others(folder: Path) -> list[str]:
    """Names of the files in `folder` without the suffix of an image."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _pairs(source: Path, destination: Path) -> list[tuple[Path, Path]]:
    if source.is_dir():
        if destination.suffix.lower() in IMAGE_SUFFIXES and not destination.is_dir():
            raise MtkdError(
                f"{source} is a folder, and {destination} is the name of an image. Give the name of a folder to fill."
            )
        if destination.exists() and not destination.is_dir():
            raise MtkdError(f"{destination} is a file; give the name of a folder to fill.")
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
            raise MtkdError(f"{path} would be replaced by its own enlargement. Choose another OUT.")
    return pairs
