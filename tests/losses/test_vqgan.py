"""VQGAN's encoder and codes against the architecture written a second time, as functions of a state dict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.vqgan import VQGANEncoder, VQGANFeatures, code_distribution_loss

State = dict[str, Tensor]


def features() -> VQGANFeatures:
    """Random weights, also of the normalisations, which would otherwise hide where they stand."""
    torch.manual_seed(0)
    found = VQGANFeatures("random").double()
    with torch.no_grad():
        for name, parameter in found.net.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.5))
            if name.endswith("weight") and parameter.dim() == 1:
                parameter.add_(1)
    return found


def norm(x: Tensor, state: State, name: str) -> Tensor:
    """32 groups, each of mean 0 and variance 1 over its channels and all positions."""
    groups = x.reshape(len(x), 32, -1)
    groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return groups.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def conv(x: Tensor, state: State, name: str, stride: int = 1, padding: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)


def block(x: Tensor, state: State, name: str) -> Tensor:
    inner = x
    for i in (1, 2):
        inner = norm(inner, state, f"{name}.norm{i}")
        inner = conv(inner / (1 + torch.exp(-inner)), state, f"{name}.conv{i}")
    short = f"{name}.nin_shortcut"
    return inner + (conv(x, state, short, padding=0) if f"{short}.weight" in state else x)


def attention(x: Tensor, state: State, name: str) -> Tensor:
    n, c, h, w = x.shape
    normed = norm(x, state, f"{name}.norm")
    q, k, v = (conv(normed, state, f"{name}.{part}", padding=0).reshape(n, c, h * w) for part in "qkv")
    weights = torch.einsum("nci,ncj->nij", q, k).mul(c**-0.5).exp()
    weights = weights / weights.sum(2, keepdim=True)
    attended = torch.einsum("nij,ncj->nci", weights, v).reshape(x.shape)
    return x + conv(attended, state, f"{name}.proj_out", padding=0)


def encoded(x: Tensor, state: State) -> tuple[list[Tensor], Tensor]:
    """The first block's map of each level, and the embedding."""
    firsts = []
    x = conv(x, state, "encoder.conv_in")
    for level in range(5):
        for i in range(2):
            x = block(x, state, f"encoder.down.{level}.block.{i}")
            if i == 0:
                firsts.append(x)
            if level == 4:
                x = attention(x, state, f"encoder.down.4.attn.{i}")
        if level < 4:
            wider = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1, dtype=x.dtype)
            wider[..., :-1, :-1] = x
            x = conv(wider, state, f"encoder.down.{level}.downsample.conv", stride=2, padding=0)
    x = block(x, state, "encoder.mid.block_1")
    x = attention(x, state, "encoder.mid.attn_1")
    x = norm(block(x, state, "encoder.mid.block_2"), state, "encoder.norm_out")
    x = conv(x / (1 + torch.exp(-x)), state, "encoder.conv_out")
    return firsts, conv(x, state, "quant_conv", padding=0)


def test_levels_and_distances_are_the_architectures() -> None:
    vqgan = features()
    state = vqgan.net.state_dict()
    image = torch.rand(2, 3, 36, 44, dtype=torch.float64)
    firsts, embedded = encoded(image, state)
    found = vqgan.levels(image)
    assert [tuple(x.shape[1:]) for x in found] == [(32, 36, 44), (32, 18, 22), (64, 9, 11), (64, 4, 5), (128, 2, 2)]
    for ours, theirs in zip(found, firsts, strict=True):
        torch.testing.assert_close(ours, theirs)
    rows = embedded.permute(0, 2, 3, 1).reshape(-1, 64)
    expected = scipy.spatial.distance.cdist(rows, state["quantize.embedding.weight"], "sqeuclidean")
    np.testing.assert_allclose(vqgan.distances(image), expected, rtol=1e-9)


def test_the_published_network_has_the_parameters_of_its_configuration() -> None:
    """ch 128, ch_mult 1 1 2 2 4, two blocks a level, attention at 16 x 16, embed_dim 256, 1,024 codes."""

    def convolution(before: int, after: int, kernel: int = 3) -> int:
        return before * after * kernel**2 + after

    def residual(before: int, after: int) -> int:
        inner = 2 * before + convolution(before, after) + 2 * after + convolution(after, after)
        return inner + (convolution(before, after, 1) if before != after else 0)

    def attending(width: int) -> int:
        return 2 * width + 4 * convolution(width, width, 1)

    widths = [128, 128, 128, 256, 256, 512]
    encoder = convolution(3, 128) + 2 * 512 + convolution(512, 256)
    encoder += sum(residual(a, b) + residual(b, b) for a, b in zip(widths, widths[1:], strict=False))
    encoder += sum(convolution(width, width) for width in widths[1:-1])
    encoder += 2 * attending(512) + 2 * residual(512, 512) + attending(512)
    with torch.device("meta"):
        net = VQGANEncoder()
    assert sum(p.numel() for p in net.encoder.parameters()) == encoder == 29_298_176
    assert sum(p.numel() for p in net.parameters()) == encoder + convolution(256, 256, 1) + 1024 * 256


@pytest.mark.parametrize("twice", [True, False])
def test_distribution_is_a_cross_entropy(twice: bool) -> None:
    student, teacher = torch.rand(2, 6, 5, dtype=torch.float64).mul(4).requires_grad_()
    value = code_distribution_loss(student, teacher, softmax_twice=twice)
    q, p = (
        scipy.special.softmax(d.max(1, keepdims=True) - d, 1)
        for d in (student.detach().numpy(), teacher.detach().numpy())
    )
    logarithms = scipy.special.log_softmax(q, 1) if twice else np.log(q)
    assert value.item() == pytest.approx(-(p * logarithms).sum(1).mean(), rel=1e-12)
    own, of_teacher = torch.autograd.grad(value, [student, teacher], allow_unused=True)
    assert own.abs().sum() > 0 and of_teacher is None


def test_gradients_reach_the_image_alone() -> None:
    vqgan = VQGANFeatures("random")
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    (sum(x.mean() for x in vqgan.levels(image)) + vqgan.distances(image).mean()).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert not list(vqgan.parameters()) and not vqgan.state_dict()
    before = torch.get_rng_state()
    assert torch.equal(VQGANFeatures("random").levels(image)[4], vqgan.levels(image)[4])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_wanted_tensors_are_taken_out_of_a_whole_vqgan(tmp_path: Path) -> None:
    state = VQGANEncoder().state_dict()
    whole = {**state, "decoder.conv_in.weight": torch.zeros(1), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "last.ckpt")
    found = VQGANFeatures(tmp_path / "last.ckpt")
    assert all(torch.equal(value, state[key]) for key, value in found.net.state_dict().items())
    del whole["quantize.embedding.weight"]
    torch.save(whole, tmp_path / "less.pth")
    with pytest.raises(
        MtkdError, match=r"less.pth is no VQGAN of 1024 codes and f16: its quantize.embedding.weight is absent"
    ):
        VQGANFeatures(tmp_path / "less.pth")


def test_what_cannot_be_read_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match=r"not at .*zoo:vqgan_f16_1024.*mtkd zoo import"):
        VQGANFeatures(tmp_path / "nothing.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"no weights")
    with pytest.raises(MtkdError, match="cannot be read as weights"):
        VQGANFeatures(tmp_path / "broken.ckpt")
    with pytest.raises(MtkdError, match="16 pixels"):
        VQGANFeatures("random").levels(torch.rand(1, 3, 15, 40))
