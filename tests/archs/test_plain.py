"""PlainSR: its bicubic against MATLAB's rule, its branches against the network without them."""

from __future__ import annotations

import pytest
import torch

from mtkd import zoo
from mtkd.archs.plain import PlainSR, cubic_kernels
from mtkd.contracts import MtkdError
from mtkd.data.resize import imresize
from mtkd.metrics.complexity import complexity


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
@torch.no_grad()
def test_without_a_residual_it_is_bicubic_interpolation(scale: int) -> None:
    net = PlainSR(num_feat=4, num_conv=1, upscale=scale)
    net.tail.weight.zero_()
    image = torch.rand(1, 3, 11, 14)
    inside = slice(2 * scale, -2 * scale)  # edges are repeated here and mirrored there
    expected = imresize(image, scale)
    torch.testing.assert_close(net(image)[..., inside, inside], expected[..., inside, inside], rtol=0, atol=1e-6)
    assert float((net(image) - expected).abs().max()) < 0.3


def test_kernels_of_bicubic_keep_a_constant() -> None:
    torch.testing.assert_close(cubic_kernels(4).sum((1, 2, 3)), torch.ones(16), rtol=0, atol=1e-6)


@pytest.mark.parametrize("residual", ["luma", "rgb"])
@torch.no_grad()
def test_the_deployable_network_computes_the_same_with_the_published_number_of_weights(residual: str) -> None:
    net = PlainSR(num_feat=16, num_conv=6, expand=64, residual=residual)
    for parameter in net.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    plain = net.deployable()
    image = torch.rand(2, 3, 13, 17)
    assert float((plain(image) - net(image)).abs().max()) < 1e-6
    channels = 16 if residual == "luma" else 48
    counted = 3 * 16 * 9 + 16 + 6 * (16 * 16 * 9 + 16) + 16 * channels * 9 + channels
    assert sum(p.numel() for p in plain.parameters()) == counted
    assert set(plain.state_dict()) == {
        f"{name}.{kind}"
        for name in ["head.0", *(f"body.{i}.0" for i in range(6)), "tail"]
        for kind in ("weight", "bias")
    }


def test_every_branch_learns() -> None:
    net = PlainSR(num_feat=8, num_conv=2, expand=12, upscale=2)
    net(torch.rand(1, 3, 8, 8)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_the_deployable_network_is_a_copy_in_the_same_dtype_and_mode() -> None:
    net = PlainSR(num_feat=4, num_conv=1, expand=4).double().eval()
    plain = net.deployable()
    assert plain.tail.weight.dtype == torch.float64 and not plain.training
    plain.tail.weight.data.zero_()
    assert float(net.tail.weight.detach().abs().max()) > 0


@torch.no_grad()
def test_plain_weights_load_into_a_network_with_branches_which_then_computes_the_same() -> None:
    plain, net = PlainSR(num_feat=8, num_conv=2), PlainSR(num_feat=8, num_conv=2, expand=12)
    zoo.load_into(net, plain.state_dict(), source="plain")
    image = torch.rand(1, 3, 9, 7)
    torch.testing.assert_close(net(image), plain(image), rtol=0, atol=1e-6)
    branch = net.body[0][0]
    assert float(branch.wide.abs().max()) > 0 and float(branch.narrow.abs().max()) == 0
    with pytest.raises(MtkdError, match="plain does not fit|num_conv|head"):
        zoo.load_into(net, PlainSR(num_feat=6, num_conv=2).state_dict(), source="plain")


@torch.no_grad()
def test_a_residual_of_luma_changes_all_colours_alike() -> None:
    net, image = PlainSR(num_feat=8, num_conv=1, upscale=2), torch.rand(1, 3, 9, 9)
    residual = net(image)
    net.tail.weight.zero_()
    residual = residual - net(image)
    torch.testing.assert_close(residual[:, :1], residual[:, 1:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(residual[:, :1], residual[:, 2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"num_in_ch": 1}, {"num_out_ch": 4}, {"residual": "grey"}])
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(MtkdError, match=next(iter(wrong))):
        PlainSR(**wrong)


def test_cost_is_counted_of_the_network_as_it_is_used() -> None:
    trained, plain = PlainSR(expand=256), PlainSR()
    assert complexity(trained) == complexity(plain)
    assert complexity(plain).params == 16_688
