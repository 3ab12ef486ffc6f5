"""Channel slicing against networks that are narrow by construction."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mtkd.archs.edsr import EDSR
from mtkd.archs.fsrcnn import FSRCNN
from mtkd.archs.rcan import RCAN
from mtkd.archs.slim import Slim, extract, narrowed
from mtkd.archs.swinir import SwinIR
from mtkd.contracts import MtkdError

MEAN = (0.3, 0.4, 0.5)


def edsr(num_feat: int = 12, upscale: int = 2, **changed: Any) -> EDSR:
    own = {"num_block": 2, "res_scale": 0.3, "img_range": 2.0, "rgb_mean": MEAN, **changed}
    return EDSR(num_feat=num_feat, upscale=upscale, **own)


def rcan(num_feat: int = 12, upscale: int = 2) -> RCAN:
    return RCAN(
        num_feat=num_feat,
        num_group=2,
        num_block=2,
        squeeze_factor=4,
        upscale=upscale,
        res_scale=0.7,
        img_range=2.0,
        rgb_mean=MEAN,
    )


def direct(num_feat: int = 12, upscale: int = 2) -> EDSR:
    return edsr(num_feat, upscale, upsampler="pixelshuffledirect")


both = pytest.mark.parametrize("make", [edsr, rcan, direct])


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("width", "parameters"), [(0.25, 2_699_267), (0.5, 10_780_675), (1.0, 43_089_923)])
def test_published_sizes_of_slim_edsr(width: float, parameters: int) -> None:
    with torch.device("meta"):
        net = EDSR(num_feat=256, num_block=32, res_scale=0.1, upscale=4)
    assert count(narrowed(net, width)) == parameters


@pytest.mark.slow
def test_size_of_slim_rcan() -> None:
    """3.9M in the figure of CSD's paper."""
    with torch.device("meta"):
        net = RCAN(num_block=20, upscale=4)
    assert count(narrowed(net, 0.5)) == 3_909_075


@both
@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize("width", [0.34, 0.5, 1.0])
@torch.no_grad()
def test_slim_extracted_and_plain_networks_agree(make: Callable[..., nn.Module], upscale: int, width: float) -> None:
    net, lq = make(upscale=upscale), torch.rand(2, 3, 7, 5)
    sr = Slim(net, width)(lq)
    small = extract(net, width)
    torch.testing.assert_close(small(lq), sr)
    plain = make(int(12 * width), upscale)
    plain.load_state_dict(small.state_dict(), strict=True)
    torch.testing.assert_close(plain(lq), sr)
    if width == 1:
        torch.testing.assert_close(net(lq), sr)


def test_every_convolution_is_cut_to_its_first_channels() -> None:
    wide = edsr(8, upscale=4)
    small = extract(wide, 0.5)
    assert torch.equal(small.conv_first.weight, wide.conv_first.weight[:4])
    assert torch.equal(small.body[1].conv2.weight, wide.body[1].conv2.weight[:4, :4])
    assert torch.equal(small.body[1].conv2.bias, wide.body[1].conv2.bias[:4])
    for layer in (0, 2):
        assert torch.equal(small.upsample[layer].weight, wide.upsample[layer].weight[:16, :4])
    assert torch.equal(small.conv_last.weight, wide.conv_last.weight[:, :4])
    assert torch.equal(small.conv_last.bias, wide.conv_last.bias)


def test_pixel_shuffle_keeps_the_first_channels() -> None:
    """Cutting before the shuffle and cutting after it give the same map."""
    wide = edsr(8)
    x = torch.rand(1, 8, 5, 4)
    x[:, 4:] = 0
    torch.testing.assert_close(extract(wide, 0.5).upsample(x[:, :4]), wide.upsample(x)[:, :4])


def test_channel_attention_is_cut_on_both_sides() -> None:
    wide = rcan(16)
    wide_gate = wide.body[0].residual_group[0].rcab[3].attention
    gate = extract(wide, 0.5).body[0].residual_group[0].rcab[3].attention
    assert torch.equal(gate[1].weight, wide_gate[1].weight[:2, :8])
    assert torch.equal(gate[3].weight, wide_gate[3].weight[:8, :2])


@both
def test_only_the_slice_gets_a_gradient(make: Callable[..., nn.Module]) -> None:
    net = make()
    Slim(net, 0.5)(torch.rand(1, 3, 5, 6)).square().mean().backward()
    shapes = {name: p.shape for name, p in narrowed(net, 0.5).named_parameters()}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        inside = torch.zeros_like(parameter, dtype=torch.bool)
        inside[tuple(slice(side) for side in shapes[name])] = True
        assert not parameter.grad[~inside].any()
    for name in (next(iter(shapes)), list(shapes)[-1]):
        assert net.get_parameter(name).grad.any()


def test_the_gradient_is_that_of_the_extracted_network() -> None:
    net, lq = edsr().double(), torch.rand(1, 3, 5, 6, dtype=torch.float64)
    small = extract(net, 0.5)
    Slim(net, 0.5)(lq).square().mean().backward()
    small(lq).square().mean().backward()
    for (_, wide), narrow in zip(net.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(wide.grad[tuple(slice(side) for side in narrow.shape)], narrow.grad)


@both
def test_an_extracted_network_is_independent_and_trainable(make: Callable[..., nn.Module]) -> None:
    shadow = copy.deepcopy(make()).requires_grad_(False).eval()
    small = extract(shadow, 0.5)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    with torch.no_grad():
        for parameter in shadow.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert all(p.requires_grad and p.is_contiguous() for p in small.parameters())
    assert not small.training


def test_slim_follows_its_network() -> None:
    net = edsr()
    slim = Slim(net, 0.5)
    net.double()
    with torch.no_grad():
        net.conv_last.bias.add_(1)
    lq = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(slim(lq), extract(net, 0.5)(lq))
    twin = copy.deepcopy(slim)
    assert twin.net is not net
    torch.testing.assert_close(twin(lq), slim(lq))


def test_width_is_floored_without_rounding_errors() -> None:
    with torch.device("meta"):
        net = edsr(100)
    assert narrowed(net, 0.29).conv_first.out_channels == 29
    assert narrowed(net, 0.299).conv_first.out_channels == 29


@pytest.mark.parametrize(
    ("make", "width", "text"),
    [
        (lambda: SwinIR(embed_dim=12, depths=(1,), num_heads=(2,), window_size=4), 0.5, "SwinIR cannot be sliced"),
        (FSRCNN, 0.5, "EDSR and RCAN"),
        (edsr, 0.0, r"in \(0, 1\]"),
        (edsr, 1.5, "1.5"),
        (edsr, 0.05, "at least 0.0833"),
        (rcan, 0.3, "divides them by 4"),
    ],
)
def test_what_cannot_be_sliced_is_an_error(make: Callable[[], nn.Module], width: float, text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        Slim(make(), width)
