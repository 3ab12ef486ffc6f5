"""How fast training batches come: from mtkd's image stores, and from BasicSR's loader in the forms its users have."""

from __future__ import annotations

import copy
import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import mtkd.basicsr  # noqa: F401  BasicSR cannot be imported before
from measures.photos import pairs
from measures.timing import Aim, Effort, Section, Times, ratios, spread, wait
from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.sampling import CropSampler
from mtkd.data.training import TrainingSet, open_training_set

SCALE, GT_SIZE, BATCH = 4, 128, 16
DIV2K = (1356, 2040)
SUB_IMAGE, SUB_STEP = 480, 240
AIM = 10.0


def measure(device: str, effort: Effort) -> Iterator[Section]:
    quick = effort.quick
    workers, count, size, rounds = (2, 2, (512, 512), 1) if quick else (8, 16, DIV2K, effort.rounds(3))
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        folder = Path(name)
        wholes = pairs(folder, count, size, SCALE)
        subs = sub_images(wholes, folder, take=min(count, 4))
        lmdbs = tuple(as_lmdb(path) for path in subs)
        began = time.perf_counter()
        images = open_training_set(
            {"dataroot_gt": wholes[0], "dataroot_lq": wholes[1]}, scale=SCALE, cache_dir=folder / "cache"
        )
        building = (time.perf_counter() - began) / count

        ours = {"mtkd, images in RAM": ("ram", 0), f"mtkd, images on disk, {workers} workers": ("disk", workers)}
        if device == "cuda":
            ours = {"mtkd, images on the device": ("device", 0), **ours}
        mode = "cuda" if device == "cuda" else None
        theirs: dict[str, tuple[tuple[Path, ...], str | None]] = {
            "BasicSR, whole PNGs": (wholes, mode),
            "BasicSR, sub-image PNGs": (subs, mode),
            "BasicSR, lmdb of sub-images": (lmdbs, mode),
        }
        if device == "cpu":
            theirs["BasicSR, sub-image PNGs, prefetch_mode cpu"] = (subs, "cpu")
        times: Times = {case: [] for case in (*ours, *theirs)}
        for number in range(rounds):
            for case, (residence, helpers) in ours.items():
                batches = of_mtkd(images, residence, helpers, device, seed=number)
                times[case].append(seconds_per_crop(batches, device, 8, 16 if quick else 256))
            for case, (paths, prefetch) in theirs.items():
                timed = workers if paths is wholes else 4 * workers
                batches = of_basicsr(paths, workers, prefetch, batches=timed + 4 * workers)
                times[case].append(seconds_per_crop(batches, device, workers, timed))
        file_sizes = [path.stat().st_size for path in wholes[0].iterdir()]

    best, slowest = next(iter(ours)), "BasicSR, whole PNGs"
    rows = []
    for case, values in times.items():
        rates = spread([1 / value for value in values])
        factor = spread(ratios(times, slowest, case))["median"]
        rows.append(
            {
                "source of batches": case,
                "crops/s": rates["median"],
                "low": rates["low"],
                "high": rates["high"],
                f"to {slowest}": factor,
            }
        )
    saved = spread([slow - fast for slow, fast in zip(times[slowest], times[best], strict=True)])["median"]
    rows.append(
        {**dict.fromkeys(rows[0]), "source of batches": "building the store, once: images/s", "crops/s": 1 / building}
    )
    yield Section(
        title="The data path: crops per second",
        setting=(
            f"Pairs (lq, gt) of random crops, x{SCALE}, batch {BATCH}, gt_size {GT_SIZE}, flipped and transposed, as "
            f"float32 in [0, 1] on the {device}. {count} mosaics of photographs, {size[1]}x{size[0]}, "
            f"{sum(file_sizes) / count / 1e6:.1f} MB a PNG, and their lq; sub-images are {SUB_IMAGE}x{SUB_IMAGE} every "
            f"{SUB_STEP} pixels, as BasicSR's extract_subimages cuts DIV2K. BasicSR: build_dataset, EnlargedSampler "
            f"and build_dataloader with num_worker_per_gpu {workers} and "
            f"prefetch_mode {'cuda, pinned' if device == 'cuda' else '~'}, in steady state (after one batch of each "
            "worker). All files are in the system's page cache."
        ),
        rows=rows,
        aims=[
            Aim(f"data path: {best} / {case}", AIM, spread(ratios(times, case, best))["median"])
            for case in list(theirs)[:3]
        ],
        notes=[
            f"Building the store takes {building:.3f} s an image, once. Against {slowest} it is paid back after "
            f"{building / saved:.2g} passes over the images, on which each image gives one crop.",
            f"{best}: {BATCH * spread(times[best])['median'] * 1e3:.3g} ms a batch.",
        ],
    )


def of_mtkd(images: TrainingSet, residence: Any, workers: int, device: str, *, seed: int) -> Iterator[Any]:
    sampler = CropSampler(
        lq=images.lq,
        gt=images.gt,
        scale=SCALE,
        gt_size=GT_SIZE,
        batch_size=BATCH,
        use_hflip=True,
        use_rot=True,
        seed=seed,
        device=device,
        residence=residence,
        workers=workers,
    )
    return sampler.batches(0, 1_000_000)


def of_basicsr(paths: tuple[Path, ...], workers: int, prefetch: str | None, *, batches: int) -> Iterator[Any]:
    """What `basicsr.train` iterates over, at least `batches` long."""
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.data.data_sampler import EnlargedSampler
    from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher

    given = {
        "name": "photographs",
        "type": "PairedImageDataset",
        "dataroot_gt": str(paths[0]),
        "dataroot_lq": str(paths[1]),
        "io_backend": {"type": "lmdb" if paths[0].suffix == ".lmdb" else "disk"},
        "phase": "train",
        "scale": SCALE,
        "gt_size": GT_SIZE,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": workers,
        "batch_size_per_gpu": BATCH,
        "prefetch_mode": prefetch,
        "num_prefetch_queue": 1,
        "pin_memory": prefetch == "cuda",
    }
    logging.disable(logging.INFO)
    dataset = build_dataset(given)
    sampler = EnlargedSampler(dataset, 1, 0, ratio=-(-batches * BATCH // len(dataset)))
    loader = build_dataloader(dataset, copy.deepcopy(given), num_gpu=1, dist=False, sampler=sampler, seed=0)
    logging.disable(logging.NOTSET)
    prefetcher = CUDAPrefetcher(loader, {"num_gpu": 1}) if prefetch == "cuda" else CPUPrefetcher(loader)
    try:
        while (batch := prefetcher.next()) is not None:
            yield batch
    finally:
        while prefetch == "cpu" and prefetcher.next() is not None:
            # Its thread would keep the workers for ever.
            pass
        del prefetcher, loader
        gc.collect()


def seconds_per_crop(batches: Iterator[Any], device: str, warm_up: int, timed: int) -> float:
    """Seconds that one crop takes in steady state, over `timed` batches after `warm_up` of them."""
    with closing(batches):  # pyright: ignore[reportArgumentType]
        for _ in islice(batches, warm_up):
            pass
        wait(device)
        began = time.perf_counter()
        made = sum(1 for _ in islice(batches, timed))
        wait(device)
        return (time.perf_counter() - began) / (made * BATCH)


def sub_images(folders: tuple[Path, Path], into: Path, *, take: int) -> tuple[Path, Path]:
    """Sub-images of the first `take` pairs, and of one size throughout: the last row and column end at the border."""
    made = []
    for folder, factor in zip(folders, (SCALE, 1), strict=True):
        target = into / f"sub_{folder.name}"
        side, step = SUB_IMAGE * factor // SCALE, SUB_STEP * factor // SCALE
        for path in list_images(folder)[:take]:
            image = read_image(path)
            corners = [(y, x) for y in starts(image.shape[0], side, step) for x in starts(image.shape[1], side, step)]
            for number, (y, x) in enumerate(corners, start=1):
                write_image(target / f"{path.stem}_s{number:03d}.png", image[y : y + side, x : x + side])
        made.append(target)
    return made[0], made[1]


def starts(length: int, side: int, step: int) -> list[int]:
    found = list(range(0, length - side + 1, step))
    return found if found[-1] == length - side else [*found, length - side]


def as_lmdb(folder: Path) -> Path:
    """The lmdb that BasicSR's create_lmdb makes of a folder."""
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    target = folder.with_name(folder.name + ".lmdb")
    files = list_images(folder)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        make_lmdb_from_imgs(str(folder), str(target), [path.name for path in files], [path.stem for path in files])
    return target
