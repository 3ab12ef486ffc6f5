"""DCTSwin: published sizes, its DCT against scipy, mean of the teachers at the start, image sizes and precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from scipy import fft
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtkd import catalog
from mtkd.archs.dctswin import DCTSwin, DCTSwinLayer, WindowDCT, _continue_mirrored, dct_matrix
from mtkd.archs.ensemble import MeanFusion
from mtkd.archs.windows import shifted_window_mask
from mtkd.contracts import MtkdError
from mtkd.methods.base import tapped


def tiny(*, awake: bool = False, **options) -> DCTSwin:
    """A small net in eval mode; `awake` gives a zero last convolution weights, as training would."""
    torch.manual_seed(0)
    net = DCTSwin(**{"upscale": 2, "embed_dim": 12, "depths": (2,), "num_heads": (2,), "num_feat": 8, **options}).eval()
    if awake:
        nn.init.normal_(net.conv_last.weight, std=0.1)
        # Larger attention weights than at the start, so that a wrong token arrangement shows.
        for name, parameter in net.named_parameters():
            if "qkv.weight" in name or "bias_table" in name:
                nn.init.normal_(parameter, std=0.5)
    return net


def run(swin: DCTSwinLayer, x: Tensor) -> Tensor:
    """The layer with the mask that the network would give it."""
    return swin(x, shifted_window_mask(x.shape[1], x.shape[2], 8, 4) if swin.dct is None else None)


def layer(*, shift: int, dct: bool = True, dim: int = 8) -> DCTSwinLayer:
    torch.manual_seed(0)
    made = DCTSwinLayer(dim, 2, window_size=8, shift=shift, mlp_ratio=2.0, qkv_bias=True, drop_path=0.0, dct=dct).eval()
    nn.init.normal_(made.attn.qkv.weight, std=0.5)
    return made


# The whole network


@pytest.mark.parametrize(
    ("upscale", "num_teachers", "published"),
    [(2, 3, 1_094_579), (3, 3, 1_318_099), (4, 3, 1_335_603), (2, 2, 1_084_211), (3, 2, 1_294_771), (4, 2, 1_294_131)],
)
def test_parameter_counts_are_the_published_ones(upscale, num_teachers, published) -> None:
    net = catalog.get("arch", "DCTSwin")(upscale=upscale, num_teachers=num_teachers)
    assert sum(parameter.numel() for parameter in net.parameters()) == published


def test_taking_the_dct_out_leaves_parameters_and_state_as_they_are() -> None:
    with_dct, without = tiny(dct=True), tiny(dct=False)
    assert with_dct.state_dict().keys() == without.state_dict().keys()
    assert not any("basis" in key or "mean" in key for key in with_dct.state_dict())


@pytest.mark.parametrize("size", [(32, 32), (37, 29), (5, 6), (1, 3)])
@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
def test_untrained_net_is_exactly_the_mean_of_the_teachers(size, upscale, upsampler) -> None:
    images = torch.rand(2, 9, *size)
    fused = tiny(upscale=upscale, upsampler=upsampler)(images)
    assert torch.equal(fused, MeanFusion(3)(images))
    torch.testing.assert_close(fused, (images[:, :3] + images[:, 3:6] + images[:, 6:]) / 3)


@pytest.mark.parametrize("num_teachers", [1, 2, 3, 5])
@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_any_number_of_teachers_at_every_scale(num_teachers, upscale) -> None:
    net = tiny(upscale=upscale, num_teachers=num_teachers, awake=True)
    images = torch.rand(1, 3 * num_teachers, 25, 18)
    fused = net(images)
    assert fused.shape == (1, 3, 25, 18)
    assert (net.scale, net.num_teachers) == (upscale, num_teachers)
    assert not torch.allclose(fused, MeanFusion(num_teachers)(images), atol=1e-3)


@pytest.mark.parametrize("size", [(37, 29), (5, 6), (1, 1)])
def test_padding_is_reflection_and_is_cropped_again(size) -> None:
    net = tiny(awake=True)
    images = torch.rand(1, 9, *size)
    fused = net(images)
    padded = torch.from_numpy(_reflect(images.numpy(), 16))
    assert padded.shape[-1] % 16 == padded.shape[-2] % 16 == 0
    torch.testing.assert_close(fused, net(padded)[..., : size[0], : size[1]])


def test_eight_times_and_the_other_end_of_the_body() -> None:
    net = tiny(upscale=8, resi_connection="3conv", awake=True)
    assert net(torch.rand(1, 9, 40, 64)).shape == (1, 3, 40, 64)


def test_without_residual_the_output_counts_from_the_mean_colour() -> None:
    net = tiny(residual=False)
    images = torch.rand(1, 9, 16, 16)
    assert net.conv_last.weight.abs().max() > 0
    nn.init.zeros_(net.conv_last.weight)
    nn.init.zeros_(net.conv_last.bias)
    expected = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    torch.testing.assert_close(net(images), expected)


def test_img_range_scales_what_goes_in_and_out() -> None:
    plain, ranged = tiny(awake=True), tiny(awake=True, img_range=255.0)
    images = torch.rand(1, 9, 16, 16)
    mean = MeanFusion(3)(images)
    expected = (plain(images * 255) - MeanFusion(3)(images * 255)) / 255 + mean
    torch.testing.assert_close(ranged(images), expected, rtol=1e-4, atol=1e-5)


def test_one_channel_images_can_be_fused() -> None:
    images = torch.rand(1, 2, 9, 9)
    assert torch.equal(tiny(num_teachers=2, num_out_ch=1)(images), images.mean(1, keepdim=True))
    assert tiny(num_teachers=2, num_out_ch=1, residual=False)(images).shape == (1, 1, 9, 9)


def test_dct_changes_the_result() -> None:
    images = torch.rand(1, 9, 32, 32)
    plain = tiny(awake=True, dct=False)
    fused = plain(images)
    assert fused.isfinite().all()
    other = tiny(awake=True, dct=True)
    other.load_state_dict(plain.state_dict())
    assert (other(images) - fused).abs().max() > 1e-3


@pytest.mark.parametrize("dct", [True, False])
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_gradient_reaches_every_parameter_once_the_last_convolution_is_not_zero(dct, resi_connection) -> None:
    net = tiny(awake=True, dct=dct, resi_connection=resi_connection)
    net(torch.rand(2, 9, 32, 32)).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_first_step_moves_the_last_convolution_and_the_second_all_else() -> None:
    net = tiny()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    images, gt = torch.rand(2, 9, 16, 16), torch.rand(2, 3, 16, 16)
    for step in range(2):
        optimizer.zero_grad()
        F.l1_loss(net(images), gt).backward()
        moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == {"conv_last.weight", "conv_last.bias"} if step == 0 else "conv_first.weight" in moved
        optimizer.step()


@pytest.mark.slow
def test_it_learns_which_teacher_to_trust() -> None:
    torch.manual_seed(0)
    gt = F.interpolate(torch.rand(2, 3, 8, 8), scale_factor=4, mode="bicubic")
    images = torch.cat([gt, gt + 0.2 * torch.randn_like(gt)], dim=1)
    net = tiny(num_teachers=2, embed_dim=24, num_feat=16, drop_path_rate=0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.l1_loss(net(images), gt).backward()
        optimizer.step()
    assert F.l1_loss(net(images), gt) < 0.75 * F.l1_loss(MeanFusion(2)(images), gt)


@pytest.mark.parametrize(("upscale", "published"), [(2, 271.3), (3, 143.4), (4, 110.8)])
def test_multiply_adds_are_the_published_ones_and_the_transform_costs_little(upscale, published):
    def giga(dct: bool) -> float:
        lq_width = {2: 640, 3: 424, 4: 320}[upscale]
        with torch.device("meta"):
            images, net = torch.rand(1, 9, 720, lq_width * upscale), DCTSwin(upscale=upscale, dct=dct).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(images)
        return counter.get_total_flops() / 2e9

    assert giga(dct=False) == pytest.approx(published, abs=0.05)  # the transform was left out of the published count
    assert published < giga(dct=True) < 1.1 * published


def test_eval_is_deterministic_and_training_drops_paths_per_sample() -> None:
    net = tiny(awake=True, drop_path_rate=0.5)
    images = torch.rand(1, 9, 16, 16).repeat(8, 1, 1, 1)
    assert torch.equal(net(images), net(images))
    net.train()
    torch.manual_seed(1)
    first = net(images)
    assert not torch.allclose(first, net(images), atol=1e-4)
    assert not torch.allclose(first[:1], first[1:], atol=1e-4)
    torch.manual_seed(1)
    assert torch.equal(net(images), first)
    without = tiny(awake=True, drop_path_rate=0.0).train()
    torch.testing.assert_close(without(images), without.eval()(images))


def test_drop_path_keeps_the_expected_value() -> None:
    drop = layer(shift=0).drop_path
    drop.drop_prob = 0.25
    torch.manual_seed(0)
    kept = drop.train()(torch.ones(4000, 1, 1, 1))
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / 0.75]))
    assert abs(kept.mean() - 1) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("content", ["flat", "black", "white", "random"])
def test_half_precision_autocast_stays_finite_and_near_float32(dtype, content) -> None:
    net = tiny(awake=True)
    level = {"flat": 0.5, "black": 0.0, "white": 1.0}.get(content)
    images = torch.rand(1, 9, 32, 32) if level is None else torch.full((1, 9, 32, 32), level)
    mean = MeanFusion(3)(images)
    expected = net(images) - mean
    with torch.autocast("cpu", dtype=dtype):
        fused = net(images)
    assert fused.isfinite().all()
    error = (fused.float() - mean - expected).abs().max()
    assert error < (0.1 if dtype == torch.bfloat16 else 0.02) * max(expected.abs().max(), 0.1)


def test_double_and_float_agree() -> None:
    net = tiny(awake=True)
    images = torch.rand(1, 9, 18, 20)
    expected = net(images)
    doubled = net.double()(images.double())
    assert doubled.dtype == torch.float64
    torch.testing.assert_close(doubled.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dct", [True, False])
def test_the_inner_part_does_not_depend_on_the_size_of_the_image(dct) -> None:
    net = tiny(awake=True, dct=dct)
    large = torch.rand(1, 9, 128, 112)
    small = large[..., :96, :80]
    torch.testing.assert_close(net(small)[..., :52, :36], net(large)[..., :52, :36], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dct", [True, False])
def test_an_image_gives_the_same_alone_and_in_a_batch(dct) -> None:
    net = tiny(awake=True, dct=dct)
    images = torch.rand(3, 9, 32, 48)
    one_by_one = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dct", [True, False])
def test_channels_last_and_a_whole_graph_give_the_same(dct) -> None:
    net = tiny(awake=True, dct=dct)
    images = torch.rand(1, 9, 33, 40)
    expected = net(images)
    torch.testing.assert_close(
        net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last)), expected
    )
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)


def test_input_is_not_changed() -> None:
    images = torch.rand(1, 9, 16, 16)
    before = images.clone()
    tiny(awake=True)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("dct", [True, False])
def test_training_goes_on_after_validation_under_inference_mode(dct) -> None:
    net = tiny(awake=True, dct=dct)
    images = torch.rand(1, 9, 48, 80)
    with torch.inference_mode():
        net(images)
    net.train()(images).mean().backward()


def test_taps_are_maps_at_lq_size() -> None:
    net = tiny(depths=(2, 1), num_heads=(2, 3))
    assert net.feature_names == ("conv_first", "layers.0", "layers.1", "conv_after_body")
    _, feats = tapped(net, net.feature_names, torch.rand(2, 9, 16, 32))
    assert {tuple(feat.shape) for feat in feats.values()} == {(2, 12, 8, 16)}


def test_every_second_layer_is_shifted_by_half_a_window() -> None:
    net = tiny(depths=(4, 3), num_heads=(2, 2), window_size=6)
    assert [[swin.shift for swin in group.blocks] for group in net.layers] == [[0, 3, 0, 3], [0, 3, 0]]


def test_groups_and_body_have_their_residual() -> None:
    net = tiny()
    for conv in (net.layers[0].conv, net.conv_after_body):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    names = ["conv_first", "patch_norm", "layers.0", "conv_before_upsample"]
    _, feats = tapped(net, names, torch.rand(1, 9, 32, 32))
    assert torch.equal(feats["layers.0"], feats["patch_norm"])
    torch.testing.assert_close(feats["conv_before_upsample"], net.conv_before_upsample(feats["conv_first"]))


def test_a_wrong_number_of_channels_names_num_teachers() -> None:
    with pytest.raises(MtkdError, match="num_teachers=3 takes 9 channels .* got 6"):
        tiny()(torch.rand(1, 6, 16, 16))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"upscale": 5}, "upscale"),
        ({"num_teachers": 0}, "num_teachers"),
        ({"num_heads": (2, 2)}, "equally long"),
        ({"num_heads": (5,)}, "divisible"),
        ({"window_size": 1}, "window_size"),
        ({"upsampler": "nearest+conv"}, "nearest"),
        ({"resi_connection": "2conv"}, "2conv"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(options, named) -> None:
    with pytest.raises(MtkdError, match=named):
        tiny(**options)


# The transform


def test_window_dct_is_scipys_orthonormal_dct() -> None:
    pixels = torch.randn(5, 64, 3)
    coefficients = WindowDCT(8)(pixels)
    image = rearrange(pixels, "b (i j) c -> b i j c", i=8).double().numpy()
    expected = torch.from_numpy(fft.dctn(image, type=2, norm="ortho", axes=(1, 2))).float()
    torch.testing.assert_close(coefficients, rearrange(expected, "b u v c -> b (u v) c"), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("size", [4, 7, 8])
def test_dct_matrix_is_orthonormal_and_inverted_by_its_transpose(size) -> None:
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-14)
    transform = WindowDCT(size)
    pixels = torch.randn(2, size * size, 3)
    torch.testing.assert_close(transform.inverse(transform(pixels)), pixels, rtol=0, atol=5e-6)
    torch.testing.assert_close(transform(pixels).square().sum(), pixels.square().sum())


def test_a_flat_window_is_one_coefficient_of_eight_times_its_value() -> None:
    coefficients = WindowDCT(8)(torch.full((1, 64, 1), 3.0))[0, :, 0]
    assert coefficients[0] == pytest.approx(24.0)
    assert coefficients[1:].abs().max() < 1e-5


def test_the_transform_follows_dtype_and_ignores_autocast() -> None:
    transform = WindowDCT(8)
    pixels = torch.randn(2, 64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform(pixels), transform(pixels.float()))
        assert transform(pixels.bfloat16()).dtype == torch.float32
    assert transform.double()(pixels.double()).dtype == torch.float64
    assert transform.bfloat16()(pixels.bfloat16()).dtype == torch.bfloat16


# One layer


class KeepFlat(nn.Module):
    """In place of attention: zero every frequency but the first."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :1], torch.zeros_like(tokens[:, 1:])], dim=1)


@pytest.mark.parametrize("shift", [0, 4])
def test_attention_that_changes_nothing_gives_the_map_back(shift) -> None:
    swin = layer(shift=shift)
    swin.attn = nn.Identity()
    x = torch.randn(2, 16, 24, 8)
    torch.testing.assert_close(swin._mix_frequencies(x, WindowDCT(8)), x, rtol=0, atol=5e-6)


def test_tokens_are_the_frequencies_of_windows_at_the_shift() -> None:
    x = torch.randn(1, 16, 24, 8)
    still, shifted = layer(shift=0), layer(shift=4)
    still.attn = shifted.attn = KeepFlat()
    means = repeat(F.avg_pool2d(x.permute(0, 3, 1, 2), 8), "n c h w -> n (h i) (w j) c", i=8, j=8)
    torch.testing.assert_close(still._mix_frequencies(x, WindowDCT(8)), means, rtol=1e-5, atol=1e-5)
    blurred = shifted._mix_frequencies(x, WindowDCT(8))
    inner = x[:, 4:12, 4:12].mean((1, 2), keepdim=True).expand(1, 8, 8, 8)
    torch.testing.assert_close(blurred[:, 4:12, 4:12], inner, rtol=1e-5, atol=1e-5)
    # A border window holds four columns and their mirror image, so its mean is theirs.
    border = x[:, 4:12, :4].mean((1, 2), keepdim=True).expand(1, 8, 4, 8)
    torch.testing.assert_close(blurred[:, 4:12, :4], border, rtol=1e-5, atol=1e-5)
    corner = x[:, -4:, -4:].mean((1, 2), keepdim=True).expand(1, 4, 4, 8)
    torch.testing.assert_close(blurred[:, -4:, -4:], corner, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(4, 4), (5, 3), (0, 0)])
def test_the_map_is_continued_by_its_mirror_image_edge_included(before, after) -> None:
    x = torch.randn(1, 8, 16, 2)
    pads = [(0, 0), (before, after), (before, after), (0, 0)]
    assert np.array_equal(_continue_mirrored(x, before, after), np.pad(x, pads, mode="symmetric"))


@pytest.mark.parametrize("dct", [True, False])
def test_opposite_borders_never_meet(dct) -> None:
    swin = layer(shift=4, dct=dct)
    x = torch.randn(1, 16, 24, 8)
    changed = x.clone()
    changed[:, :, -1] += torch.randn(8)
    changed[:, -1] += torch.randn(8)
    difference = (run(swin, changed) - run(swin, x)).abs()
    assert difference[:, :12, :20].max() < 1e-6
    assert difference[:, -4:, -4:].min() > 0


@pytest.mark.parametrize("dct", [True, False])
@pytest.mark.parametrize("shift", [0, 4])
def test_all_inner_windows_are_treated_alike(shift, dct) -> None:
    swin = layer(shift=shift, dct=dct)
    x = torch.randn(1, 32, 40, 8)
    moved = run(swin, x[:, 8:, 8:])
    torch.testing.assert_close(run(swin, x)[:, 12:28, 12:36], moved[:, 4:20, 4:28], rtol=1e-4, atol=1e-5)


def _reflect(array: np.ndarray, multiple: int) -> np.ndarray:
    pads = [(0, 0), (0, 0), *((0, -side % multiple) for side in array.shape[-2:])]
    # numpy repeats a side of one under "reflect", and reflects back and forth where a side is short.
    return np.pad(array, pads, mode="reflect")


def test_contrast_strengthens_what_teachers_disagree_on_and_keeps_the_start() -> None:
    images = torch.rand(1, 6, 12, 12)
    net = DCTSwin(upscale=2, num_teachers=2, embed_dim=8, depths=(2,), num_heads=(2,), num_feat=4, contrast=8.0).eval()
    mean = images.view(1, 2, 3, 12, 12).mean(dim=1)
    with torch.no_grad():
        torch.testing.assert_close(net(images), mean)
        seen: list[torch.Tensor] = []
        net.conv_first.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
        net(images)
    pixels = torch.nn.functional.pixel_shuffle(seen[0], 2)[..., :12, :12].reshape(1, 2, 3, 12, 12)
    torch.testing.assert_close(pixels - mean[:, None], 8 * (images.view(1, 2, 3, 12, 12) - mean[:, None]))
