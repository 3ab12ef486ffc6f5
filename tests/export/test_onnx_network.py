"""ONNX files as networks: anybody's, and hostile or damaged ones."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd.contracts import MtkdError
from mtkd.export.onnx_network import OnnxNetwork

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

FREE = ["n", 3, "h", "w"]


def model(
    nodes: list[Any] | None = None,
    *,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    constants: list[Any] | None = None,
    **metadata: str,
) -> Any:
    """Nearest enlargement by 2, unless something else is said."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes if nodes is not None else [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")],
        "net",
        inputs or [helper.make_tensor_value_info("x", kind, FREE)],
        outputs or [helper.make_tensor_value_info("y", kind, ["n", 3, "h2", "w2"])],
        constants if constants is not None else [helper.make_tensor("s", kind, [4], [1.0, 1.0, 2.0, 2.0])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, metadata)
    return made


def saved(path: Path, made: Any) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def info(name: str, kind: int = TensorProto.FLOAT, shape: list[Any] = FREE) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def test_anybodys_file_is_a_network_whose_scale_is_found(tmp_path: Path) -> None:
    net = OnnxNetwork(saved(tmp_path / "a.onnx", model()), threads=1)
    assert net.scale == 2
    x = torch.rand(2, 3, 5, 7, requires_grad=True)
    wanted = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    torch.testing.assert_close(net(x), wanted.detach())
    assert not net(x).requires_grad
    assert copy.deepcopy(net)(x).shape == net(x).shape


def test_the_metadata_tell_the_scale_and_every_image_is_held_to_it(tmp_path: Path) -> None:
    net = OnnxNetwork(saved(tmp_path / "a.onnx", model(scale="4")))
    assert (net.scale, net.metadata["scale"]) == (4, "4")
    with pytest.raises(MtkdError, match=r"a.onnx cannot .* it makes \(1, 3, 10, 10\) of .* at 4 times"):
        net(torch.rand(1, 3, 5, 5))


def test_a_batch_goes_in_one_by_one_where_the_file_wants_it(tmp_path: Path) -> None:
    fixed = model(inputs=[info("x", shape=[1, 3, "h", "w"])])
    x = torch.rand(3, 3, 4, 6)
    assert OnnxNetwork(saved(tmp_path / "a.onnx", fixed))(x).shape == (3, 3, 8, 12)


def test_another_size_than_the_files_own_is_refused_by_name(tmp_path: Path) -> None:
    fixed = model(inputs=[info("x", shape=["n", 3, 8, "w"])])
    net = OnnxNetwork(saved(tmp_path / "a.onnx", fixed))
    assert net(torch.rand(1, 3, 8, 9)).shape == (1, 3, 16, 18)
    with pytest.raises(MtkdError, match="takes H = 8 only, and got 9"):
        net(torch.rand(1, 3, 9, 8))


def test_half_precision_images_are_converted(tmp_path: Path) -> None:
    half = TensorProto.FLOAT16
    made = model(inputs=[info("x", half)], outputs=[info("y", half, ["n", 3, "a", "b"])])
    found = OnnxNetwork(saved(tmp_path / "a.onnx", made))(torch.full((1, 3, 4, 4), 0.25))
    assert found.dtype == torch.float32 and found.eq(0.25).all()


def external(tensor: Any) -> Any:
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret.bin")
    return tensor


def secret(name: str = "s") -> Any:
    return external(helper.make_tensor(name, TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0]))


def in_a_branch() -> Any:
    constant = helper.make_node("Constant", [], ["inner"], value=secret("hidden"))
    branch = helper.make_graph([constant], "branch", [], [info("inner", shape=[4])])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("If", ["c"], ["s"], then_branch=branch, else_branch=branch),
        helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest"),
    ]
    return model(nodes, constants=[condition])


HOSTILE: dict[str, tuple[Any, str]] = {
    "weights outside": (model(constants=[secret()]), "refused: it keeps weights in another file"),
    "weights outside, in a branch": (in_a_branch(), r"refused: it keeps weights in another file \(hidden\)"),
    "two inputs": (model(inputs=[info("x"), info("z")]), "it has 2 inputs and 1 outputs"),
    "whole numbers": (
        model([helper.make_node("Identity", ["x"], ["y"])], inputs=[info("x", TensorProto.INT64)], outputs=[
            info("y", TensorProto.INT64)], constants=[]),
        r"its input x is tensor\(int64\)",
    ),
    "no image": (
        model([helper.make_node("Flatten", ["x"], ["y"])], outputs=[info("y", shape=["n", "k"])], constants=[]),
        "its output y is",
    ),
    "foreign operation": (
        model([helper.make_node("Evil", ["x"], ["y"], domain="evil")], constants=[]),
        "cannot be loaded by onnxruntime",
    ),
    "no operation": (model([], constants=[]), "holds no network"),
    "one channel": (model(inputs=[info("x", shape=["n", 1, "h", "w"])], outputs=[info("y", shape=["n", 1, "a", "b"])]),
                    r"it makes \(1, 1, 128, 128\) of 1 x 64 x 64"),
    "makes it smaller": (
        model(constants=[helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0, 1.0, 0.5, 0.5])]), "no image at a whole"
    ),
    "fails when it runs": (
        model([helper.make_node("Reshape", ["x", "s"], ["y"])],
              constants=[helper.make_tensor("s", TensorProto.INT64, [4], [7, 3, 11, 13])]),
        "onnxruntime cannot run it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_upscaler_ends_in_one_clear_error(name: str, tmp_path: Path) -> None:
    made, text = HOSTILE[name]
    with pytest.raises(MtkdError, match=text) as caught:
        OnnxNetwork(saved(tmp_path / "evil.onnx", made))
    assert "evil.onnx" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_damaged_files_end_in_one_clear_error_too(tmp_path: Path) -> None:
    whole = model().SerializeToString()
    cases = {
        "empty": b"",
        "text": b"not a network at all" * 20,
        "cut": whole[: len(whole) // 2],
        "zeros": bytes(500),
        "noise": bytes((7 * i * i) % 251 for i in range(3000)),
    }
    for name, content in cases.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(MtkdError, match=f"{name}.onnx"):
            OnnxNetwork(tmp_path / f"{name}.onnx")
    with pytest.raises(MtkdError, match="There is no ONNX file"):
        OnnxNetwork(tmp_path / "missing.onnx")
    with pytest.raises(MtkdError, match="There is no ONNX file"):
        OnnxNetwork(tmp_path)


def test_every_changed_byte_is_refused_or_runs(tmp_path: Path) -> None:
    whole = model().SerializeToString()
    refused = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        try:
            OnnxNetwork(saved_bytes(tmp_path / "a.onnx", bytes(changed)))
        except MtkdError:
            refused += 1
    assert refused > len(whole) / 4


def saved_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_a_missing_package_is_named_with_its_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.onnx", model())
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MtkdError, match=rf'needs the package {missing} .*pip install "mtkd\[onnx\]"'):
        OnnxNetwork(path)


@pytest.mark.parametrize("x", [torch.rand(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)])
def test_what_is_no_batch_of_images_is_refused(x: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="a.onnx takes float"):
        OnnxNetwork(saved(tmp_path / "a.onnx", model()))(x)
