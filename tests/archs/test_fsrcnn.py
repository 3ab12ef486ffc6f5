"""FSRCNN and PISR's teacher against their published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtkd.archs.fsrcnn import FSRCNN
from mtkd.archs.privileged import PrivilegedEncoder, PrivilegedTeacher
from mtkd.archs.rcan import RCAN
from mtkd.contracts import MtkdError


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_published_parameter_counts() -> None:
    assert count(FSRCNN(num_in_ch=1, num_out_ch=1, upscale=2)) == 12_644
    assert count(PrivilegedEncoder(num_in_ch=1, num_out_ch=1, upscale=2)) == 86_084


def test_parameters_on_rgb() -> None:
    """Two more input channels and two more output channels."""
    assert count(FSRCNN()) == 12_644 + 2 * 25 * 56 + 2 * (81 * 56 + 1) == 24_518


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_scales(upscale: int) -> None:
    net = FSRCNN(num_feat=8, num_shrink=4, num_map=1, upscale=upscale)
    assert net(torch.rand(1, 3, 7, 5)).shape == (1, 3, 7 * upscale, 5 * upscale)


def test_transposed_convolution_is_centred() -> None:
    """Mirrored weights on a mirrored image give the mirrored image: the upscaling shifts nothing but its last phase."""
    layer = FSRCNN(num_in_ch=1, num_out_ch=1, num_feat=1, num_shrink=1, upscale=3).last_layer
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[..., 4, 4] = 1
    x = torch.rand(1, 1, 4, 4)
    y = layer(x)
    assert torch.equal(y[..., ::3, ::3], x)
    y[..., ::3, ::3] = 0
    assert not y.any()


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)], ids=str)
def test_the_code_is_as_large_as_lq(upscale: int, size: tuple[int, int]) -> None:
    teacher = PrivilegedTeacher(encoder_feat=4, encoder_shrink=4, upscale=upscale)
    h, w = size
    code = teacher.encode(torch.rand(2, 3, h * upscale, w * upscale))
    assert code.shape == (2, 3, h, w)
    assert teacher.decoder(code).shape == (2, 3, h * upscale, w * upscale)


def test_forward_is_the_decoder_alone() -> None:
    teacher = PrivilegedTeacher(upscale=2)
    lq = torch.rand(1, 3, 6, 4)
    assert torch.equal(teacher(lq), teacher.decoder(lq))
    assert isinstance(teacher.decoder, FSRCNN)


def test_any_network_of_the_catalog_decodes() -> None:
    decoder = {"type": "RCAN", "num_feat": 8, "num_group": 1, "num_block": 1, "squeeze_factor": 4}
    teacher = PrivilegedTeacher(decoder=decoder, upscale=3)
    assert isinstance(teacher.decoder, RCAN) and teacher.decoder.scale == teacher.scale == 3
    assert teacher.feature_names == ("decoder.conv_first", "decoder.body.0", "decoder.conv_after_body")
    assert decoder["type"] == "RCAN"


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        ({"type": "FSRCNNN"}, "Did you mean FSRCNN"),
        ({"type": "FSRCNN", "num_feet": 3}, "num_feet"),
        ({"type": "FSRCNN", "upscale": 4}, "upscales by 4, and its upscale is 2"),
        ({"num_feat": 8}, "type"),
    ],
)
def test_wrong_decoders_are_errors(decoder: dict[str, object], text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        PrivilegedTeacher(decoder=decoder, upscale=2)
