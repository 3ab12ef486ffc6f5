"""A network as an ONNX model, in three precisions."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.export.packages import need
from mtkd.export.subject import Subject

OPSET = 18
"""Of every file that is written. onnxruntime 1.14 and everything younger runs it."""
INPUT, OUTPUT = "input", "output"
LARGEST = 2_000_000_000
"""Bytes of weights in one file: protobuf ends at 2 GiB."""
_EXAMPLE = (19, 27)
"""Height and width that are traced: odd, so that no padding is left out."""


def model_of(subject: Subject) -> Any:
    """The network as an `onnx.ModelProto` in float32, with free batch, height and width, all weights inside.

    torch.onnx (dynamo) records torch's own operations: the fused attention of this package steps aside while it does.

    Raises:
        MtkdError: a package is missing, or torch cannot export this network.
    """
    need("onnxscript", "onnx")
    onnx = need("onnx", "onnx")
    if sum(p.numel() * p.element_size() for p in subject.net.parameters()) > LARGEST:
        raise MtkdError(f"{subject.name} has more than 2 GB of weights, which one ONNX file cannot hold.")
    # Two images: torch takes a batch of one for a constant.
    example = torch.rand(2, subject.channels, *_EXAMPLE)
    free = torch.export.Dim.DYNAMIC
    try:
        with quiet(), torch.no_grad():
            # Not strict: networks read their sizes in Python.
            program = torch.export.export(
                subject.net, (example,), dynamic_shapes=({0: free, 2: free, 3: free},), strict=False
            )
            found = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise MtkdError(
            f"torch cannot export {subject.name} to ONNX: {type(error).__name__}: {_cause(error)}. Its network does "
            "something that torch.onnx has no operation for."
        ) from error
    assert found is not None
    model = onnx.ModelProto()
    model.CopyFrom(found.model_proto)
    _tidy(model, subject)
    return model


def described(model: Any, subject: Subject, precision: str) -> Any:
    """A copy of `model` that says what it is, in its metadata."""
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    for key, value in subject.metadata(precision=precision, opset=str(OPSET)).items():
        copy.metadata_props.add(key=key, value=value)
    copy.producer_name, copy.doc_string = "mtkd", f"{subject.name} x{subject.factor}, {precision}"
    return copy


def half(model: Any) -> Any:
    """`model` with weights and arithmetic in float16; images stay float32, so that programs need no change."""
    converter = need("onnxconverter_common.float16", "onnx")
    copy = type(model)()
    copy.CopyFrom(model)
    with quiet():
        return converter.convert_float_to_float16(copy, keep_io_types=True)


def quantized(model: Any, images: Sequence[Tensor], fixed: Sequence[str]) -> Any:
    """`model` with convolutions and what stands between them in 8 bits: static, QDQ, one scale per output channel.

    Args:
        images: (1, 3, h, w) in [0, 1], whose activations set the ranges: the least and the greatest values.
        fixed: names of kernels that are not learned (interpolation): they stay in float32, because their error would
            show in flat areas, and they cost little.
    """
    quantization = need("onnxruntime.quantization", "onnx")
    excluded = [node.name for node in model.graph.node if any(name in fixed for name in node.input)]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[dict[str, np.ndarray]] = iter([{INPUT: image.numpy()} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "int8.onnx")
        quantization.quantize_static(
            model,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Relu", "LeakyRelu", "PRelu"],
            nodes_to_exclude=excluded,
        )
        return need("onnx", "onnx").load(target)


def _tidy(model: Any, subject: Subject) -> None:
    """Sides by names that a reader understands, and nothing that only torch's developers read."""
    names = ("batch", None, "height", "width")
    outputs = ("batch", None, *(f"{side}*{subject.factor}" if subject.factor > 1 else side for side in names[2:]))
    for value, sides in ((model.graph.input[0], names), (model.graph.output[0], outputs)):
        for side, name in zip(value.type.tensor_type.shape.dim, sides, strict=True):
            if name is not None:
                side.dim_param = name
    # Torch's notes on its values and nodes: sizes that runtimes find themselves, and the paths of this machine.
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.functions[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(".")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the notes that exporters write for their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
