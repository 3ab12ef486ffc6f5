"""The wavelet loss against PyWavelets."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import pywt
import torch
from pytorch_wavelets import DWTForward
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.wavelet import WaveletLoss, wavelet_bands

wavelets = pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4"])
levels_1_to_4 = pytest.mark.parametrize("levels", [1, 2, 3, 4])
sizes = pytest.mark.parametrize(
    "shape", [(1, 3, 32, 32), (3, 3, 32, 48), (3, 3, 29, 32), (1, 3, 32, 27), (3, 1, 37, 23)], ids=str
)


# A size at which PyWavelets finds a level too high is one more case, not a mistake.
pytestmark = pytest.mark.filterwarnings("ignore:Level value of")


def _pair(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    sr, target = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return sr, target


def _by_pytorch_wavelets(sr: Tensor, target: Tensor, wavelet: str, levels: int) -> Tensor:
    """The official loss's formula, transforming both images, over the whole batch."""
    dwt = DWTForward(J=levels, wave=wavelet, mode="zero").to(sr.dtype)
    (sr_low, sr_high), (target_low, target_high) = dwt(sr), dwt(target)
    value = (sr_low - target_low).abs().mean()
    for a, b in zip(sr_high, target_high, strict=True):
        value = value + (a - b).abs().mean()
    return value


@sizes
@levels_1_to_4
@wavelets
def test_bands_are_those_of_pywavelets(wavelet: str, levels: int, shape: tuple[int, ...]) -> None:
    x, _ = _pair(shape)
    low, *highs = pywt.wavedec2(x.numpy(), wavelet, mode="zero", level=levels)
    bands = wavelet_bands(x, wavelet=wavelet, levels=levels)
    np.testing.assert_allclose(bands.ll, low, rtol=1e-6, atol=2e-6)
    for ours, theirs in zip(bands.details, reversed(highs), strict=True):
        for name, band in zip(("lh", "hl", "hh"), theirs, strict=True):
            np.testing.assert_allclose(getattr(ours, name), band, rtol=1e-6, atol=2e-6, err_msg=name)


def test_detail_bands_of_four_levels_are_wavelet_knowledge_distillation() -> None:
    """The loss of WKD's README, through the transform that it uses."""
    sr, target = _pair((2, 3, 48, 52))
    transform = DWTForward(J=4, mode="zero", wave="haar").to(sr.dtype)
    (_, student), (_, teacher) = transform(sr), transform(target)
    expected = sum((t - s).abs().mean() for s, t in zip(student, teacher, strict=True))
    value = WaveletLoss(levels=4, band_weights={"ll": 0})(sr, target)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


@sizes
@levels_1_to_4
@wavelets
def test_value_is_that_of_pywavelets(wavelet: str, levels: int, shape: tuple[int, ...]) -> None:
    sr, target = _pair(shape)
    low, *highs = pywt.wavedec2((sr - target).numpy(), wavelet, mode="zero", level=levels)
    expected = np.abs(low).mean() + sum(np.abs(np.stack(high)).mean() for high in highs)
    assert WaveletLoss(wavelet=wavelet, levels=levels)(sr, target).item() == pytest.approx(expected, rel=1e-6)


@sizes
@levels_1_to_4
@wavelets
def test_value_and_gradient_are_those_of_pytorch_wavelets(wavelet: str, levels: int, shape: tuple[int, ...]) -> None:
    sr, target = _pair(shape)
    sr.requires_grad_()
    value, expected = (
        WaveletLoss(wavelet=wavelet, levels=levels)(sr, target),
        _by_pytorch_wavelets(sr, target, wavelet, levels),
    )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(v, sr)[0] for v in (value, expected)), rtol=1e-6, atol=1e-9)


@sizes
@levels_1_to_4
@pytest.mark.parametrize("criterion", ["l1", "charbonnier", "mse"])
def test_the_fast_haar_path_equals_the_general_one(criterion: str, levels: int, shape: tuple[int, ...]) -> None:
    sr, target = _pair(shape, torch.float32)
    sr.requires_grad_()
    options = {"levels": levels, "criterion": criterion, "band_weights": {"ll": 0.3, "lh": 2.0, "hl": 0.5}}
    fast, general = WaveletLoss(wavelet="haar", **options), WaveletLoss(wavelet="haar", **options)
    general.wavelet = "bior1.1"  # Haar under a name that takes the general path
    values = [loss(sr, target) for loss in (fast, general)]
    torch.testing.assert_close(*values, rtol=2e-6, atol=0)
    # Where a band of the difference is zero up to rounding the sign is noise; random images have no such band.
    torch.testing.assert_close(*(torch.autograd.grad(v, sr)[0] for v in values), rtol=1e-4, atol=1e-8)


def test_db1_is_haar() -> None:
    sr, target = _pair((2, 3, 16, 16))
    assert WaveletLoss(wavelet="db1")(sr, target) == WaveletLoss(wavelet="haar")(sr, target)


@pytest.mark.parametrize("criterion", ["l1", "charbonnier", "mse"])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_criterion_and_band_weights_follow_their_formula(wavelet: str, criterion: str) -> None:
    sr, target = _pair((2, 3, 21, 16))
    rho = {
        "l1": np.abs,
        "charbonnier": lambda x: np.sqrt(x**2 + 0.05**2) - 0.05,
        "mse": np.square,
    }[criterion]
    weights = {"ll": 0.5, "lh": 2.0, "hh": 0.0}
    (low, (lh1, hl1, hh1)) = pywt.dwt2((sr - target).numpy(), wavelet, mode="zero")
    low2, (lh2, hl2, hh2) = pywt.dwt2(low, wavelet, mode="zero")
    expected = 0.5 * rho(low2).mean() + sum(
        (2.0 * rho(lh).mean() + rho(hl).mean()) / 3 for lh, hl in ((lh1, hl1), (lh2, hl2))
    )
    loss = WaveletLoss(wavelet=wavelet, levels=2, criterion=criterion, eps=0.05, band_weights=weights)
    assert loss(sr, target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("criterion", ["l1", "charbonnier", "mse"])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_every_criterion_is_zero_with_zero_gradient_at_equality(wavelet: str, criterion: str) -> None:
    sr, _ = _pair((2, 3, 15, 16), torch.float32)
    target = sr.clone()
    value = WaveletLoss(wavelet=wavelet, criterion=criterion, levels=2)(sr.requires_grad_(), target)
    value.backward()
    assert value.item() == 0
    assert sr.grad is not None
    assert not sr.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["l1", "charbonnier", "mse"])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_gradient_agrees_with_finite_differences_on_odd_sizes(wavelet: str, criterion: str) -> None:
    sr, target = _pair((1, 2, 7, 9))
    loss = WaveletLoss(wavelet=wavelet, criterion=criterion, levels=2)
    assert torch.autograd.gradcheck(loss, (sr.requires_grad_(), target.requires_grad_()))


@pytest.mark.parametrize("sample", range(4))
@pytest.mark.parametrize("levels", [1, 4])
def test_the_low_pass_band_supervises_every_sample(levels: int, sample: int) -> None:
    sr, _ = _pair((4, 3, 32, 32))
    shifted = sr.clone()
    shifted[sample] += 1.0
    # A constant shift lives in LL alone, where the orthonormal gain is 2 per level, in one of four samples.
    assert WaveletLoss(levels=levels)(shifted, sr).item() == pytest.approx(2**levels / 4)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_the_transform_stays_in_float32_under_autocast(wavelet: str) -> None:
    sr, target = _pair((1, 3, 16, 16), torch.float32)
    loss = WaveletLoss(wavelet=wavelet, levels=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(sr, target)
    torch.testing.assert_close(value, loss(sr, target), rtol=1e-6, atol=0)


def test_details_alone_ignore_a_shift_of_brightness() -> None:
    sr, _ = _pair((2, 3, 16, 16))
    assert WaveletLoss(band_weights={"ll": 0})(sr + 0.25, sr).item() == pytest.approx(0, abs=1e-15)


def test_haar_is_orthonormal() -> None:
    x, _ = _pair((2, 3, 32, 16))
    bands = wavelet_bands(x, levels=3)
    energy = bands.ll.square().sum() + sum(band.square().sum() for level in bands.details for band in level)
    assert energy.item() == pytest.approx(x.square().sum().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"wavelet": "haarr"}, "haarr"),
        ({"wavelet": "mexh"}, "mexh"),
        ({"levels": 0}, "levels: 0"),
        ({"criterion": "l2"}, "l2"),
        ({"eps": 0.0}, "eps"),
        ({"band_weights": {"xx": 1.0}}, "xx"),
        ({"band_weights": {"lh": -1.0}}, "lh"),
        ({"band_weights": {"ll": 0, "lh": 0, "hl": 0, "hh": 0}}, "nothing"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(options: dict, words: str) -> None:
    with pytest.raises(MtkdError, match=words):
        WaveletLoss(**options)


def test_without_pytorch_wavelets_haar_works_and_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_wavelets", None)
    sr, target = _pair((1, 3, 8, 8))
    assert WaveletLoss(levels=2)(sr, target) > 0
    with pytest.raises(MtkdError, match="setuptools<81"):
        WaveletLoss(wavelet="coif3")(sr, target)


@pytest.mark.parametrize("criterion", ["l1", "charbonnier", "mse"])
@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (1, 2, 13, 7)], ids=str)
def test_what_a_compiler_sees_gives_the_same_value_and_gradient(criterion: str, shape: tuple[int, ...]) -> None:
    sr, target = _pair(shape)
    loss = WaveletLoss(criterion=criterion, levels=3, band_weights={"lh": 2.0, "hh": 0.0})
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=False)
    values = [f(sr.requires_grad_(), target) for f in (loss, compiled)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, sr)[0] for value in values))


def test_haar_scales_its_gradient_keeps_it_for_a_second_backward_and_gives_the_value_alone_without() -> None:
    sr, target = _pair((2, 3, 9, 8))
    sr.requires_grad_()
    loss = WaveletLoss(levels=2)
    value = loss(sr, target)
    once = torch.autograd.grad(value, sr, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(-3 * value, sr)[0], -3 * once)
    with torch.no_grad():
        assert loss(sr, target) == value
    assert loss(sr.detach(), target).grad_fn is None
