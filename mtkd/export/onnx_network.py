"""An ONNX file as a network of torch, run by onnxruntime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.export.packages import need

LARGEST = 2 << 30
"""Bytes of a file: what protobuf reads."""
LARGEST_SCALE = 16
_TRIED = 64
"""Side of the image that finds a scale: whole windows of every usual window size."""
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork(nn.Module):
    """lq (N, 3, h, w) float -> sr (N, 3, h * scale, w * scale) float32, not clamped, computed by onnxruntime.

    Images go in one by one where the file fixes the batch at one. Gradients stop here. Nothing of the file is a
    parameter: `.to(device)` leaves it on the CPU, and results return to the device of their input.

    Args:
        path: a file with one input and one output, RGB images in [0, 1] of float32 or float16, all weights inside; what
            `mtkd export` writes, or anybody else's.
        threads: of the CPU; None for as many as torch uses.

    Attributes:
        scale: from the file's metadata, else found by a run.
        metadata: what the file says of itself.
        exported_from: `path` as text.

    Raises:
        MtkdError: onnxruntime is missing, or the file is damaged, no such network, or keeps weights outside itself.
    """

    feature_names: tuple[str, ...] = ()
    outside_torch = True
    """Its images stay on the CPU, and torch sees neither its memory nor its cost."""

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        super().__init__()
        self.exported_from = os.fspath(path)
        # What asks for the device of a network looks at its tensors.
        self.register_buffer("_place", torch.zeros(()), persistent=False)
        self._session = _session(Path(path), threads)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise self._refused(f"it has {len(inputs)} inputs and {len(outputs)} outputs, an upscaler has one of each")
        (self._input,), (self._output,) = inputs, outputs
        for what, value in (("input", self._input), ("output", self._output)):
            if value.type not in _FLOATS or len(value.shape) != 4:
                raise self._refused(
                    f"its {what} {value.name[:80]} is {value.type} of shape {str(value.shape)[:80]}; images are float "
                    "(N, 3, H, W)"
                )
        self._fixed = [side if isinstance(side, int) else None for side in self._input.shape]
        self.scale = self._found_scale()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """lq of any float dtype and device -> sr, float32, there.

        Raises:
            MtkdError: the file takes no such size, onnxruntime fails, or what it makes is no image of `scale`.
        """
        self._check_size(x)
        if self._fixed[0] is not None and len(x) != self._fixed[0]:
            if self._fixed[0] != 1:
                raise self._refused(f"it takes {self._fixed[0]} images at once, and got {len(x)}")
            made = np.concatenate([self._run(one[None]) for one in x])
        else:
            made = self._run(x)
        n, _, h, w = x.shape
        if made.shape != (n, 3, h * self.scale, w * self.scale):
            raise self._refused(
                f"it makes {made.shape} of {tuple(x.shape)}, which is not 3 channels at {self.scale} times the size"
            )
        return torch.from_numpy(made).to(x.device)

    def extra_repr(self) -> str:
        """File and scale."""
        return f"{self.exported_from}, scale={self.scale}"

    def _run(self, x: Tensor) -> np.ndarray[Any, Any]:
        pixels = np.ascontiguousarray(x.detach().float().cpu().numpy().astype(_FLOATS[self._input.type]))
        try:
            (made,) = self._session.run([self._output.name], {self._input.name: pixels})
        except Exception as error:  # onnxruntime has a dozen kinds
            raise self._refused(f"onnxruntime cannot run it on {tuple(x.shape)}: {_first_line(error)}") from error
        return np.asarray(made, dtype=np.float32)

    def _found_scale(self) -> int:
        stated = self.metadata.get("scale", "")
        if stated.isascii() and stated.isdecimal() and 0 < int(stated[:4]) <= LARGEST_SCALE:
            return int(stated)
        h, w = (side or _TRIED for side in self._fixed[2:])
        channels = self._fixed[1] or 3
        made = self._run(torch.full((self._fixed[0] or 1, channels, h, w), 0.5))
        scale = made.shape[2] // h if made.ndim == 4 else 0
        if not 0 < scale <= LARGEST_SCALE or made.shape[1:] != (3, h * scale, w * scale):
            raise self._refused(f"it makes {made.shape} of {channels} x {h} x {w}, and no image at a whole scale")
        return scale

    def _check_size(self, x: Tensor) -> None:
        if x.ndim != 4 or not x.is_floating_point():
            raise MtkdError(f"{self.exported_from} takes float (N, 3, H, W), and got {x.dtype} {tuple(x.shape)}.")
        for name, fixed, side in zip("CHW", self._fixed[1:], x.shape[1:], strict=True):
            if fixed is not None and fixed != side:
                raise self._refused(
                    f"it takes {name} = {fixed} only, and got {side}. Export it with free sizes (`mtkd export` does)"
                )

    def _refused(self, why: str) -> MtkdError:
        return MtkdError(f"{self.exported_from} cannot be used as a network: {why}.")

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        return self  # it has no state but the session, which is shared


def _session(path: Path, threads: int | None) -> Any:
    """The session of a file that is read once and checked before onnxruntime sees it."""
    runtime, onnx = need("onnxruntime", "onnx"), need("onnx", "onnx")
    try:
        if not path.is_file():
            raise MtkdError(f"There is no ONNX file {path}.")
        size = path.stat().st_size
        if size > LARGEST:
            raise MtkdError(f"{path} is refused: {size:,} bytes are more than an ONNX file can hold.")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise MtkdError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # google.protobuf's, whose name depends on its version
        raise MtkdError(f"{path} is no ONNX file, or damaged: {_first_line(error)}.") from error
    if not model.graph.node:
        raise MtkdError(f"{path} is no ONNX file, or damaged: it holds no network.")
    if outside := next((t.name for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL), None):
        raise MtkdError(
            f"{path} is refused: it keeps weights in another file ({outside[:80]}), which is not read. Save it with "
            "all weights inside."
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MtkdError(f"{path} cannot be loaded by onnxruntime: {_first_line(error)}.") from error


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model, those in attributes, subgraphs and functions too, without recursion."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs += attribute.graphs


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
