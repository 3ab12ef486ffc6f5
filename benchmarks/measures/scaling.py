"""How much of the machine a training step uses, and how its cost grows with batch, patch and teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from measures import runs
from measures.timing import Aim, Effort, Section, side_by_side, spread
from mtkd import build
from mtkd.config import Options
from mtkd.metrics.complexity import complexity

BATCHES, PATCHES = (1, 4, 16, 32), (24, 32, 48, 64)
GROWING = "EDSR_M"
"""The student whose batch, patch and teachers are varied."""
USE_AIM = 0.45


def measure(device: str, effort: Effort) -> Iterator[Section]:
    quick = effort.quick
    batch = 2 if quick else 16 if device == "cuda" else 4
    rounds = effort.rounds(3 if device == "cpu" else 9)
    rows: list[dict[str, Any]] = []
    aims: list[Aim] = []
    peaks: dict[str, float] = {}
    for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):
        for student in list(runs.STUDENTS)[:: 2 if quick else 1]:
            with runs.workplace() as folder:
                plain = runs.recipe(student, folder, device, small=quick)
                options = runs.student_only(plain, batch=batch, precision=precision)
                steps: dict[str, Callable[[], object]] = {student: runs.Steps(options)}
                # Beside the step, so that both meet the machine in the same state.
                steps["peak"] = matmul(256 if quick else 8192 if device == "cuda" else 2048, device, precision)
                times = side_by_side(steps, device, rounds=rounds, seconds=effort.seconds(0.5))
            rate = steps["peak"].operations / min(times["peak"])  # pyright: ignore[reportFunctionMemberAccess]
            peaks[precision] = max(peaks.get(precision, 0.0), rate)
            rows.append(row("student", f"{student}, {precision}", times[student], flops(options), rate))
            if (student, precision) == ("EDSR_M", "bf16"):
                used = flops(options) / spread(times[student])["median"] / rate
                aims.append(Aim("training EDSR_M in bf16: rate / that of a large matrix product", USE_AIM, used))
            yield section(rows, aims, peaks, device, batch)
    if not (effort.full or quick):
        return
    rate = peaks["fp32"]
    with runs.workplace() as folder:
        plain = runs.recipe(GROWING, folder, device, small=quick)
        for what, sizes in (("batch", BATCHES), ("patch", PATCHES)):
            settings = {
                f"{what} {size}": runs.student_only(
                    plain, batch=size if what == "batch" else batch, lq=size if what == "patch" else None
                )
                for size in sizes[: 2 if quick else None]
            }
            rows += grow(what, settings, device, rounds, rate)
        rows += grow("teachers", with_teachers(plain, folder, device, batch, quick), device, rounds, rate)
    yield section(rows, aims, peaks, device, batch)


def section(rows: list[dict[str, Any]], aims: list[Aim], peaks: dict[str, float], device: str, batch: int) -> Section:
    """What is known after some of the rows."""
    return Section(
        title="Scaling: use of the machine, and growth",
        setting=(
            f"x4 training steps on one batch in memory, batch {batch} of {runs.LQ}x{runs.LQ} lq unless the row says "
            "otherwise, fp32 unless it says so; the students of options/train/MTKD/stage2_published.yml, without "
            "teachers. Flops are 3 (forward, and backward to maps and to weights) x 2 x the multiply-adds of the "
            "student's forward; use is flops / time / the best rate that a large square matrix product of the same "
            f"dtype reached in this run, round by round beside the student. Growth is shown for {GROWING}: batch, "
            "patch side in lq pixels, and number of teachers of MTKD: 0 is a target from the store, then "
            f"{teacher_names(device)}, one after the other, fused by DCTSwin in the step; flops of these rows are the "
            "student's alone."
        ),
        rows=rows,
        aims=aims,
        notes=[
            f"A matrix product reaches {value / 1e12:,.2f} TFLOP/s in {precision}" + (" (TF32)." if is_tf32 else ".")
            for precision, value in peaks.items()
            for is_tf32 in [device == "cuda" and precision == "fp32"]
        ],
    )


def grow(what: str, settings: dict[str, Options], device: str, rounds: int, rate: float) -> list[dict[str, Any]]:
    """Rows of steps that are timed side by side."""
    times = side_by_side(
        {name: runs.Steps(options) for name, options in settings.items()}, device, rounds=rounds, seconds=0.3
    )
    return [row(what, name, times[name], flops(options), rate) for name, options in settings.items()]


def row(what: str, name: str, seconds: list[float], operations: int, rate: float) -> dict[str, Any]:
    found = spread(seconds)
    return {
        "varied": what,
        "case": name,
        "ms": found["median"] * 1e3,
        "ms, low": found["low"] * 1e3,
        "ms, high": found["high"] * 1e3,
        "GFLOP": operations / 1e9,
        "use": f"{operations / found['median'] / rate:.0%}",
    }


def flops(options: Options) -> int:
    """Of one step of the student, all samples."""
    train_set = options.datasets.train
    assert train_set is not None
    side = train_set.gt_size // options.scale  # pyright: ignore[reportAttributeAccessIssue]
    net = build.build_network(options.network_g, options.scale)
    return 3 * 2 * complexity(net, (side, side)).macs * train_set.batch_size_per_gpu


def matmul(side: int, device: str, precision: str) -> Callable[[], object]:
    """A product of two square matrices; its attribute `operations` counts multiplications and additions."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))

    def product() -> object:
        return a @ b

    product.operations = 2 * side**3  # pyright: ignore[reportFunctionMemberAccess]
    return product


def with_teachers(plain: dict[str, Any], folder: Path, device: str, batch: int, quick: bool) -> dict[str, Options]:
    """MTKD with its target from the store, and with one, two and three teachers on line."""
    if device == "cpu":
        # The published teachers cost tens of seconds here; the students stand for them.
        networks = [runs.recipe(name, folder, device, small=quick)["network_g"] for name in runs.STUDENTS]
        teachers = dict(zip(plain["teachers"], ({"network": network} for network in networks), strict=True))
    else:
        teachers = plain["teachers"]
    settings = {"0 teachers": runs.from_store(plain, folder, batch=batch)}
    for count in range(1, len(teachers) + 1):
        fewer = {**plain, "teachers": dict(list(teachers.items())[:count])}
        settings[f"{count} teacher{'s' if count > 1 else ''}"] = runs.on_line(fewer, folder, batch=batch)
    return settings


def teacher_names(device: str) -> str:
    return "EDSR_L, SwinIR_M and RCAN" if device == "cuda" else "EDSR_M, RCAN_lw and SwinIR_S in the teachers' place"
