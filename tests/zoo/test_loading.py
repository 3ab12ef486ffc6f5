"""Strict loading: all of it, or an error in the user's words and a network left as it was."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.zoo import load_into
from tests.zoo.official import filled, rcan_shapes

SMALL = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "upscale": 2}


def edsr(**changes: object) -> nn.Module:
    return catalog.get("arch", "EDSR")(**SMALL | {"num_block": 2} | changes)


def rcan(**changes: object) -> nn.Module:
    return catalog.get("arch", "RCAN")(**SMALL | {"num_group": 1, "num_block": 2, "squeeze_factor": 4} | changes)


@pytest.mark.parametrize(
    ("file", "option", "said"),
    [
        (lambda: rcan(num_block=4), rcan, "This is RCAN with num_block 4, your options have 2"),
        (lambda: rcan(squeeze_factor=2), rcan, "squeeze_factor 2, your options have 4"),
        (lambda: edsr(num_feat=16), edsr, "This is EDSR with num_feat 16, your options have 8"),
        (lambda: edsr(upscale=4), edsr, "This is EDSR with upscale 4, your options have 2"),
        (rcan, edsr, "This is RCAN .*your options have EDSR"),
    ],
)
def test_a_mismatch_is_told_in_arguments(file, option, said: str) -> None:
    with pytest.raises(MtkdError, match=said):
        load_into(option(), file().state_dict(), source="file.pth")


def test_a_mismatch_is_told_for_official_names_too() -> None:
    with pytest.raises(MtkdError, match="This is RCAN with num_block 5, your options have 2"):
        load_into(rcan(), filled(rcan_shapes(8, 1, 5, 4, 2)), source="file.pt")


def test_a_mismatch_is_told_for_swinir() -> None:
    args = {"embed_dim": 12, "depths": [2], "num_heads": [2], "mlp_ratio": 2, "upscale": 2, "upsampler": "pixelshuffle"}
    arch = catalog.get("arch", "SwinIR")
    with pytest.raises(MtkdError, match="window_size 8, your options have 4"):
        load_into(arch(**args, window_size=4), arch(**args, window_size=8).state_dict(), source="file.pth")


def test_another_img_size_of_swinir_is_no_mismatch() -> None:
    args = {
        "embed_dim": 12,
        "depths": [2],
        "num_heads": [2],
        "window_size": 4,
        "upscale": 2,
        "upsampler": "pixelshuffle",
    }
    arch = catalog.get("arch", "SwinIR")
    net, other = arch(**args, img_size=8), arch(**args, img_size=16)
    load_into(net, other.state_dict(), source="file.pth")
    lq = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(net.eval()(lq), other.eval()(lq))


def test_a_failed_load_changes_nothing() -> None:
    net = edsr()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = edsr().state_dict()
    del state["conv_last.bias"]
    with pytest.raises(MtkdError, match=r"conv_last\.bias"):
        load_into(net, state, source="file.pth")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_extra_tensor_is_an_error() -> None:
    with pytest.raises(MtkdError, match="1 in the file are not in the network: extra"):
        load_into(edsr(), edsr().state_dict() | {"extra": torch.zeros(1)}, source="file.pth")


def test_not_a_number_is_an_error() -> None:
    state = edsr().state_dict()
    state["conv_last.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(MtkdError, match=r"not finite .*conv_last\.bias"):
        load_into(edsr(), state, source="file.pth")


def test_a_partial_load_happens_only_on_request_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    net, state = edsr(), edsr().state_dict()
    last = net.conv_last.bias.clone()
    del state["conv_last.bias"]
    with caplog.at_level(logging.WARNING, logger="mtkd"):
        load_into(net, state, strict=False, source="file.pth")
    assert "conv_last.bias" in caplog.text
    assert torch.equal(net.conv_last.bias, last)
    assert torch.equal(net.conv_first.weight, state["conv_first.weight"])


def test_tensors_of_another_shape_are_left_and_said_on_request(caplog: pytest.LogCaptureFixture) -> None:
    """As BasicSR does it: weights of x2 start a network of x3."""
    net, state = edsr(upscale=3), edsr(upscale=2).state_dict()
    upsample = net.upsample[0].weight.clone()
    with pytest.raises(MtkdError, match="This is EDSR with upscale 2, your options have 3"):
        load_into(net, state, source="file.pth")
    with caplog.at_level(logging.WARNING, logger="mtkd"):
        load_into(net, state, strict=False, source="file.pth")
    assert "14 of 16 tensors" in caplog.text and "Of another shape" in caplog.text
    assert "upsample.0.weight is (32, 8, 3, 3), the network has (72, 8, 3, 3)" in caplog.text
    assert torch.equal(net.upsample[0].weight, upsample)
    assert torch.equal(net.conv_last.weight, state["conv_last.weight"])


def test_shapes_that_all_differ_are_an_error_even_on_request() -> None:
    with pytest.raises(MtkdError, match="does not fit"):
        load_into(nn.Linear(2, 3), nn.Linear(4, 5).state_dict(), strict=False, source="file.pth")


def test_nothing_that_fits_is_an_error_even_on_request() -> None:
    with pytest.raises(MtkdError, match="does not fit"):
        load_into(edsr(), {"something": torch.zeros(1)}, strict=False, source="file.pth")


def test_half_precision_weights_load_into_a_full_precision_network() -> None:
    net, state = edsr(), {name: value.half() for name, value in edsr().state_dict().items()}
    load_into(net, state, source="file.pth")
    assert net.conv_first.weight.dtype == torch.float32
    torch.testing.assert_close(net.conv_first.weight, state["conv_first.weight"].float())


def test_any_network_loads_by_its_own_names() -> None:
    net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    load_into(net, other.state_dict(), source="file.pth")
    assert torch.equal(net.weight, other.weight)
