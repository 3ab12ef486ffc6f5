"""What `mtkd.contracts` promises of networks, held for every architecture of the catalog."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd import catalog
from mtkd.methods.base import tapped


@dataclass(frozen=True)
class Small:
    """A configuration that runs in milliseconds; `factor` is output side / input side, `channels` are the input's."""

    arguments: dict[str, Any] = field(default_factory=dict)
    factor: int = 2
    channels: int = 3
    beside: str = ""
    """Prefix of parameters that stand beside the way from lq to sr."""


SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "mlp_ratio": 2.0}
SMALL = {
    "EDSR": Small({"num_feat": 8, "num_block": 2, "upscale": 2}),
    "RCAN": Small({"num_feat": 8, "num_group": 2, "num_block": 2, "squeeze_factor": 4, "upscale": 2}),
    "SwinIR": Small({**SWIN, "img_size": 16, "upscale": 2, "upsampler": "pixelshuffle"}),
    "DCTSwin": Small({**SWIN, "upscale": 2, "num_teachers": 2}, factor=1, channels=6),
    "FSRCNN": Small({"num_feat": 8, "num_shrink": 4, "num_map": 2, "upscale": 2}),
    "PlainSR": Small({"num_feat": 8, "num_conv": 2, "expand": 12, "upscale": 2}),
    "PrivilegedTeacher": Small(
        {"decoder": {"type": "FSRCNN", "num_feat": 8}, "encoder_feat": 8, "upscale": 2}, beside="encoder."
    ),
}

every_arch = pytest.mark.parametrize("name", list(SMALL))


def build(name: str, **changed: Any) -> nn.Module:
    net = catalog.get("arch", name)(**{**SMALL[name].arguments, **changed}).eval()
    # Away from special starts: a zero convolution or bias would hide what lies before it.
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return net


def image(name: str, h: int = 12, w: int = 8, n: int = 2) -> Tensor:
    return torch.rand(n, SMALL[name].channels, h, w)


def test_every_architecture_has_a_small_configuration() -> None:
    # spandrel's networks are foreign, and there is none without weights: test_spandrel.py.
    assert [*SMALL, "spandrel"] == catalog.names("arch")


@every_arch
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (13, 11), (16, 8)], ids=str)
@torch.no_grad()
def test_any_size_gives_the_scaled_size(name: str, size: tuple[int, int]) -> None:
    factor = SMALL[name].factor
    y = build(name)(image(name, *size))
    assert y.shape == (2, 3, size[0] * factor, size[1] * factor)
    assert y.isfinite().all()


@every_arch
def test_scale_is_the_argument_upscale(name: str) -> None:
    assert build(name).scale == SMALL[name].arguments["upscale"]


@every_arch
@pytest.mark.parametrize("grad", [False, True])
def test_the_input_is_left_as_it_was(name: str, grad: bool) -> None:
    x = image(name)
    before = x.clone()
    with torch.set_grad_enabled(grad):
        build(name)(x)
    assert torch.equal(x, before)


@every_arch
@torch.no_grad()
def test_images_of_a_batch_do_not_mix(name: str) -> None:
    net, x = build(name), image(name, n=3)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=0, atol=1e-5)


@every_arch
def test_features_are_maps_with_gradients(name: str) -> None:
    net, x = build(name), image(name)
    assert net.feature_names
    y, feats = tapped(net, net.feature_names, x)
    torch.testing.assert_close(y, net(x))
    assert list(feats) == list(net.feature_names)
    for feature in feats.values():
        assert feature.ndim == 4 and feature.shape[0] == len(x)
        assert feature.requires_grad


@every_arch
def test_nothing_changes_a_module_output_in_place(name: str) -> None:
    """A tap must read what its module returned, not what a later module made of it."""
    net, outputs = build(name), {}

    def keep(key: str) -> Any:
        return lambda _module, _inputs, out: outputs.__setitem__(key, (out, out.clone()))

    for key, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(keep(key))
    with torch.no_grad():
        net(image(name))
    assert outputs
    assert [key for key, (out, copied) in outputs.items() if not torch.equal(out, copied)] == []


@every_arch
@torch.no_grad()
def test_runs_under_bf16_autocast(name: str) -> None:
    net, x = build(name), image(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    assert y.isfinite().all()
    exact = net(x)
    assert (y.float() - exact).abs().mean() < 0.05 * (exact - exact.mean()).abs().mean()


@every_arch
@torch.no_grad()
def test_channels_last_gives_the_same(name: str) -> None:
    net, x = build(name), image(name)
    expected = net(x)
    y = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@every_arch
def test_compiles_to_one_graph_with_the_same_output_and_gradient(name: str) -> None:
    """Of fixed size first, of symbolic size at the second call."""
    net = build(name, depths=[2], num_heads=[2]) if "depths" in SMALL[name].arguments else build(name)
    twin = copy.deepcopy(net)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for x in (image(name), image(name, 5, 7)):
        y, expected = compiled(x), net(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
        y.square().mean().backward()
        expected.square().mean().backward()
    for ours, theirs in zip(twin.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@every_arch
@torch.no_grad()
def test_double_agrees_with_float(name: str) -> None:
    net, x = build(name), image(name)
    expected = net(x)
    y = net.double()(x.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=1e-4)


@every_arch
def test_gradient_reaches_every_parameter_and_the_input(name: str) -> None:
    net, x = build(name).train(), image(name, 16, 16).requires_grad_()
    net(x).square().mean().backward()
    idle = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    beside = SMALL[name].beside
    assert idle == [key for key, _ in net.named_parameters() if beside and key.startswith(beside)]
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


@every_arch
@torch.no_grad()
def test_state_dict_carries_the_whole_function(name: str) -> None:
    net, other, x = build(name), build(name), image(name)
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@every_arch
@torch.no_grad()
def test_a_copy_is_independent(name: str) -> None:
    """An EMA copy is made by deepcopy."""
    net, x = build(name), image(name)
    twin = copy.deepcopy(net)
    expected = net(x)
    for parameter in net.parameters():
        parameter.zero_()
    assert torch.equal(twin(x), expected)


@every_arch
def test_unknown_arguments_are_errors(name: str) -> None:
    with pytest.raises(TypeError):
        catalog.get("arch", name)(**SMALL[name].arguments, num_featt=8)
