"""The teachers that somebody names for a distillation: recognised, loaded and tried before time is spent."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtkd import build, zoo
from mtkd.config import NetworkOptions
from mtkd.contracts import MtkdError
from mtkd.data.images import list_images
from mtkd.inference.preflight import try_network
from mtkd.runtime.run_folder import DISTILLED, LATEST, RunFolder

_TIMED_SIDE = {"cpu": 64, "cuda": 256}
"""Side of the lq crop that teachers are timed on: large enough for the device to be busy."""


@dataclass(frozen=True)
class Teacher:
    """A teacher.

    Attributes:
        name: in the option file and in tables.
        section: what the option file says of it.
        about: a few words for people.
        net: lq -> sr, in eval mode on the CPU; None where the teacher is a folder of its images.
        notice: what had to be assumed of it, or nothing.
    """

    name: str
    section: Any
    about: str
    net: nn.Module | None = None
    notice: str = ""


def find_teachers(specs: Sequence[str], scale: int) -> list[Teacher]:
    """The teachers that `specs` name, loaded; weights of the zoo are fetched. Scales are compared before that.

    Raises:
        MtkdError: one is not known, is of another scale, or cannot be loaded or run.
    """
    for spec in specs:
        if spec.startswith("zoo:"):
            _check_entry(spec, scale)
    found: list[Teacher] = []
    for spec in specs:
        name = _free_name(spec, {teacher.name for teacher in found})
        path = Path(spec)
        if spec.startswith("zoo:"):
            found.append(_of_weights(spec, spec, name, scale))
        elif run := next((one for one in (path, path / DISTILLED) if (one / "resolved.yml").is_file()), None):
            weights = RunFolder(run).model(LATEST)
            if not weights.is_file():
                raise MtkdError(f"--teacher {spec} is a run that is not finished: it has no models/{weights.name}.")
            found.append(_of_weights(spec, str(weights), name, scale))
        elif path.is_dir():
            number = len(list_images(path))
            found.append(Teacher(name, {"images": spec}, f"{name}: its images, {number}"))
        else:
            found.append(_of_weights(spec, spec, name, scale))
    return found


def seconds_per_pixel(teachers: Sequence[Teacher], device: torch.device) -> float:
    """Seconds that all networks among `teachers` take together for one lq pixel, timed on a crop of noise."""
    side = _TIMED_SIDE.get(device.type, 64)
    lq = torch.rand(1, 3, side, side, device=device)
    return sum(_seconds(teacher.net, lq, device) for teacher in teachers if teacher.net is not None) / side**2


@torch.no_grad()
def _seconds(net: nn.Module, lq: torch.Tensor, device: torch.device) -> float:
    net.to(device)
    times = []
    try:
        for _ in range(3):
            began = time.perf_counter()
            net(lq)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
            if sum(times) > 10:
                break
    finally:
        net.to("cpu")
    return min(times)


def _check_entry(spec: str, scale: int) -> None:
    entry = zoo.entry(spec)
    if entry.scale is None:
        raise MtkdError(f"--teacher {spec} does not enlarge images; `mtkd zoo list` shows what each entry is for.")
    other = re.sub(r"_x\d$", f"_x{scale}", entry.name)
    better = other in zoo.ENTRIES
    if entry.scale < scale or (entry.scale > scale and better):
        raise MtkdError(
            f"--teacher {spec} enlarges by {entry.scale}, and --scale is {scale}. Take "
            f"{f'zoo:{other}, or ' if better else ''}another scale."
        )


def _of_weights(spec: str, source: str, name: str, scale: int) -> Teacher:
    if source.lower().endswith(".onnx"):
        raise MtkdError(
            f"--teacher {spec}: an .onnx file cannot teach as a network. Give the weights it was made of, or a folder "
            f"of what it makes of the photographs: `mtkd upscale LQ ANSWERS --weights {Path(spec).name}`."
        )
    try:
        described = zoo.describe(source)
        net = build.build_network(NetworkOptions(type=described.type, args=described.args))
        build.load_weights(net, source)
    except MtkdError as error:
        convert = "`mtkd zoo convert FILE NEW.safetensors --to safetensors --arch TYPE --arg NAME=VALUE`"
        remedy = (
            ""
            if source.startswith("zoo:")
            else f" {convert} writes a file that says what it is, for `--teacher NEW.safetensors`."
        )
        raise MtkdError(f"--teacher {spec}: {error}{remedy}") from error
    found = getattr(net, "scale", None)
    what = getattr(net, "architecture", None) or described.type
    if not isinstance(found, int) or found < scale:
        raise MtkdError(
            f"--teacher {spec} is a {what} that enlarges by {found}, and --scale is {scale}. Give a teacher for "
            f"x{scale} or more, or --scale {found}."
        )
    net = build.as_scale(net, scale).eval()
    try_network(net, f"--teacher {spec}", scale=scale)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    about = f"{name}: {what}, {parameters:,d} parameters"
    larger = {} if found == scale else {"scale": found}
    if larger:
        about += f", of x{found}: its images are made {Fraction(scale, found)} as large"
    if not described.assumed:
        return Teacher(name, {"pretrain": source, **larger} if larger else source, about, net)
    assumed = ", ".join(f"{key} {value}" for key, value in described.assumed.items())
    section = {"network": {"type": described.type, **described.args}, "pretrain": source, **larger}
    notice = f"{name} is {what} by its tensors; assumed, as no tensor shows it: {assumed} (see the option file)"
    return Teacher(name, section, about, net, notice)


def _free_name(spec: str, taken: set[str]) -> str:
    """A name of letters, digits and _ that torch and option files take, made of the file's."""
    stem = spec.removeprefix("zoo:") if spec.startswith("zoo:") else Path(spec).name
    stem = re.sub(r"\.(pth|pt|safetensors|ckpt)$", "", stem, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_")[:60]
    if not name or hasattr(nn.ModuleDict(), name) or name in ("mean", "fused"):
        name = f"teacher_{name}".strip("_")
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
