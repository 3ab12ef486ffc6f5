"""What exporters and transformations record of a network computes what the network does, at other sizes too."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from mtkd.archs import windows
from tests.archs.test_arch_conformance import SMALL, build, every_arch, image

pytestmark = pytest.mark.slow

SIZES = [(12, 8), (8, 8), (13, 11), (16, 24)]


def same(found: Tensor, net: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(found, net(x), rtol=0, atol=1e-5)


@every_arch
@pytest.mark.parametrize("grad", [False, True])
def test_a_torchscript_trace_serves_every_size(name: str, grad: bool) -> None:
    net = build(name)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, image(name, *SIZES[0]))
        for size in SIZES:
            x = image(name, *size, n=1)
            same(traced(x), net, x)


@every_arch
@pytest.mark.parametrize("size", [(12, 8), (13, 11)], ids=str)
@torch.no_grad()
def test_an_exported_program_computes_the_same(name: str, size: tuple[int, int]) -> None:
    net, x = build(name), image(name, *size)
    same(torch.export.export(net, (x,)).module()(x), net, x)


@every_arch
@torch.no_grad()
def test_networks_of_convolutions_export_with_free_sizes(name: str) -> None:
    if "window_size" in SMALL[name].arguments:
        pytest.skip("torch.export cannot prove window sizes of free sides; it says so and exports nothing")
    net, x = build(name), image(name, *SIZES[0])
    side = {2: torch.export.Dim("h", min=4, max=256), 3: torch.export.Dim("w", min=4, max=256)}
    program = torch.export.export(net, (x,), dynamic_shapes=(side,)).module()
    for size in SIZES:
        x = image(name, *size)
        same(program(x), net, x)


@every_arch
def test_a_graph_of_operations_and_gradients_of_functions_are_those_of_the_network(name: str) -> None:
    net, x = build(name), image(name, n=3)
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        same(make_fx(net)(x)(x), net, x)
        same(torch.vmap(net)(x[:, None])[:, 0], net, x)

    def error(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(net, parameters, (x,)).square().mean()

    found = torch.func.grad(error)(parameters)
    error(parameters).backward()
    for key, parameter in parameters.items():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[key], wanted, rtol=1e-3, atol=1e-5, msg=key)


def test_a_mask_made_for_a_tracer_does_not_come_back_as_a_tensor_of_numbers() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = windows.shifted_window_mask(20, 28, 4, 2)
    mask = windows.shifted_window_mask(20, 28, 4, 2)
    assert type(fake) is not Tensor and type(mask) is Tensor
    assert mask.min() == -100


@pytest.mark.parametrize("dynamo", [False, True])
@every_arch
@torch.no_grad()
def test_an_onnx_file_computes_the_same(name: str, dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, file = build(name), str(tmp_path / "net.onnx")
    sides = None if dynamo else {"x": {2: "h", 3: "w"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (image(name, *SIZES[0], n=1),), file, input_names=["x"], dynamic_axes=sides, dynamo=dynamo
        )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in SIZES[:1] if dynamo else SIZES:
        x = image(name, *size, n=1)
        same(torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), net, x)
