"""Parameters and multiply-adds against published numbers and numbers counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.metrics.complexity import Complexity, complexity, published_lq_size


class Attention(nn.Module):
    """Two products of (h w, h w, c) each, and nothing else that counts."""

    scale = 1

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous and with an axis of heads, or a CPU would not take its fused kernel, which hides from the counter.
        tokens = x.flatten(2).mT[:, None].contiguous()
        return F.scaled_dot_product_attention(tokens, tokens, tokens).mT.reshape(x.shape)


class ReadsValues(nn.Module):
    """A network that meta tensors cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.mean = torch.zeros(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x - self.mean - x.max().item())


@pytest.mark.parametrize(("scale", "gmacs"), [(2, 316.2), (3, 159.3), (4, 114.2)])
def test_edsr_m_costs_what_is_published_at_1280x720(scale: int, gmacs: float) -> None:
    with torch.device("meta"):
        net = catalog.get("arch", "EDSR")(
            num_in_ch=3, num_out_ch=3, num_feat=64, num_block=16, upscale=scale, res_scale=1.0
        )
    found = complexity(net, scale=scale)
    assert found.params == {2: 1_369_859, 3: 1_554_499, 4: 1_517_571}[scale]
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=0.05)


def test_swinir_light_with_its_attention_costs_what_was_counted() -> None:
    net = catalog.get("arch", "SwinIR")(
        upscale=4, in_chans=3, img_size=64, window_size=8, img_range=1.0, depths=[6] * 4, embed_dim=60,
        num_heads=[6] * 4, mlp_ratio=2, upsampler="pixelshuffledirect", resi_connection="1conv",
    )  # fmt: skip
    found = complexity(net, scale=4)
    assert found.params == 929_628
    assert found.macs / 1e9 == pytest.approx(62.7, abs=0.05)


def test_a_convolution_counts_a_multiply_add_per_weight_and_pixel() -> None:
    net = nn.Conv2d(3, 8, 3, padding=1)
    assert complexity(net, (10, 20)) == Complexity(params=3 * 8 * 9 + 8, macs=3 * 8 * 9 * 200)


def test_attention_is_counted() -> None:
    assert complexity(Attention(), (4, 8)) == Complexity(params=0, macs=2 * 32 * 32 * 3)


def test_a_network_that_reads_values_runs_for_real() -> None:
    assert complexity(ReadsValues(), (10, 20)).macs == 3 * 8 * 9 * 200


def test_attention_is_counted_when_it_runs_for_real() -> None:
    class Both(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + x.max().item())

    assert complexity(Both(), (4, 8)).macs == 2 * 32 * 32 * 3


def test_a_network_of_several_images_takes_their_channels() -> None:
    assert complexity(nn.Conv2d(9, 3, 1), (4, 4), channels=9).macs == 9 * 3 * 16


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    complexity(net, (4, 4))
    assert [module.training for module in net] == [True, False, True]
    assert all(parameter.device.type == "cpu" and parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Shifted(nn.Module):
    """Keeps its mean as BasicSR's SwinIR does: a plain tensor that follows the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mean = nn.Conv2d(3, 3, 3, padding=1), torch.full((1, 3, 1, 1), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        return self.conv(x - self.mean)


def test_a_tensor_that_is_no_buffer_is_left_as_it_was() -> None:
    net, x = Shifted(), torch.rand(1, 3, 4, 4)
    expected = net(x)
    complexity(net, (4, 4))
    assert torch.equal(net(x), expected)


def test_the_published_sizes_give_1280x720_or_nearly_so() -> None:
    assert [published_lq_size(scale) for scale in (2, 3, 4, 8)] == [(360, 640), (240, 424), (180, 320), (90, 160)]


def test_a_network_without_a_scale_needs_a_size() -> None:
    with pytest.raises(MtkdError, match="Conv2d"):
        complexity(nn.Conv2d(3, 3, 1))
