"""What a training step of each method costs, measured side by side in one run: time and peak memory, student-only = 1.

    python benchmarks/method_cost.py

Every method trains the same student on the same batches with the same teachers. The times of one round are taken
method after method, round after round, so that a machine that slows down slows all of them; the table shows medians
and the spread of the rounds. Peak memory comes from a fresh process per method (CPU: growth of the resident set;
CUDA: the allocator's peak). Results go to `benchmarks/results/method_cost_DEVICE.json` and, as a table, into
`docs/methods.md`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtkd import catalog
from mtkd.archs.dctswin import DCTSwin
from mtkd.archs.edsr import EDSR
from mtkd.archs.ensemble import Ensemble, FusedTeacher
from mtkd.archs.fsrcnn import FSRCNN
from mtkd.archs.privileged import PrivilegedTeacher
from mtkd.archs.rcan import RCAN
from mtkd.archs.swinir import SwinIR
from mtkd.contracts import Batch, Task
from mtkd.methods.base import Method, MethodConfig
from mtkd.runtime.environment import environment

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- cost table: begin -->", "<!-- cost table: end -->"
SCALE = 2


@dataclass(frozen=True)
class Size:
    """How large the networks and batches are."""

    teacher_feat: int
    teacher_block: int
    student_feat: int
    student_block: int
    batch: int
    lq: int


SIZES = {"cpu": Size(64, 16, 32, 8, 4, 32), "cuda": Size(256, 32, 64, 16, 16, 48)}


@dataclass(frozen=True)
class Case:
    """One row: a method with the networks it needs."""

    method: str
    student: Callable[[Size], nn.Module]
    teachers: Callable[[Size], Mapping[str, nn.Module]] = lambda size: {}
    options: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Mapping[str, Any]] | None = None
    stored: bool = False
    """Train from a stored target instead of the teachers."""


def student(size: Size) -> nn.Module:
    return EDSR(num_feat=size.student_feat, num_block=size.student_block, upscale=SCALE)


def teacher(size: Size) -> nn.Module:
    return EDSR(num_feat=size.teacher_feat, num_block=size.teacher_block, upscale=SCALE)


def one(size: Size) -> dict[str, nn.Module]:
    return {"teacher": teacher(size)}


def members(size: Size) -> dict[str, nn.Module]:
    heads = 4
    return {
        "edsr": teacher(size),
        "rcan": RCAN(num_feat=size.teacher_feat // 2, num_group=2, num_block=size.teacher_block // 2, upscale=SCALE),
        "swinir": SwinIR(
            upscale=SCALE,
            img_size=size.lq,
            window_size=8,
            depths=(4, 4),
            embed_dim=size.teacher_feat // 2,
            num_heads=(heads, heads),
            mlp_ratio=2,
            upsampler="pixelshuffledirect",
        ),
    }


def fusion(size: Size) -> nn.Module:
    return DCTSwin(upscale=SCALE, num_teachers=3, embed_dim=48, depths=(2, 2), num_heads=(3, 3))


def fused(size: Size) -> dict[str, nn.Module]:
    return {"fused": FusedTeacher(Ensemble(members(size)), fusion(size))}


def fsrcnn(size: Size) -> nn.Module:
    return FSRCNN(upscale=SCALE)


def privileged(size: Size) -> nn.Module:
    return PrivilegedTeacher(upscale=SCALE)


CASES = {
    "student only (SRModel)": Case("SRModel", student, terms={"pixel": {}}),
    "OutputKD": Case("OutputKD", student, one),
    "OutputKD, stored target": Case("OutputKD", student, stored=True),
    "MTKD stage 1 (fusion network)": Case("MTKDFusion", fusion, members),
    "MTKD stage 2": Case("MTKD", student, fused),
    "MTKD stage 2, stored target": Case("MTKD", student, stored=True),
    "SRKD": Case("SRKD", student, one),
    "FAKD": Case("FAKD", student, one),
    "FitNet": Case("FitNet", student, one),
    "AT": Case("AT", student, one),
    "PKT": Case("PKT", student, one),
    "RKD": Case("RKD", student, one),
    "CRD": Case("CRD", student, one),
    "StructuredKD": Case("StructuredKD", student, one),
    "DUKD": Case("DUKD", student, one),
    "DCKD without VQGAN": Case("DCKD", student, one),
    "CSD": Case("CSD", teacher, options={"width": 0.5, "vgg": "random"}),
    "OnlineTeacher": Case("OnlineTeacher", student),
    "PISR step 1 (FSRCNN)": Case("PISRTeacher", privileged),
    "PISR step 2 (FSRCNN)": Case("PISR", fsrcnn, lambda size: {"privileged": privileged(size)}),
    "student only, FSRCNN": Case("SRModel", fsrcnn, terms={"pixel": {}}),
}
BASE = "student only (SRModel)"


class Step:
    """One method, ready to take training steps."""

    def __init__(self, case: Case, device: str) -> None:
        size = SIZES[device]
        torch.manual_seed(0)
        task = Task(scale=SCALE, num_samples=100, total_steps=1000)
        cls = catalog.get("method", case.method)
        config = MethodConfig(terms=case.terms, options=case.options)
        self.method: Method = cls(case.student(size), case.teachers(size), task, config).to(device).train()
        self.optimizers = [torch.optim.Adam(group, lr=1e-4) for group in self.method.param_groups().values()]
        lq = torch.rand(size.batch, 3, size.lq, size.lq, device=device)
        gt = torch.rand(size.batch, 3, size.lq * SCALE, size.lq * SCALE, device=device)
        self.batch = Batch(lq, gt, torch.arange(size.batch, device=device), gt if case.stored else None)

    def __call__(self) -> None:
        out = self.method(self.batch, 0)
        total = sum(out.losses.values()) + sum(out.critic.values())
        total.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def seconds(step: Step, device: str, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def peak_memory(name: str, device: str, threads: int, answer: Any) -> None:
    """Peak bytes of two steps above what the process held when its networks were built; runs in its own process."""
    torch.set_num_threads(threads)
    step = Step(CASES[name], device)
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(), step()
        answer.put(torch.cuda.max_memory_allocated() - before)
    else:
        # Linux: 5 resets the high-water mark, which getrusage would inherit from the parent.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        step(), step()
        answer.put(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes of `field`, VmRSS (now) or VmHWM (peak), of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def measure(device: str, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    steps = {name: Step(case, device) for name, case in CASES.items()}
    for step in steps.values():
        seconds(step, device, 2)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, device, 2 if device == "cpu" else 10))
        print(f"round {number + 1} of {rounds}", flush=True)
    context = multiprocessing.get_context("spawn")
    result = {}
    for name in steps:
        answer = context.SimpleQueue()
        process = context.Process(target=peak_memory, args=(name, device, threads, answer))
        process.start()
        process.join()
        ratios = [own / base for own, base in zip(times[name], times[BASE], strict=True)]
        result[name] = {
            "seconds": statistics.median(times[name]),
            "time_ratio": statistics.median(ratios),
            "time_ratio_low": min(ratios),
            "time_ratio_high": max(ratios),
            "peak_bytes": answer.get(),
        }
    base = result[BASE]["peak_bytes"]
    return {name: {**row, "memory_ratio": row["peak_bytes"] / base} for name, row in result.items()}


def table(record: dict[str, Any]) -> str:
    size, facts = record["size"], record["environment"]
    lines = [
        f"Measured on {facts['device']} ({record['threads']} CPU threads), torch {facts['versions']['torch']}, commit "
        f"{facts['commit']}, with `{record['command']}`: x2, batch {size['batch']} of {size['lq']}x{size['lq']} lq, "
        f"student EDSR {size['student_feat']}x{size['student_block']}, teacher EDSR {size['teacher_feat']}x"
        f"{size['teacher_block']} (MTKD: beside an RCAN and a SwinIR of that order, and a DCTSwin; CSD splits the "
        "teacher). Time is the median over rounds, with the lowest and highest round; memory is the growth of the "
        "process's peak.",
        "",
        "| method | time per step | lowest to highest | peak memory | s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in record["methods"].items():
        lines.append(
            f"| {name} | {row['time_ratio']:.2f} | {row['time_ratio_low']:.2f} to {row['time_ratio_high']:.2f} | "
            f"{row['memory_ratio']:.2f} | {row['seconds']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = {
        "command": "python " + shlex.join(["benchmarks/method_cost.py", *sys.argv[1:]]),
        "environment": environment(device),
        "threads": args.threads,
        "rounds": args.rounds,
        "size": vars(SIZES[device]),
        "methods": measure(device, args.rounds, args.threads),
    }
    (ROOT / f"benchmarks/results/method_cost_{device}.json").write_text(json.dumps(record, indent=2) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    if BEGIN not in text:
        text += f"\n## Cost of a step\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
