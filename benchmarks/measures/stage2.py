"""What a stage-2 iteration costs: student alone, from a target store, with teachers on line, as published."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from measures import basicsr_world, memory, runs
from measures.timing import Aim, Effort, Section, ratios, side_by_side, spread, wait
from mtkd import build
from mtkd.config import Options
from mtkd.contracts import Batch
from mtkd.metrics.complexity import complexity
from mtkd.runtime.memory import available_memory

ALONE, STORE, ON_LINE, PUBLISHED = "student only", "from store", "on-line teachers", "published scheme"
STORE_AIM, PUBLISHED_AIM = {"cpu": 1.05, "cuda": 1.03}, {"cpu": 20.0, "cuda": 30.0}


def measure(device: str, effort: Effort) -> Iterator[Section]:
    quick = effort.quick
    roomy = device == "cuda" or available_memory() > ROOM
    batch = 2 if quick else 16 if roomy else 8
    rows, aims, notes = [], [], []
    for student in list(runs.STUDENTS)[: 1 if quick else None]:
        with runs.workplace() as folder:
            plain = runs.recipe(student, folder, device, small=quick)
            found, seconds, bound = of_student(plain, folder, device, batch, effort)
        rows += [{"student": student, **row} for row in found]
        aims.append(Aim(f"stage 2, {student}: {STORE} / {ALONE}", STORE_AIM[device], seconds["store"], at_least=False))
        aims.append(Aim(f"stage 2, {student}: {PUBLISHED} / {STORE}", PUBLISHED_AIM[device], seconds["published"]))
        notes.append(
            f"{student}: a step of {PUBLISHED} has {bound:.1f} times the multiply-adds of one {STORE} (forward and "
            "backward count as three forwards): their ratio where both use the machine equally well."
        )
        yield section(rows, aims, notes, device, batch)


def section(rows: list[dict[str, Any]], aims: list[Aim], notes: list[str], device: str, batch: int) -> Section:
    """What is known after some of the students."""
    if device == "cpu":
        notes = [
            *notes,
            f"Where `rounds` is 1, the case ran once on the whole batch after a warm-up on one image, and its ratio is "
            f"to the median of {ALONE}, with the spread of that.",
        ]
    return Section(
        title="Stage 2: the cost of an iteration",
        setting=(
            f"x4, batch {batch} of {runs.LQ}x{runs.LQ} lq patches (the option files' gt_size 128), one batch that "
            "stays in memory, weights drawn at random (speed does not depend on them). A step is the trainer's own: "
            "forward, backward, Adam, EMA 0.999, with the networks and options of "
            f"options/train/MTKD/stage2_published.yml in fp32. `{ALONE}` is the same file with model_type SRModel "
            f"and L1 to gt; `{STORE}` is MTKD with its "
            f"target from memory; `{ON_LINE}` is MTKD with EDSR_L, SwinIR_M, RCAN and DCTSwin frozen in the step. "
            f"`{PUBLISHED}` is the authors' released code rebuilt on BasicSR's networks (and our DCTSwin, without its "
            "residual): teachers and fusion network in eval mode but not frozen and under autograd, the target not "
            "detached, L = L1(sr, target) + 0.1 L1(sr, gt), backward through all networks, Adam on the student, "
            "BasicSR's EMA and its reading of the loss in every iteration. Peak memory is what a step needs beside "
            "what was held before it."
        ),
        rows=rows,
        aims=aims,
        notes=notes,
    )


ROOM = 20 * 2**30
"""Free memory above which the option files' batch of 16 is run: the published scheme takes about 1 GiB a sample."""


def of_student(
    plain: dict[str, Any], folder: Path, device: str, batch: int, effort: Effort
) -> tuple[list[dict[str, Any]], dict[str, float], float]:
    """Rows, the ratios that aims are about, and the bound that multiply-adds set to the second."""
    fast: dict[str, Callable[[], object]] = {
        ALONE: runs.Steps(runs.student_only(plain, batch=batch)),
        STORE: runs.Steps(runs.from_store(plain, folder, batch=batch)),
    }
    if device == "cuda":
        low = {"precision": "bf16"}
        fast[f"{ALONE}, bf16"] = runs.Steps(runs.student_only(plain, batch=batch, **low))
        fast[f"{STORE}, bf16"] = runs.Steps(runs.from_store(plain, folder, batch=batch, **low))
    options = runs.on_line(plain, folder, batch=batch)

    def on_line(**changes: Any) -> runs.Steps:
        return runs.Steps(runs.on_line(plain, folder, batch=batch, **changes))

    def published() -> PublishedScheme:
        return PublishedScheme(options, runs.Steps(runs.student_only(plain, batch=batch)).batch, device)

    slow: dict[str, Callable[[], Any]] = {ON_LINE: on_line, PUBLISHED: published}
    if device == "cuda":
        slow = {ON_LINE: on_line, f"{ON_LINE}, bf16": partial(on_line, precision="bf16"), PUBLISHED: published}
    peaks: dict[str, float] = {}
    if device == "cuda":
        cases = fast | {name: make() for name, make in slow.items()}
        times = side_by_side(cases, device, rounds=effort.rounds(15), seconds=effort.seconds(1.0), warm_up=3)
        peaks = {name: memory.peak(case, device) for name, case in cases.items()}
    else:
        times = side_by_side(fast, device, rounds=effort.rounds(15), seconds=0.0, warm_up=2)
        peaks = {name: memory.peak(case, device) for name, case in fast.items()}
        for name, make in slow.items():
            times[name], peaks[name] = once(make(), device)
            gc.collect()
    rows = []
    for name, found in times.items():
        base = times[ALONE] if len(found) > 1 else [spread(times[ALONE])["median"]]
        seconds, ratio = spread(found), spread([a / b for a, b in zip(found, base, strict=True)])
        if len(found) == 1:
            ends = spread(times[ALONE])
            ratio |= {"low": found[0] / ends["high"], "high": found[0] / ends["low"]}
        rows.append(
            {
                "case": name,
                "rounds": len(found),
                "seconds": seconds["median"],
                f"/ {ALONE}": ratio["median"],
                "low": ratio["low"],
                "high": ratio["high"],
                "peak GiB": peaks[name],
            }
        )
    measured = {
        "store": spread(ratios(times, STORE, ALONE))["median"],
        "published": spread(times[PUBLISHED])["median"] / spread(times[STORE])["median"],
    }
    return rows, measured, bound(options)


def once(step: runs.Steps | PublishedScheme, device: str) -> tuple[list[float], float]:
    """Seconds and peak GiB of one step, after one on a single image."""
    whole = step.batch
    step.batch = Batch(*(part if part is None else part[:1] for part in whole))
    step()
    step.batch = whole
    taken = []

    def timed() -> None:
        began = time.perf_counter()
        step()
        wait(device)
        taken.append(time.perf_counter() - began)

    return taken, memory.peak(timed, device)


def bound(options: Options) -> float:
    """Multiply-adds of a step with all networks in training / those of the student's step."""
    student = complexity(build.build_network(options.network_g, options.scale), (runs.LQ, runs.LQ)).macs
    teachers = [build.build_network(teacher.network, options.scale) for teacher in options.teachers.values()]
    fusion = build.build_network(options.fusion.network)  # pyright: ignore
    gt = runs.LQ * options.scale
    others = sum(complexity(net, (runs.LQ, runs.LQ)).macs for net in teachers)
    others += complexity(fusion, (gt, gt), channels=3 * len(teachers)).macs
    return 1 + others / student


class PublishedScheme:
    """One stage-2 iteration as in the authors' released code: nothing is frozen, nothing is detached."""

    def __init__(self, options: Options, batch: Batch, device: str) -> None:
        self.batch = Batch(*(part if part is None else part.contiguous() for part in batch))
        self.student = basicsr_world.network(options.network_g).to(device).train()
        self.shadow = copy.deepcopy(self.student).eval()
        self.teachers = nn.ModuleList(basicsr_world.network(teacher.network) for teacher in options.teachers.values())
        self.teachers.to(device).eval()
        fusion = copy.deepcopy(options.fusion.network)  # pyright: ignore
        fusion.args["residual"] = False
        self.fusion = build.build_network(fusion).to(device).eval()
        settings = options.train
        assert settings is not None
        self.decay = settings.ema_decay
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=settings.optim_g.lr, betas=(0.9, 0.999))

    def __call__(self) -> None:
        with basicsr_world.torch_defaults():
            self.optimizer.zero_grad()
            sr = self.student(self.batch.lq)
            target = self.fusion(torch.cat([teacher(self.batch.lq) for teacher in self.teachers], dim=1))
            loss = F.l1_loss(sr, target) + 0.1 * F.l1_loss(sr, self.batch.gt)
            loss.backward()
            self.optimizer.step()
        loss.item()
        live = dict(self.student.named_parameters())
        for name, shadow in self.shadow.named_parameters():
            shadow.data.mul_(self.decay).add_(live[name].data, alpha=1 - self.decay)
