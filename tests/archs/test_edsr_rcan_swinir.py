"""EDSR, RCAN and SwinIR against BasicSR's classes, and against published parameter counts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtkd import catalog
from mtkd.archs import blocks, windows
from mtkd.archs.edsr import EDSR
from mtkd.archs.rcan import RCAN
from mtkd.archs.swinir import SwinIR
from mtkd.contracts import MtkdError
from mtkd.zoo import keymaps

SWIN = {"img_size": 16, "embed_dim": 12, "depths": [2, 3], "num_heads": [2, 3], "window_size": 8, "mlp_ratio": 2.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "edsr_x2": ("EDSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}),
    "edsr_x3": (
        "EDSR",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 3, "res_scale": 0.1},
    ),
    "edsr_x4": ("EDSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "img_range": 1.0}),
    "edsr_other_mean": (
        "EDSR",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "rgb_mean": (0.5, 0.2, 0.1)},
    ),
    "rcan_x2": (
        "RCAN",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 8,
            "num_group": 2,
            "num_block": 2,
            "squeeze_factor": 4,
            "upscale": 2,
        },
    ),
    "rcan_x3": (
        "RCAN",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 16,
            "num_group": 1,
            "num_block": 2,
            "upscale": 3,
            "res_scale": 0.5,
        },
    ),
    "swinir_classical_x2": ("SwinIR", {**SWIN, "upscale": 2, "upsampler": "pixelshuffle"}),
    "swinir_classical_x3": ("SwinIR", {**SWIN, "upscale": 3, "upsampler": "pixelshuffle", "img_range": 255.0}),
    "swinir_classical_x4_3conv": (
        "SwinIR",
        {**SWIN, "upscale": 4, "upsampler": "pixelshuffle", "resi_connection": "3conv"},
    ),
    "swinir_lightweight_x3": ("SwinIR", {**SWIN, "upscale": 3, "upsampler": "pixelshuffledirect"}),
    "swinir_real_x4": ("SwinIR", {**SWIN, "upscale": 4, "upsampler": "nearest+conv"}),
    "swinir_restoration": ("SwinIR", {**SWIN, "upscale": 1, "upsampler": ""}),
    "swinir_gray": ("SwinIR", {**SWIN, "upscale": 1, "upsampler": "", "in_chans": 1, "img_range": 255.0}),
    "swinir_options": (
        "SwinIR",
        {**SWIN, "upscale": 2, "upsampler": "pixelshuffle", "qkv_bias": False, "qk_scale": 0.3, "patch_norm": False},
    ),
    "swinir_window_of_the_patch": ("SwinIR", {**SWIN, "img_size": 8, "upscale": 2, "upsampler": "pixelshuffle"}),
    "swinir_window_above_the_patch": (
        "SwinIR",
        {**SWIN, "img_size": (4, 12), "upscale": 2, "upsampler": "pixelshuffle"},
    ),
    "swinir_odd_window": (
        "SwinIR",
        {**SWIN, "window_size": 4, "patch_size": 2, "upscale": 2, "upsampler": "pixelshuffle"},
    ),
}

every_case = pytest.mark.parametrize("case", CASES)


def theirs(case: str, **changed: Any) -> nn.Module:
    from mtkd import basicsr

    name, arguments = CASES[case]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid")
        net = basicsr.registered("arch", name)(**{**arguments, **changed}).eval()
    assert type(net).__module__.startswith("basicsr.")
    for parameter in net.parameters():
        # The relative position bias starts near zero: too small to show an error in its index.
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def ours(case: str, **changed: Any) -> nn.Module:
    name, arguments = CASES[case]
    return catalog.get("arch", name)(**{**arguments, **changed}).eval()


def image(case: str, h: int = 24, w: int = 16) -> Tensor:
    return torch.rand(2, CASES[case][1].get("in_chans", 3), h, w)


@every_case
def test_state_dict_has_basicsr_s_names_shapes_types_and_values(case: str) -> None:
    """Strict loading both ways, the saved masks included."""
    reference = theirs(case)
    net = ours(case)
    net.load_state_dict(reference.state_dict(), strict=True)
    written = net.state_dict()
    assert list(written) == list(reference.state_dict())
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(written[key], value, rtol=0, atol=0)
    theirs(case).load_state_dict(written, strict=True)


@every_case
@pytest.mark.parametrize("size", [(24, 16), (16, 16), (8, 8)], ids=str)
@torch.no_grad()
def test_output_equals_basicsr_s(case: str, size: tuple[int, int]) -> None:
    reference, net, x = theirs(case), ours(case), image(case, *size)
    net.load_state_dict(reference.state_dict())
    expected = reference(x)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["edsr_x2", "rcan_x2", "swinir_classical_x2"])
def test_gradients_equal_basicsr_s(case: str) -> None:
    reference, net, x = theirs(case), ours(case), image(case)
    if case.startswith("swinir"):
        reference, net = theirs(case, drop_path_rate=0.0), ours(case, drop_path_rate=0.0)
    net.load_state_dict(reference.state_dict())
    for module in (reference.train(), net.train()):
        module(x).square().mean().backward()
    for (key, p), q in zip(net.named_parameters(), dict(reference.named_parameters()).values(), strict=True):
        scale = q.grad.abs().max()
        assert (p.grad - q.grad).abs().max() <= 1e-3 * scale + 1e-7, key


PUBLISHED: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, int, int]]] = {
    "EDSR-L": (EDSR, {"num_feat": 256, "num_block": 32, "res_scale": 0.1}, (40_729_603, 43_680_003, 43_089_923)),
    "EDSR-M": (EDSR, {}, (1_369_859, 1_554_499, 1_517_571)),
    "RCAN": (RCAN, {"num_block": 20}, (15_444_643, 15_629_283, 15_592_355)),
    "RCAN-lightweight": (RCAN, {"num_block": 6}, (5_023_603, 5_208_243, 5_171_315)),
    "SwinIR-M": (
        SwinIR,
        {
            "embed_dim": 180,
            "depths": [6] * 6,
            "num_heads": [6] * 6,
            "window_size": 8,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffle",
        },
        (11_752_487, 11_937_127, 11_900_199),
    ),
    "SwinIR-lightweight": (
        SwinIR,
        {
            "embed_dim": 60,
            "depths": [6] * 4,
            "num_heads": [6] * 4,
            "window_size": 8,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffledirect",
        },
        (910_152, 918_267, 929_628),
    ),
}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str, scale: int) -> None:
    cls, arguments, counts = PUBLISHED[name]
    with torch.device("meta"):
        net = cls(**arguments, upscale=scale)
    assert sum(p.numel() for p in net.parameters()) == counts[scale - 2]


@pytest.mark.parametrize("case", ["edsr_x2", "rcan_x2", "swinir_classical_x2"])
def test_the_mean_follows_the_network_and_stays_out_of_the_state_dict(case: str) -> None:
    net = ours(case)
    assert "mean" not in net.state_dict()
    assert net.mean.flatten().tolist() == pytest.approx([0.4488, 0.4371, 0.4040])
    assert net.double().mean.dtype == torch.float64
    assert net.to("meta").mean.is_meta


@torch.no_grad()
def test_swinir_loads_files_of_any_training_size() -> None:
    reference, net, x = (
        theirs("swinir_classical_x2", img_size=24),
        ours("swinir_classical_x2"),
        torch.rand(1, 3, 24, 24),
    )
    stored = reference.state_dict()
    masks = [key for key in stored if key.endswith("attn_mask")]
    assert masks and stored[masks[0]].shape != net.state_dict()[masks[0]].shape
    net.load_state_dict(stored, strict=True)
    assert set(stored) == set(reference.state_dict()), "loading must not eat the caller's dictionary"
    torch.testing.assert_close(net(x), reference(x), rtol=1e-4, atol=1e-4)
    net.load_state_dict({key: value for key, value in stored.items() if key not in masks}, strict=True)
    with pytest.raises(RuntimeError, match="relative_position_bias_table"):
        net.load_state_dict({key: value for key, value in stored.items() if not key.endswith("bias_table")})


@pytest.mark.parametrize("size", [(9, 23), (5, 8), (3, 20), (1, 2)], ids=str)
@torch.no_grad()
def test_swinir_pads_by_reflection_and_crops(size: tuple[int, int]) -> None:
    """The witness is numpy's padding around BasicSR's net, which does not pad."""
    reference, net, x = theirs("swinir_classical_x2"), ours("swinir_classical_x2"), image("swinir_classical_x2", *size)
    net.load_state_dict(reference.state_dict())
    h, w = size
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, -h % 8), (0, -w % 8)), mode="reflect")
    expected = reference(torch.from_numpy(padded))[:, :, : 2 * h, : 2 * w]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (24, 16), (16, 40)])
def test_shifted_windows_are_masked_exactly_where_the_shift_wrapped_round_the_border(h: int, w: int) -> None:
    window, shift = 8, 4
    mask = windows.shifted_window_mask(h, w, window, shift)
    position = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1)
    tokens = windows.window_partition(position.roll((-shift, -shift), (0, 1))[None], window)
    # In the last window of an axis the first `shift` rows come from the border before the wrap, the rest from after it.
    slot = torch.arange(window)
    slots = torch.stack(torch.meshgrid(slot, slot, indexing="ij"), dim=-1).view(1, -1, 2)
    wrapped = (slots >= window - shift) & (tokens < shift)
    expected = (wrapped[:, :, None] != wrapped[:, None, :]).any(-1)
    assert torch.equal(mask == -100, expected)
    assert torch.equal(mask == 0, ~expected)


def test_window_reverse_undoes_window_partition() -> None:
    x = torch.rand(2, 12, 8, 5)
    tokens = windows.window_partition(x, 4)
    assert tokens.shape == (12, 16, 5)
    assert torch.equal(tokens[1].view(4, 4, 5), x[0, :4, 4:8])
    assert torch.equal(windows.window_reverse(tokens, 4, 12, 8), x)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_padding_the_heads_changes_nothing(qkv_bias: bool, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA does for its fused kernels, done on the CPU."""
    attention = windows.WindowAttention(12, 4, 2, qkv_bias=qkv_bias)
    nn.init.normal_(attention.relative_position_bias_table)
    x = torch.rand(8, 16, 12, requires_grad=True)
    mask = windows.shifted_window_mask(8, 8, 4, 2) if masked else None
    expected = attention(x, mask)
    expected_grads = torch.autograd.grad(expected.square().sum(), [x, *attention.parameters()])
    monkeypatch.setattr(attention, "_is_fused", lambda _x: False)
    monkeypatch.setattr(attention, "_head_padding", lambda _x: 2)
    y = attention(x, mask)
    torch.testing.assert_close(y, expected)
    for grad, wanted in zip(
        torch.autograd.grad(y.square().sum(), [x, *attention.parameters()]), expected_grads, strict=True
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_acts_in_training_only_and_keeps_the_mean() -> None:
    drop, x = blocks.DropPath(0.25), torch.ones(20_000, 1, 2)
    assert drop.eval()(x) is x
    y = drop.train()(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(y[:, :, 0], y[:, :, 1])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)


def test_drop_path_rate_rises_linearly_over_the_blocks() -> None:
    net = ours("swinir_classical_x2", drop_path_rate=0.4)
    rates = [module.drop_prob for module in net.modules() if isinstance(module, blocks.DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_swinir_recomputes_blocks_with_the_same_gradients() -> None:
    """drop_path too must draw the same samples in the second pass."""
    plain = ours("swinir_classical_x2", drop_path_rate=0.5).train()
    saving = ours("swinir_classical_x2", drop_path_rate=0.5, use_checkpoint=True).train()
    saving.load_state_dict(plain.state_dict())
    x = image("swinir_classical_x2")
    for net in (plain, saving):
        torch.manual_seed(3)
        net(x).square().mean().backward()
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@torch.no_grad()
def test_swinir_absolute_position_equals_basicsr_s_at_its_size_and_resamples_at_others() -> None:
    reference, net = theirs("swinir_classical_x2", ape=True), ours("swinir_classical_x2", ape=True)
    net.load_state_dict(reference.state_dict())
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(net(x), reference(x), rtol=1e-4, atol=1e-4)
    assert net(torch.rand(1, 3, 20, 9)).shape == (1, 3, 40, 18)


def test_swinir_without_upsampler_has_scale_1() -> None:
    net = SwinIR(**{**SWIN, "upsampler": None})
    assert net.scale == 1
    assert net(torch.rand(1, 3, 9, 8)).shape == (1, 3, 9, 8)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
def test_direct_edsr_is_its_formula(scale: int) -> None:
    # ESPCN's tail: one convolution, and pixels that torch's shuffle puts in place.
    net = EDSR(num_feat=4, num_block=1, upscale=scale, upsampler="pixelshuffledirect")
    assert sum(p.numel() for p in net.parameters()) == 3 * 9 * 4 + 4 + 3 * (4 * 9 * 4 + 4) + 3 * scale**2 * 37
    x, mean = torch.rand(2, 3, 7, 5), torch.tensor(blocks.DIV2K_MEAN).view(3, 1, 1)
    first = net.conv_first((x - mean) * 255)
    tail = nn.functional.conv2d(net.conv_after_body(net.body(first)) + first, *net.upsample[0].parameters(), padding=1)
    expected = tail.view(2, 3, scale, scale, 7, 5).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 7 * scale, 5 * scale)
    torch.testing.assert_close(net(x), expected / 255 + mean)
    shapes = keymaps.infer(net.state_dict())
    assert {**shapes} == {
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": 4,
        "num_block": 1,
        "upscale": scale,
        "upsampler": "pixelshuffledirect",
    }


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_subpixel_upsampler_scales(scale: int) -> None:
    assert blocks.subpixel_upsampler(scale, 4)(torch.rand(1, 4, 3, 2)).shape == (1, 4, 3 * scale, 2 * scale)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: EDSR(upscale=5), "upscale 5"),
        (lambda: EDSR(num_in_ch=1, num_out_ch=1), "rgb_mean"),
        (lambda: EDSR(upsampler="direct"), "'pixelshuffledirect'"),  # pyright: ignore[reportArgumentType]
        (lambda: RCAN(num_out_ch=1), "num_out_ch 1"),
        (lambda: RCAN(num_feat=8), "squeeze_factor 16"),
        (lambda: SwinIR(depths=[6, 6], num_heads=[6]), "num_heads"),
        (lambda: SwinIR(embed_dim=64, num_heads=[6] * 4), "num_heads must divide"),
        (lambda: SwinIR(upsampler="pixelshufle"), "pixelshufle"),  # pyright: ignore[reportArgumentType]
        (lambda: SwinIR(upsampler="nearest+conv", upscale=2), "4 only"),
        (lambda: SwinIR(resi_connection="2conv"), "2conv"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_arguments_that_cannot_work_are_named(build: Any, words: str) -> None:
    with pytest.raises(MtkdError, match=words.replace("+", r"\+")):
        build()


def test_masks_are_kept_per_size_and_survive_inference_mode() -> None:
    windows._kept_mask.cache_clear()
    net = SwinIR(img_size=16, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, upsampler="pixelshuffledirect")
    with torch.inference_mode():
        net(torch.rand(1, 3, 8, 12))
    net(torch.rand(1, 3, 8, 12)).mean().backward()
    assert windows._kept_mask.cache_info().hits == 1
    assert windows._kept_mask.cache_info().misses == 1
