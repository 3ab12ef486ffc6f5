"""How long a student takes to make a 1280x720 image, in mtkd and in BasicSR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from measures import basicsr_world, memory, runs
from measures.timing import Aim, Effort, Section, ratios, side_by_side, spread
from mtkd import build
from mtkd.config import NetworkOptions
from mtkd.runtime.device import set_backends

BASE = "BasicSR, fp32"
LQ_SIZES = [(180, 320), (270, 480)]
"""What becomes 1280x720 and 1920x1080."""
WINDOW = 8
AIM = 2.0


def measure(device: str, effort: Effort) -> Iterator[Section]:
    quick = effort.quick
    sizes = [(24, 32)] if quick else LQ_SIZES if device == "cuda" else LQ_SIZES[:1]
    rows, aims, notes = [], [], []
    for student, size in product(list(runs.STUDENTS)[:: 2 if quick else 1], sizes):
        shown = f"{size[1] * runs.SCALE}x{size[0] * runs.SCALE}"
        with runs.workplace() as folder:
            options = runs.student_only(runs.recipe(student, folder, device, small=quick))
            set_backends(tf32=options.tf32, deterministic=options.deterministic)
        compiling = effort.full and (device == "cuda" or student != "RCAN_lw")
        cases, failed = variants(options.network_g, size, device, compiling=compiling)
        notes += [f"{student}: {failure}" for failure in failed]
        times = side_by_side(
            cases, device, rounds=effort.rounds(3 if device == "cpu" else 15), seconds=effort.seconds(0.3), warm_up=1
        )
        for name, case in cases.items():
            ratio, seconds = spread(ratios(times, BASE, name)), spread(times[name])
            rows.append(
                {
                    "student": student,
                    "image": shown,
                    "case": name,
                    "ms": seconds["median"] * 1e3,
                    "ms, low": seconds["low"] * 1e3,
                    "ms, high": seconds["high"] * 1e3,
                    "times as fast as BasicSR": ratio["median"],
                    "peak GiB": memory.peak(case, device),
                }
            )
        if device == "cuda":
            best = max((spread(ratios(times, BASE, name))["median"], name) for name in cases if name != BASE)
            aims.append(Aim(f"inference, {student} to {shown}: {BASE} / fastest of mtkd", AIM, best[0]))
            notes.append(f"{student} to {shown}: the fastest is {best[1]}.")
        yield section(rows, aims, notes, device, effort)


def section(rows: list[dict[str, Any]], aims: list[Aim], notes: list[str], device: str, effort: Effort) -> Section:
    """What is known after some of the students."""
    if device == "cpu":
        notes = [*notes, "Compiling takes about as long as all the rest here: RCAN_lw is not compiled on the CPU."]
    elif not effort.full:
        notes = [*notes, "Nothing was compiled in this short run."]
    return Section(
        title="Inference: latency",
        setting=(
            "x4, one lq image in device memory that becomes an image of the size in the row, no gradients, weights "
            "drawn at random, the networks of options/train/MTKD/stage2_published.yml, in eval mode. BasicSR: its own "
            "classes (SwinIR's input padded to whole windows, as its SwinIRModel does), contiguous, torch's defaults. "
            "mtkd: channels_last as in training and upscaling, TF32 allowed as by default (CUDA), `compiled` with "
            "torch.compile after its compilation. Peak memory is what the call needs beside weights and input."
        ),
        rows=rows,
        aims=aims,
        notes=notes,
    )


def variants(
    options: NetworkOptions, size: tuple[int, int], device: str, *, compiling: bool
) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """The rows of one student, ready to be called, and what could not be compiled."""
    scale = runs.SCALE
    lq = torch.rand(1, 3, *size, device=device)
    theirs = basicsr_world.network(options).to(device).eval()
    ours = build.build_network(options, scale).to(device).eval().to(memory_format=torch.channels_last)
    last = lq.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def base() -> None:
        with basicsr_world.torch_defaults():
            right, bottom = -lq.shape[-1] % WINDOW, -lq.shape[-2] % WINDOW
            theirs(F.pad(lq, (0, right, 0, bottom), "reflect") if options.type == "SwinIR" else lq)

    def called(net: nn.Module, precision: str) -> Callable[[], object]:
        @torch.no_grad()
        def call() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                net(last)

        return call

    cases: dict[str, Callable[[], object]] = {BASE: base, "mtkd, fp32": called(ours, "fp32")}
    if device == "cuda":
        cases["mtkd, bf16"] = called(ours, "bf16")
    failed = []
    for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):
        if not compiling:
            break
        call = called(torch.compile(ours), precision)  # pyright: ignore[reportArgumentType]
        try:
            call()
        except Exception as error:
            failed.append(f"compiled, {precision}: not possible here ({type(error).__name__}).")
        else:
            cases[f"mtkd, {precision}, compiled"] = call
    return cases, failed
