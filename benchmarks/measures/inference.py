"""How long a student takes to make a 1280x720 image, in mtkd and in BasicSR."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from measures import basicsr_world, memory, runs
from measures.timing import Aim, Section, ratios, side_by_side, spread
from mtkd.config import NetworkOptions
from mtkd.engine import build

BASE = "BasicSR, fp32"
LQ_SIZE = (180, 320)
WINDOW = 8
AIM = 1.5


def measure(device: str, quick: bool) -> Section:
    size = (24, 32) if quick else LQ_SIZE
    rows, aims, notes = [], [], []
    for student in list(runs.STUDENTS)[:: 2 if quick else 1]:
        with runs.workplace() as folder:
            options = runs.student_only(runs.recipe(student, folder, device, small=quick))
            build.set_backends(options)
        cases, failed = variants(
            options.network_g, size, device, compiling=not quick and (device == "cuda" or student != "RCAN_lw")
        )
        notes += [f"{student}: {failure}" for failure in failed]
        times = side_by_side(cases, device, rounds=2 if quick else 3 if device == "cpu" else 15, seconds=0.3, warm_up=1)
        for name, case in cases.items():
            ratio, seconds = spread(ratios(times, BASE, name)), spread(times[name])
            rows.append(
                {
                    "student": student,
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
            aims.append(Aim(f"inference, {student}: {BASE} / fastest of mtkd", AIM, best[0]))
            notes.append(f"{student}: the fastest is {best[1]}.")
    if device == "cpu":
        notes.append("Compiling takes about as long as everything else here, so RCAN_lw is not compiled on the CPU.")
    return Section(
        title="Inference: latency at 1280x720",
        setting=(
            f"x4, one image of {size[1]}x{size[0]} lq in device memory, no gradients, weights drawn at random, the "
            "networks of options/train/MTKD/stage2_*_x4.yml, in eval mode. BasicSR: its own classes (SwinIR's input "
            "padded to whole windows, as its SwinIRModel does), contiguous, torch's defaults. mtkd: channels_last as "
            "in training and upscaling, TF32 allowed as by default (CUDA), `compiled` with torch.compile after its "
            "compilation. Peak memory is what the call needs beside weights and input."
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
