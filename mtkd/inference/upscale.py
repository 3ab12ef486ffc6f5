"""Upscale image files with a network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import BinaryIO

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.data.formats import LONGEST_SIDE
from mtkd.data.headers import Header
from mtkd.data.images import read_bytes, try_writing, write_bytes
from mtkd.data.paired import raise_problems
from mtkd.data.photo import Photo, check_photo, decode_photo, encode_photo, without_hidden_colours
from mtkd.inference.enlarging import NOT_FINITE, Levels, enlarged, naming, place, stage
from mtkd.inference.photos import Job, Plan, plan
from mtkd.inference.tiling import FittingTiles
from mtkd.runtime.background import BackgroundCalls, prefetch, to_host
from mtkd.runtime.device import autocast, move
from mtkd.runtime.pixels import to_tensor
from mtkd.runtime.progress import Log, Progress

_LARGE = 1 << 27
"""Values of a large result: only one such result is held in memory at once."""

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def upscale(
    net: nn.Module,
    source: Sources,
    destination: str | os.PathLike[str],
    *,
    tile_size: int | None = None,
    tile_pad: int = 32,
    x8: bool = False,
    precision: str = "fp32",
    compile: bool = False,
    device: str | torch.device | None = None,
    format: str | None = None,
    quality: int | None = None,
    recursive: bool = True,
    overwrite: bool = False,
    skip_existing: bool = False,
    log: Log = print,
) -> int:
    """Upscale the images that `source` names into `destination`, and return how many were written.

    `photos.plan` tells which images become which files, `upscale_planned` how. The arguments are theirs.

    Raises:
        MtkdError: as these two.
    """
    planned = plan(
        [source] if isinstance(source, str | os.PathLike) else source,
        destination,
        format=format,
        quality=quality,
        recursive=recursive,
        overwrite=overwrite,
        skip_existing=skip_existing,
        log=log,
    )
    return upscale_planned(
        net,
        planned,
        tile_size=tile_size,
        tile_pad=tile_pad,
        x8=x8,
        precision=precision,
        compile=compile,
        device=device,
        log=log,
    )


def upscale_planned(
    net: nn.Module,
    planned: Plan,
    *,
    tile_size: int | None = None,
    tile_pad: int = 32,
    x8: bool = False,
    precision: str = "fp32",
    compile: bool = False,
    device: str | torch.device | None = None,
    stdout: BinaryIO | None = None,
    log: Log = print,
) -> int:
    """Make the images of `planned`, and return how many were written.

    Transparency is enlarged by bicubic interpolation, and the colours of wholly transparent pixels are those of the
    nearest that are seen (`without_hidden_colours`); 16 bits, a colour profile and grey are kept; `log` names what is
    not kept. Headers are read first. The next images are decoded, and earlier ones encoded, while the network runs; a
    file appears under its name when it is complete. One image among several that cannot be read or upscaled does not
    stop the others.

    Args:
        net: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale), with its `scale`; it is moved to `device`.
        tile_size: run in tiles of so many lq pixels; None for whole images where they fit into memory, else the largest
            tiles that do.
        tile_pad: lq pixels of context on each side of a tile.
        x8: average over the eight flips and rotations.
        compile: run `torch.compile` on the network; if that fails, `log` gets the reason.
        stdout: gets the bytes of an image that goes to standard output; None for `sys.stdout`.
        log: gets a line for each thing that was not done as the arguments say.

    Raises:
        MtkdError: nothing can be written into the folder; nothing is done then. Or an image cannot be written; those
            before it are. Or, at the end, images could not be read or upscaled: they are listed, and all others are
            written.
    """
    scale: int = net.scale  # pyright: ignore[reportAssignmentType]
    failures: dict[Job, str] = {}
    work = _checked(planned.jobs, scale, failures)
    _raise_if_alone(planned, failures)
    if not work:
        _raise_listed(planned, failures)
        return 0
    where = place(net, device)
    net = move(net.eval(), where, torch.channels_last)
    predict = FittingTiles(net, scale=scale, tile_size=tile_size, tile_pad=tile_pad, x8=x8, log=log)
    first = next(iter(work))
    if not first.stream:
        try_writing(first.out.parent)  # the last check, because it makes the folder
    if (origin := getattr(net, "origin", None)) is not None:
        log(f"Weights: {origin}")
    if failures:
        log(f"{len(failures)} of {len(planned.jobs)} images are left out, and listed at the end.")
    if compile:
        from mtkd.inference.evaluate import compile_for_images

        compile_for_images(net, where, partial(autocast, precision, where), log)

    def read(job: Job) -> tuple[Photo, Tensor] | MtkdError:
        try:
            photo = decode_photo(read_bytes(job.source) if job.data is None else job.data, job.source)
        except MtkdError as error:
            return error
        return photo, stage(without_hidden_colours(photo), where)

    def write(job: Job, photo: Photo, levels: Callable[[], Tensor], finite: Callable[[], Tensor]) -> None:
        if not finite():
            failures[job] = f"{job.source}: {NOT_FINITE}"
            return
        data, lost = encode_photo(job.out, enlarged(photo, levels(), scale), quality=planned.quality)
        if job.stream:
            (stdout or sys.stdout.buffer).write(data)
        else:
            write_bytes(job.out, data)
        for what in (*photo.lost, *lost):
            log(f"{job.source}: not kept: {what}.")

    done, all_pixels = 0, sum(work.values())
    with (
        torch.no_grad(),
        autocast(precision, where),
        BackgroundCalls() as calls,
        closing(prefetch(read, work)) as images,
        Progress("upscaling", log, short=True) as progress,
    ):
        for number, (job, found) in enumerate(zip(work, images, strict=True), start=1):
            if isinstance(found, MtkdError):
                failures[job] = str(found)
                continue
            photo, image = found
            if image.numel() * scale**2 > _LARGE:
                calls.settle()
            levels = Levels(photo)
            try:
                with naming(job.source):
                    sr = predict(to_tensor(image, where), levels, value_bytes=levels.nbytes)
            except MtkdError as error:
                failures[job] = str(error)
                continue
            # (1, C, H, W) -> (H, W, C)
            calls.submit(write, job, photo, to_host(sr[0].movedim(0, -1)), to_host(levels.finite))
            done += work[job]
            progress(number, len(work), done / all_pixels)
    _raise_if_alone(planned, failures)
    _raise_listed(planned, failures)
    return len(planned.jobs) - len(failures)


def _checked(jobs: Sequence[Job], scale: int, failures: dict[Job, str]) -> dict[Job, int]:
    """The jobs whose headers speak for them, with their pixels as far as they are known; `failures` gets the others."""

    def check(job: Job) -> Header | MtkdError | None:
        try:
            header = check_photo(job.source, job.data)
            most = LONGEST_SIDE.get(job.out.suffix.lower())
            if header is not None and most is not None and scale * max(header.size) > most:
                height, width = (scale * side for side in header.size)
                raise MtkdError(
                    f"{job.source} becomes {width}x{height}, and a side of a {job.out.suffix} has {most} pixels at "
                    "most. Write a .png."
                )
        except MtkdError as error:
            return error
        return header

    work = {}
    with closing(prefetch(check, jobs)) as headers:
        for job, header in zip(jobs, headers, strict=True):
            if isinstance(header, MtkdError):
                failures[job] = str(header)
            else:
                work[job] = 1 if header is None else max(header.size[0] * header.size[1], 1)
    return work


def _raise_if_alone(planned: Plan, failures: dict[Job, str]) -> None:
    if failures and planned.alone:
        raise MtkdError(next(iter(failures.values())))


def _raise_listed(planned: Plan, failures: dict[Job, str]) -> None:
    made = len(planned.jobs) - len(failures)
    raise_problems(
        f"{made} of {len(planned.jobs)} images were upscaled into {planned.into}, and these were not",
        [failures[job] for job in planned.jobs if job in failures],
    )
