"""How many training images a second mtkd and BasicSR take from PNG files, data path included."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from measures import basicsr_world, memory, photos, runs
from measures.timing import Aim, Effort, Section, spread, wait
from mtkd.config import make_options
from mtkd.training.loop import train_step
from mtkd.training.prepare import prepare

SCALE, GT_SIZE = 4, 128
WHOLE, CUT = (1356, 2040), (480, 480)
SMALL = {"num_feat": 16, "num_block": 4}
EDSR_M = {"num_feat": 64, "num_block": 16}
WORKERS = 6
"""BasicSR's option files say num_worker_per_gpu: 6, prefetch_mode: ~, dataset_enlarge_ratio: 100."""


@dataclass(frozen=True)
class Case:
    """One row pair: an EDSR, the images it is trained on, and the batch."""

    network: str
    arguments: dict[str, int]
    images: str
    batch: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.network}, {self.images}"


def measure(device: str, effort: Effort) -> Iterator[Section]:
    quick, batch = effort.quick, 16 if device == "cuda" else 4
    cases = [
        Case("EDSR 16x4", SMALL, "whole images", 4 if quick else 16),
        Case("EDSR 16x4", SMALL, "sub-images", 16),
        Case("EDSR_M", EDSR_M, "sub-images", batch),
        Case("EDSR_M", EDSR_M, "whole images", batch),
    ]
    if quick:
        cases = cases[:1]
    elif not effort.full:
        cases = [cases[0], cases[2]]
    elif device == "cpu":
        cases = cases[:3]
    turns = 2 if effort.full else 1
    counts = {"whole images": (10 if effort.full else 2, WHOLE), "sub-images": (48 if effort.full else 12, CUT)}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    worlds = ["BasicSR", "mtkd", *(["mtkd, bf16"] if device == "cuda" and effort.full else [])]
    start_up: dict[str, float] = {}
    with runs.workplace() as folder:
        for images in {case.images: None for case in cases}:
            photos.pairs(folder / images, *counts[images], SCALE)
        # A process of its own: loader workers, caches and memory of one must not meet the other. Where time is short,
        # a trainer's cases share one.
        for number, group in product(range(turns), [[case] for case in cases] if effort.full else [cases]):
            for world in worlds:
                place = folder / f"{group[0].name} {world} {number}"
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    job = pool.submit(throughputs, world, group, folder, place, device, torch.get_num_threads(), effort)
                    results = job.result()
                for case, result in zip(group, results, strict=True):
                    found.setdefault((case.name, world), []).append(result)
                    if world == "mtkd":
                        start_up.setdefault(case.images, result["start_up"])
    rows, aims = [], []
    for case in cases:
        base = [value for result in found[case.name, "BasicSR"] for value in result["rates"]]
        for world in worlds:
            results = found[case.name, world]
            own = [value for result in results for value in result["rates"]]
            ratio, rate = spread([a / b for a, b in zip(own, base, strict=True)]), spread(own)
            rows.append(
                {
                    "network": case.network,
                    "data": case.images,
                    "batch": case.batch,
                    "trainer": world,
                    "images/s": rate["median"],
                    "/ BasicSR": ratio["median"],
                    "low": ratio["low"],
                    "high": ratio["high"],
                    "GPU busy": results[-1]["busy"],
                    "memory GiB": results[-1]["memory"],
                }
            )
            about = f"training {case.network} from {case.images}: {world} / BasicSR, images per second"
            if world == "mtkd" and case.network != "EDSR_M" and case.images == "whole images":
                aims.append(Aim(about, 3.0 if device == "cuda" else 2.0, ratio["median"]))
            if device == "cuda" and world != "BasicSR" and case.network == "EDSR_M" and case.images == "sub-images":
                aims.append(Aim(about, 2.0, ratio["median"]))
                aims.append(
                    Aim(
                        f"training EDSR_M, {world}: share of time the GPU idles",
                        0.03,
                        1 - results[-1]["busy"],
                        at_least=False,
                    )
                )
    yield Section(
        title="Training: images per second, from PNG files",
        setting=(
            f"x4, gt crops of {GT_SIZE}, flips and transposes, L1, Adam, EMA 0.999, fp32, the same EDSR in both. "
            f"Whole images: {counts['whole images'][0]} PNGs of 2040x1356 with their lq; sub-images: "
            f"{counts['sub-images'][0]} of 480x480; mosaics of real photographs. BasicSR 1.4.2: its "
            f"PairedImageDataset, loader (num_worker_per_gpu {WORKERS}, prefetch_mode ~, dataset_enlarge_ratio 100), "
            "SRModel and the loop of its train.py. mtkd: a run as `mtkd train` prepares it, stepped by its own "
            f"iteration, defaults throughout. Each has its own process, {'two' if turns == 2 else 'one'} of each in "
            "turn; the batches that BasicSR's workers had ahead are used up before time is taken. Memory: on CUDA "
            "the allocator's peak, on the CPU what the process and its workers hold, without files in the page cache."
        ),
        rows=rows,
        aims=aims,
        notes=[
            f"Not in these numbers: before its first iteration mtkd decodes every image once. Preparing the run took "
            f"{seconds:.1f} s with these {images}; the next run finds them decoded."
            for images, seconds in start_up.items()
        ],
    )


def throughputs(
    world: str, cases: list[Case], folder: Path, place: Path, device: str, threads: int, effort: Effort
) -> list[dict[str, Any]]:
    """`throughput` of each case; runs in its own process."""
    torch.set_num_threads(threads)
    return [throughput(world, case, folder / case.images, place / case.name, device, effort) for case in cases]


def throughput(world: str, case: Case, images: Path, place: Path, device: str, effort: Effort) -> dict[str, Any]:
    """Images per second in several windows, share of time in which the GPU works, and memory."""
    # Loader workers start as they do in a process that a user starts.
    multiprocessing.set_start_method("fork", force=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the case before, in the same process
    began = time.perf_counter()
    with runs.silence():
        make = of_basicsr if world == "BasicSR" else of_mtkd
        step = make(case, images, place, device, "bf16" if world.endswith("bf16") else "fp32")
    start_up = time.perf_counter() - began
    rates = windows(step, case.batch, device, effort, warm_up=2 * WORKERS + 2 if world == "BasicSR" else 4)
    held = torch.cuda.max_memory_allocated() / memory.GIB if device == "cuda" else memory.of_processes()
    share = busy(step, 20 if effort.full else 5) if device == "cuda" else None
    # Loader workers finish what they have ahead before they end, which the next case would feel.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    return {"rates": rates, "busy": share, "memory": held, "start_up": start_up}


def windows(step: Callable[[], object], batch: int, device: str, effort: Effort, *, warm_up: int) -> list[float]:
    """Images per second, one value a window of a second or two."""
    for _ in range(warm_up):
        step()
    wait(device)
    began = time.perf_counter()
    for _ in range(3):
        step()
    wait(device)
    length = max(3, round((2.0 if effort.full else 0.5 if effort.quick else 1.0) / (time.perf_counter() - began) * 3))
    rates = []
    for _ in range(1 if effort.quick else 3):
        began = time.perf_counter()
        for _ in range(length):
            step()
        wait(device)
        rates.append(length * batch / (time.perf_counter() - began))
    return rates


def busy(step: Callable[[], object], steps: int) -> float:
    """Share of the time of some steps in which at least one kernel or copy ran on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        passed = time.perf_counter() - began
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    working, until = 0.0, float("-inf")
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        working += max(0.0, end - max(start, until))
        until = max(until, end)
    # The profiler counts microseconds.
    return working / 1e6 / passed


def of_mtkd(case: Case, images: Path, place: Path, device: str, precision: str) -> Callable[[], object]:
    """One iteration of an mtkd run."""
    gt_folder, lq_folder = folders(images)
    options = make_options(
        {
            "name": "training",
            "model_type": "SRModel",
            "scale": SCALE,
            "num_gpu": 1 if device == "cuda" else 0,
            "manual_seed": 0,
            "precision": precision,
            "datasets": {
                "train": {
                    "name": "photographs",
                    "type": "PairedImageDataset",
                    "dataroot_gt": str(gt_folder),
                    "dataroot_lq": str(lq_folder),
                    "gt_size": GT_SIZE,
                    "batch_size_per_gpu": case.batch,
                }
            },
            "network_g": {"type": "EDSR", **case.arguments},
            "path": {"experiments_root": str(place)},
            "train": {
                "ema_decay": 0.999,
                "optim_g": {"type": "Adam", "lr": 2e-4, "betas": [0.9, 0.99]},
                "scheduler": {"type": "MultiStepLR", "milestones": [250000], "gamma": 0.5},
                "total_iter": 500000,
                "pixel_opt": {"type": "L1Loss"},
            },
        }
    )
    run = prepare(options)
    run.method.train()
    batches, count = run.batches(), iter(range(options.train.total_iter))  # pyright: ignore
    return lambda: train_step(run, next(count), batches)


def of_basicsr(case: Case, images: Path, place: Path, device: str, precision: str) -> Callable[[], object]:
    """One iteration of the loop in basicsr/train.py."""
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.data.data_sampler import EnlargedSampler
    from basicsr.data.prefetch_dataloader import CPUPrefetcher
    from basicsr.models import build_model
    from basicsr.utils import set_random_seed

    gt_folder, lq_folder = folders(images)
    gpus = 1 if device == "cuda" else 0
    data = {
        "name": "photographs",
        "type": "PairedImageDataset",
        "phase": "train",
        "scale": SCALE,
        "dataroot_gt": str(gt_folder),
        "dataroot_lq": str(lq_folder),
        "io_backend": {"type": "disk"},
        "gt_size": GT_SIZE,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": WORKERS,
        "batch_size_per_gpu": case.batch,
        "dataset_enlarge_ratio": 100,
        "prefetch_mode": None,
    }
    options = {
        "name": "training",
        "model_type": "SRModel",
        "scale": SCALE,
        "num_gpu": gpus,
        "manual_seed": 0,
        "is_train": True,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "network_g": {"type": "EDSR", **basicsr_world.DEFAULTS["EDSR"], **case.arguments, "upscale": SCALE},
        "path": {},
        "train": {
            "ema_decay": 0.999,
            "optim_g": {"type": "Adam", "lr": 2e-4, "weight_decay": 0, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [250000], "gamma": 0.5},
            "total_iter": 500000,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
    }
    torch.backends.cudnn.benchmark = True
    set_random_seed(0)
    dataset = build_dataset(data)
    sampler = EnlargedSampler(dataset, 1, 0, data["dataset_enlarge_ratio"])
    prefetcher = CPUPrefetcher(build_dataloader(dataset, data, num_gpu=gpus, sampler=sampler, seed=0))
    model = build_model(options)

    def iterations() -> Iterator[None]:
        number = 0
        for epoch in range(10**6):
            sampler.set_epoch(epoch)
            prefetcher.reset()
            batch = prefetcher.next()
            while batch is not None:
                number += 1
                model.update_learning_rate(number, warmup_iter=-1)
                model.feed_data(batch)
                model.optimize_parameters(number)
                yield
                batch = prefetcher.next()

    ready = iterations()
    return lambda: next(ready)


def folders(images: Path) -> tuple[Path, Path]:
    """gt and lq folder that `photos.pairs` has made inside `images`."""
    gt_folder, lq_folder = sorted(images.iterdir())
    return gt_folder, lq_folder
