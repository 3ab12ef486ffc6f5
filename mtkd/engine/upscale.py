"""Upscale image files with a network."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image, write_image
from mtkd.engine.evaluate import to_image, to_tensor
from mtkd.engine.report import autocast
from mtkd.engine.tiling import self_ensemble, tiled

WHOLE_IMAGE_PIXELS = 512 * 512
"""Larger lq images run in tiles when no tile size is given."""
DEFAULT_TILE = 256


def upscale(
    net: nn.Module,
    source: Path,
    destination: Path,
    *,
    tile_size: int | None = None,
    tile_pad: int = 16,
    x8: bool = False,
    precision: str = "fp32",
    device: str | torch.device | None = None,
    overwrite: bool = False,
) -> int:
    """Upscale the image `source`, or every image of the folder `source`, and return how many were written.

    A folder gives PNG files of the same names in the folder `destination`.

    Raises:
        MtkdError: nothing to read, or a file to write exists and `overwrite` is off; nothing is written then.
    """
    pairs = _pairs(source, destination)
    existing = [out for _, out in pairs if out.exists()]
    if existing and not overwrite:
        raise MtkdError(
            f"{existing[0]} exists ({len(existing)} such files); choose another folder, or add --overwrite."
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = net.eval().to(where)

    def predict(lq: torch.Tensor) -> torch.Tensor:
        size = tile_size or (DEFAULT_TILE if lq.shape[-1] * lq.shape[-2] > WHOLE_IMAGE_PIXELS else None)
        if size is None:
            return net(lq)
        return tiled(net, lq, scale=net.scale, tile_size=size, tile_pad=tile_pad)  # pyright: ignore[reportArgumentType]

    with torch.no_grad(), autocast(precision, where):
        for image, out in _progress(pairs):
            lq = to_tensor(read_image(image), where)
            write_image(out, to_image(self_ensemble(predict, lq) if x8 else predict(lq)))
    return len(pairs)


def _pairs(source: Path, destination: Path) -> list[tuple[Path, Path]]:
    if source.is_dir():
        found = [Path(path) for path in list_images(source)]
        if not found:
            raise MtkdError(f"The folder {source} holds no images.")
        pairs = [(path, destination / f"{path.stem}.png") for path in found]
        first: dict[Path, Path] = {}
        for path, out in pairs:
            if first.setdefault(out, path) != path:
                raise MtkdError(f"{first[out]} and {path} would both become {out}; rename one of them.")
        return pairs
    if not source.exists():
        raise MtkdError(f"There is no image or folder {source}.")
    return [(source, destination / f"{source.stem}.png" if destination.is_dir() else destination)]


def _progress(pairs: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    if len(pairs) < 2 or not sys.stdout.isatty():
        return pairs
    from rich.progress import track

    return track(pairs, description="upscaling")  # pyright: ignore[reportReturnType]
