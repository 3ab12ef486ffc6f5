"""Write the files of a network, each after its own runtime has computed with it what torch computes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.export import ncnn_file, onnx_file, torch_file
from mtkd.export.onnx_network import OnnxNetwork
from mtkd.export.samples import SIZES, Photos, pairs
from mtkd.export.subject import Subject
from mtkd.metrics.psnr import psnr
from mtkd.runtime.files import sha256

FORMATS = {"onnx": ".onnx", "ncnn": ".param", "torch": ".pt2", "safetensors": ".safetensors"}
"""Format -> suffix of its file; ncnn has a `.bin` beside it."""
PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),
    "ncnn": ("fp32", "fp16"),
    "torch": ("fp32",),
    "safetensors": ("fp32",),
}
TOLERANCE = 1e-4
"""Largest difference from torch, in units of the image, that fp32 may have: 1/40 of a level of 8 bits."""
_WINDOWS = {
    "ncnn": "{} cannot be exported to ncnn: it attends inside windows, and ncnn's maps have at most four axes and no "
    "cyclic shift at free sizes. Export it to ONNX.",
    "torch": "{} cannot be exported by torch.export with free sizes: torch cannot prove how its windows divide a side, "
    "and would write a file for one size. Export it to ONNX, or to safetensors.",
}
LOWEST_PSNR = 30.0
"""dB against torch's fp32, below which a file of another precision is refused as broken."""


@dataclass(frozen=True)
class Exported:
    """What was written, and what its own runtime computed with it.

    Attributes:
        path: the file; the `.param` of ncnn's two.
        files: every file.
        difference: largest difference from torch, in units of the image, on the three sizes.
        psnr: in dB, of its images against torch's of fp32; infinite where they are equal.
        cost: dB of PSNR-Y that the precision costs on photos (positive: worse), None for fp32 and fusion networks.
        photos: how many photos `cost` is the mean over.
        sha256: of `path`.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    precision: str
    difference: float
    psnr: float
    cost: float | None
    photos: int
    sha256: str

    def __str__(self) -> str:
        names = " and ".join(str(file) for file in self.files)
        size = sum(file.stat().st_size for file in self.files) / 1000
        agree = f"differs from torch by at most {self.difference:.1e}"
        if self.precision != "fp32":
            agree = f"{self.psnr:.1f} dB against torch in fp32"
        cost = "" if self.cost is None else f"; costs {self.cost:.3f} dB PSNR-Y on {_counted(self.photos)}"
        return f"{names} ({self.format} {self.precision}, {size:,.0f} kB): {agree}, on {len(SIZES)} odd sizes{cost}"


def export(
    net: nn.Module,
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    precision: str = "fp32",
    photos: str | os.PathLike[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write `net` as one file that another program runs, checked by that program before it gets its name.

    Args:
        net: lq (N, 3, h, w), RGB in [0, 1] -> sr (N, 3, h * scale, w * scale), or a fusion network. It is not changed;
            what is written is its deployable form.
        out: the file, or for ncnn its `.param`.
        format: one of `FORMATS`; None for the one of the suffix of `out`.
        precision: fp32; fp16 (ONNX: arithmetic and weights; ncnn: weights); int8 (ONNX), calibrated on `photos`.
        photos: folder of images as the network will see their like; None for the demo's five.
        facts: {"arch": {"type", "args"}, "licence"} where `net` does not know them by its `origin`.
        overwrite: replace what exists.

    Raises:
        MtkdError: a package is missing, the format cannot say what the network does, `out` exists, or what was written
            computes something else. Nothing has the name `out` then that had not before.
    """
    folder = None if photos is None else Path(photos)
    return Exporter(net, photos=folder, facts=facts).write(
        Path(out), format=format, precision=precision, overwrite=overwrite
    )


class Exporter:
    """Several files of one network: what they share is computed once. Arguments as of `export`."""

    def __init__(self, net: nn.Module, *, photos: Path | None = None, facts: Mapping[str, Any] | None = None) -> None:
        self.photos = Photos(photos)
        _ = self.photos.files  # a folder that cannot be used is refused before anything is computed
        self.subject = Subject.of(net, facts)

    def plan(
        self, out: Path, *, format: str | None = None, precision: str = "fp32", overwrite: bool = False
    ) -> tuple[Any, ...]:
        """The format and the files that `write` would write; nothing is computed.

        Raises:
            MtkdError: one of them exists, or the network has no such file.
        """
        chosen = format or format_of(out)
        check(chosen, precision)
        out = ncnn_file.named(out, self.subject.factor) if chosen == "ncnn" else out
        targets = [out, out.with_suffix(".bin")] if chosen == "ncnn" else [out]
        if not overwrite and (there := next((file for file in targets if file.exists()), None)):
            raise MtkdError(f"{there} exists. Choose another name, or add --overwrite.")
        if precision == "int8" and not self.subject.makes_photos:
            raise MtkdError(
                f"{self.subject.name} fuses the images of several networks, and int8 is calibrated on photos alone: "
                "take fp32 or fp16."
            )
        if self.subject.has_windows and chosen in ("ncnn", "torch"):
            raise MtkdError(_WINDOWS[chosen].format(self.subject.name))
        return chosen, *targets

    def write(
        self, out: Path, *, format: str | None = None, precision: str = "fp32", overwrite: bool = False
    ) -> Exported:
        """As `export`."""
        chosen, out, *rest = self.plan(out, format=format, precision=precision, overwrite=overwrite)
        targets = [out, *rest]
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside `out`, so that a checked file is moved and not copied.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            trial = Path(folder, out.name)
            self._write(trial, chosen, precision)
            ran = _opened(trial, chosen, precision)
            difference, closeness = self._compared(ran, f"{chosen} {precision}", fp32=precision == "fp32")
            cost, count = (None, 0) if precision == "fp32" else self._cost(ran)
            del ran
            for target in targets:
                os.replace(Path(folder, target.name), target)
        return Exported(out, tuple(targets), chosen, precision, difference, closeness, cost, count, sha256(out))

    def _write(self, path: Path, format: str, precision: str) -> None:
        if format == "ncnn":
            ncnn_file.write(self.subject, path, fp16=precision == "fp16")
        elif format == "torch":
            torch_file.write_program(self.subject, path)
        elif format == "safetensors":
            torch_file.write_weights(self.subject, path)
        else:
            model = self._onnx
            if precision == "fp16":
                model = onnx_file.half(model)
            elif precision == "int8":
                lq = [lq for lq, _ in pairs(self.photos.split()[0], self.subject.factor)]
                if not lq:
                    raise MtkdError("No photo is large enough to calibrate int8 on: name others with --photos.")
                fixed = [name for name, _ in self.subject.net.named_buffers()]
                model = onnx_file.quantized(model, lq, fixed)
            path.write_bytes(onnx_file.described(model, self.subject, precision).SerializeToString())

    @cached_property
    def _onnx(self) -> Any:
        return onnx_file.model_of(self.subject)

    @cached_property
    @torch.no_grad()
    def _wanted(self) -> list[tuple[Tensor, Tensor]]:
        """What torch makes of a photo in each size."""
        return [(x, self.subject.net(x)) for x in self.photos.crops(self.subject.channels)]

    @torch.no_grad()
    def _compared(self, ran: nn.Module, what: str, *, fp32: bool) -> tuple[float, float]:
        differences, errors = [], []
        for x, wanted in self._wanted:
            found = ran(x)
            size = f"{x.shape[-1]}x{x.shape[-2]}"
            if found.shape != wanted.shape or not found.isfinite().all():
                raise MtkdError(
                    f"The {what} file of {self.subject.name} is refused: of an image of {size} it makes "
                    f"{tuple(found.shape)} with {int((~found.isfinite()).sum())} values that are not finite."
                )
            differences.append((found - wanted).abs().max().item())
            errors.append((found.clamp(0, 1) - wanted.clamp(0, 1)).double().square().mean().item())
        difference, closeness = max(differences), -10 * math.log10(max(errors)) if max(errors) else math.inf
        if difference > TOLERANCE if fp32 else closeness < LOWEST_PSNR:
            limit = f"{TOLERANCE:g}" if fp32 else f"{LOWEST_PSNR:g} dB"
            found = f"differs from torch by {difference:.2g}" if fp32 else f"has {closeness:.1f} dB against torch"
            raise MtkdError(f"The {what} file of {self.subject.name} is refused: it {found}, the limit is {limit}.")
        return difference, closeness

    @torch.no_grad()
    def _cost(self, ran: nn.Module) -> tuple[float | None, int]:
        """PSNR-Y of torch in fp32 less that of `ran`, mean over photos, and how many."""
        if not self.subject.makes_photos:
            return None, 0
        scale, costs = self.subject.factor, []
        for lq, gt in pairs(self.photos.split()[1], scale):
            scores = [
                psnr(made(lq), gt, crop_border=scale, test_y_channel=True).item() for made in (self.subject.net, ran)
            ]
            costs.append(scores[0] - scores[1])
        return (sum(costs) / len(costs), len(costs)) if costs else (None, 0)


def format_of(out: Path) -> str:
    """The format that the suffix of `out` means.

    Raises:
        MtkdError: it means none.
    """
    found = next((name for name, suffix in FORMATS.items() if out.suffix.lower() == suffix), None)
    if found is None:
        raise MtkdError(f"{out} has the suffix of no format: {', '.join(FORMATS.values())}.")
    return found


def check(format: str, precision: str) -> None:
    """Refuse what no format has, before anything is loaded.

    Raises:
        MtkdError: the format or the precision is unknown.
    """
    if format not in FORMATS:
        raise MtkdError(f"No format is called {format[:80]!r}: it is {', '.join(FORMATS)}.")
    if precision not in PRECISIONS[format]:
        raise MtkdError(
            f"{format} files are written in {', '.join(PRECISIONS[format])}, not in {precision[:80]}. onnx has fp32, "
            "fp16 and int8."
        )


def _opened(path: Path, format: str, precision: str) -> nn.Module:
    """The file as its own runtime reads it."""
    if format == "ncnn":
        return ncnn_file.NcnnNetwork(path, fp16=precision == "fp16")
    if format == "torch":
        return torch_file.Program(path)
    if format == "safetensors":
        return zoo.build(path)
    return OnnxNetwork(path)


def _counted(photos: int) -> str:
    return f"{photos} photo{'' if photos == 1 else 's'}"
