"""How fast small networks make a frame of 1280x720, as files in the runtimes that people deploy them in."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from measures import basicsr_world
from measures.timing import Aim, Effort, Section, side_by_side, spread
from mtkd import catalog
from mtkd.config import NetworkOptions
from mtkd.contracts import MtkdError
from mtkd.export import Exporter
from mtkd.export.ncnn_file import NcnnNetwork
from mtkd.export.onnx_network import OnnxNetwork
from mtkd.metrics.complexity import complexity
from mtkd.variants import VARIANTS

SCALE = 4
LQ = (180, 320)
"""What becomes 1280x720."""
TINY, SMALL = "tiny", "small"
AIMS = {TINY: 60.0, SMALL: 30.0}
"""Frames a second of 1280x720 on two CPU threads, in the fastest exported form."""
EAGER = "torch"
NOT_EXPORTED = (EAGER, "torch.compile")

Case = Callable[[], object]


@dataclass(frozen=True)
class Candidate:
    """A network to be deployed, `net` as it runs there."""

    name: str
    net: nn.Module


def measure(device: str, effort: Effort) -> Iterator[Section]:
    if device != "cpu":
        return
    lq = torch.rand(1, 3, *((18, 32) if effort.quick else LQ))
    chosen = candidates()[:: 3 if effort.quick else 1]
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[tuple[str, str], Case] = {}
        for candidate in chosen:
            found, missing = forms(candidate, lq, Path(folder), compiling=effort.full and candidate.name in AIMS)
            cases |= {(candidate.name, form): case for form, case in found.items()}
            notes += [text for text in missing if text not in notes]
        named = {" | ".join(key): case for key, case in cases.items()}
        with torch.no_grad():
            times = side_by_side(named, device, rounds=effort.rounds(9), seconds=effort.seconds(0.1))
    rows: list[dict[str, Any]] = []
    for candidate in chosen:
        size = complexity(candidate.net, tuple(lq.shape[-2:]))  # pyright: ignore[reportArgumentType]
        base = spread(times[f"{candidate.name} | {EAGER}"])["median"]
        for name, form in cases:
            if name == candidate.name:
                seconds = spread(times[f"{name} | {form}"])
                rows.append(
                    {
                        "network": name,
                        "params": size.params,
                        "GMACs": size.macs / 1e9,
                        "form": form,
                        "ms": seconds["median"] * 1e3,
                        "ms, low": seconds["low"] * 1e3,
                        "ms, high": seconds["high"] * 1e3,
                        "frames/s": 1 / seconds["median"],
                        "times as fast as torch": base / seconds["median"],
                    }
                )
    notes.append("Compiling takes longer than all the rest: only the students are compiled.")
    yield Section(
        title="Deployed: frames a second",
        setting=(
            f"x{SCALE}, one lq frame of {lq.shape[-1]}x{lq.shape[-2]} in memory as float32 becomes one of "
            f"{lq.shape[-1] * SCALE}x{lq.shape[-2] * SCALE}, weights drawn at random, every network folded to what is "
            "deployed, written and checked by `mtkd.export`, int8 calibrated on the demo's photos. All cases in turns, "
            "round after round. Peers: FSRCNN on RGB as published else, and BasicSR's ECBSR on RGB, folded by its own "
            "`rep_params`. ncnn runs one thread pool per network; openvino reads the same ONNX files."
        ),
        rows=rows,
        aims=[] if effort.quick else list(_aims(rows)),
        notes=notes,
    )


def candidates() -> list[Candidate]:
    """The students that ship, two peers of theirs, and EDSR with its wide upsampler."""
    torch.manual_seed(0)
    fsrcnn = catalog.make_network("FSRCNN", {}, scale=SCALE)
    edsr = catalog.make_network("EDSR", {"num_feat": 16, "num_block": 4}, scale=SCALE)
    return [
        Candidate(TINY, _student(TINY)),
        Candidate(SMALL, _student(SMALL)),
        Candidate("FSRCNN", fsrcnn.eval()),
        Candidate("ECBSR-M4C16", _ecbsr(4, 16)),
        Candidate("ECBSR-M10C32", _ecbsr(10, 32)),
        Candidate("EDSR 16x4", edsr.eval()),
    ]


def forms(candidate: Candidate, lq: Tensor, folder: Path, *, compiling: bool) -> tuple[dict[str, Case], list[str]]:
    """Every way to run `candidate` on `lq`, and what is missing here."""
    net, missing = candidate.net, []
    last = lq.to(memory_format=torch.channels_last)
    eager = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found: dict[str, Case] = {EAGER: lambda: eager(last)}
    if compiling:
        compiled = torch.compile(eager)
        found["torch.compile"] = lambda: compiled(last)
    exporter = Exporter(net, facts={"arch": {"type": candidate.name, "args": {}}})
    stem = candidate.name.replace(" ", "_")
    for format, precision in [("onnx", p) for p in ("fp32", "fp16", "int8")] + [("ncnn", p) for p in ("fp32", "fp16")]:
        suffix = ".onnx" if format == "onnx" else f"-x{SCALE}.param"
        try:
            path = exporter.write(folder / f"{stem}_{precision}{suffix}", format=format, precision=precision).path
        except MtkdError as error:
            missing.append(f"No {format} in {precision}: {error}")
            continue
        if format == "ncnn":
            found[f"ncnn, {precision}"] = _called(NcnnNetwork(path, fp16=precision == "fp16"), lq)
            continue
        found[f"onnxruntime, {precision}"] = _called(OnnxNetwork(path), lq)
        if precision != "fp16":
            if importlib.util.find_spec("openvino") is None:
                missing.append("Openvino is not installed here.")
            else:
                found[f"openvino, {precision}"] = _openvino(path, lq)
    missing.append("There is no ncnn in int8: its tools for that do not come with its Python package.")
    return found, missing


def _called(net: nn.Module, lq: Tensor) -> Case:
    return lambda: net(lq)


def _openvino(path: Path, lq: Tensor) -> Case:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    pixels = np.ascontiguousarray(lq.numpy())
    return lambda: request.infer([pixels], share_inputs=True, share_outputs=True)


def _student(name: str) -> nn.Module:
    arch, arguments = VARIANTS[name]
    trained: Any = catalog.make_network(arch, arguments, scale=SCALE).eval()
    return trained.deployable()


class _FoldedECBSR(nn.Module):
    """BasicSR's ECBSR with one convolution for each of its blocks."""

    def __init__(self, trained: Any) -> None:
        super().__init__()
        self.scale = trained.scale
        layers: list[nn.Module] = []
        for block in trained.backbone:
            weight, bias = block.rep_params()
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, 1, 1)
            conv.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
            layers += [conv, *([block.act] if block.act_type != "linear" else [])]
        self.backbone = nn.Sequential(*layers)
        self.upsampler = trained.upsampler
        # The same as BasicSR's repeat_interleave, which ncnn has no layer for.
        self.repeat = nn.Conv2d(3, 3 * self.scale**2, 1, bias=False)
        self.repeat.weight = nn.Parameter(torch.eye(3).repeat_interleave(self.scale**2, 0)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.upsampler(self.backbone(x) + self.repeat(x))


def _ecbsr(blocks: int, channels: int) -> nn.Module:
    arguments = {"num_block": blocks, "num_channel": channels, "with_idt": False, "act_type": "prelu", "scale": SCALE}
    options = NetworkOptions(type="ECBSR", args={"num_in_ch": 3, "num_out_ch": 3, **arguments})
    trained = basicsr_world.network(options).eval()
    folded = _FoldedECBSR(trained).eval()
    x = torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), trained(x), rtol=0, atol=1e-4)
    return folded


def _aims(rows: list[dict[str, Any]]) -> Iterator[Aim]:
    for name, wanted in AIMS.items():
        exported = [row for row in rows if row["network"] == name and row["form"] not in NOT_EXPORTED]
        best = max(exported, key=lambda row: row["frames/s"])
        yield Aim(f"deployed, {name}: frames of 1280x720 a second, {best['form']}", wanted, best["frames/s"])
