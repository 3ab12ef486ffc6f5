"""A network as the two files of ncnn, written by pnnx, as realesrgan-ncnn-vulkan and Upscayl take them."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.export.packages import need
from mtkd.export.subject import Subject

INPUT, OUTPUT = "data", "output"
"""Blobs that realesrgan-ncnn-vulkan reads and writes."""
_SCALES = (1, 2, 3, 4, 8, 16)
"""In the order in which Upscayl's runner looks for `x2` or `2x` in a name; the first that is there counts."""
_MINUTES = 10


def named(path: Path, factor: int) -> Path:
    """`path` as a `.param` whose name says the scale, `-x4`, because programs read it there.

    Raises:
        MtkdError: the name says another scale.
    """
    path = path.with_suffix(".param")
    said = next((scale for scale in _SCALES if f"x{scale}" in path.stem or f"{scale}x" in path.stem), None)
    if said is None:
        return path.with_name(f"{path.stem}-x{factor}.param")
    if said != factor:
        raise MtkdError(
            f"Upscayl would take {path.name} for a network of x{said}, by its name, and it is one of x{factor}. Choose "
            f"another name, such as student-x{factor}.param."
        )
    return path


def write(subject: Subject, param: Path, *, fp16: bool) -> tuple[Path, Path]:
    """Write `param` and the `.bin` beside it.

    Args:
        fp16: keep weights in 16 bits; ncnn computes in the precision that the program asks for.

    Raises:
        MtkdError: a package is missing, or pnnx cannot convert this network.
    """
    pnnx = need("pnnx", "ncnn")
    with tempfile.TemporaryDirectory() as folder:
        first, second = ((1, subject.channels, *size) for size in ((40, 56), (64, 48)))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                torch.jit.trace(subject.net, torch.rand(first)).save(f"{folder}/net.pt")  # pyright: ignore
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                raise MtkdError(f"torch cannot trace {subject.name} for ncnn: {text}.") from error
        # Two sizes: sides that differ between them are free.
        sizes = (f"inputshape={_text(first)}", f"inputshape2={_text(second)}")
        try:
            run = subprocess.run(
                [pnnx.EXEC_PATH, "net.pt", *sizes, f"fp16={int(fp16)}"],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60 * _MINUTES,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MtkdError(f"pnnx, which writes ncnn's files, does not run here: {error}.") from error
        written = Path(folder, "net.ncnn.param")
        if run.returncode or not written.is_file():
            raise MtkdError(f"pnnx cannot convert {subject.name}: {' '.join(run.stderr.split())[-300:]}")
        text = written.read_text(encoding="utf-8")
        if foreign := _foreign(text):
            raise MtkdError(f"ncnn has no layer for parts of {subject.name}: {', '.join(foreign)}. Export it to ONNX.")
        param.write_text(_with_names(text), encoding="utf-8")
        binary = param.with_suffix(".bin")
        binary.write_bytes(Path(folder, "net.ncnn.bin").read_bytes())
    return param, binary


def _text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _foreign(text: str) -> list[str]:
    """Layers that pnnx has left as operations of torch."""
    kinds = [line.split()[0] for line in text.splitlines()[2:] if line.split()]
    return list(dict.fromkeys(kind for kind in kinds if "." in kind or "::" in kind))


def _with_names(text: str) -> str:
    """pnnx calls the two blobs in0 and out0."""
    names = {"in0": INPUT, "out0": OUTPUT}
    lines = text.splitlines()
    return "\n".join([*lines[:2], *(" ".join(names.get(w, w) for w in line.split(" ")) for line in lines[2:])]) + "\n"


class NcnnNetwork(nn.Module):
    """The two files as a network of torch: (1, C, h, w) float32 -> (1, 3, H, W), run by ncnn on the CPU.

    Raises:
        MtkdError: ncnn is missing, or the files cannot be loaded.
    """

    def __init__(self, param: Path, *, fp16: bool) -> None:
        super().__init__()
        self._ncnn: Any = need("ncnn", "ncnn")
        self._net = self._ncnn.Net()
        options = self._net.opt
        options.num_threads = torch.get_num_threads()
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = fp16
        options.use_bf16_storage = False
        if self._net.load_param(str(param)) or self._net.load_model(str(param.with_suffix(".bin"))):
            raise MtkdError(f"ncnn cannot load {param} with the .bin beside it.")

    def forward(self, x: Tensor) -> Tensor:
        """One image at a time, as ncnn has no batches."""
        extractor = self._net.create_extractor()
        pixels = np.ascontiguousarray(x[0].numpy())  # a name of its own: ncnn does not keep what it points to
        extractor.input(INPUT, self._ncnn.Mat(pixels).clone())
        code, made = extractor.extract(OUTPUT)
        if code:
            raise MtkdError(f"ncnn ends with error {code} for an image of {x.shape[-1]}x{x.shape[-2]}.")
        return torch.from_numpy(np.array(made, dtype=np.float32))[None]
