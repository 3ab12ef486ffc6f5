"""What every loss of the catalog promises. A new catalog line is tested by itself; it only needs a witness below."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import pywt
import scipy.fft
import torch

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.losses import difference, frequency, wavelet

# Losses whose published form is not zero at equality -> its value there.
AT_EQUALITY = {"CharbonnierLoss": 1e-12**0.5}


def _images(*, dtype: torch.dtype = torch.float32, n: int = 3, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sr, target = torch.rand(2, n, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    return sr, target


def _haar_in_numpy(d: np.ndarray) -> float:
    ll, details = pywt.dwt2(d, "haar", mode="zero")
    return np.abs(ll).mean() + np.abs(np.stack(details)).mean()


def _blocks(d: np.ndarray) -> np.ndarray:
    n, c, h, w = d.shape
    return d.reshape(n, c, h // 8, 8, w // 8, 8).transpose(0, 1, 2, 4, 3, 5)


# The value of each loss with default arguments, from sr - target in float64, by somebody else's code.
WITNESS = {
    "L1Loss": lambda d: np.abs(d).mean(),
    "MSELoss": lambda d: np.square(d).mean(),
    "CharbonnierLoss": lambda d: np.sqrt(np.square(d) + 1e-12).mean(),
    "WaveletLoss": _haar_in_numpy,
    "DCTLoss": lambda d: np.abs(scipy.fft.dctn(_blocks(d), type=2, norm="ortho", axes=(-2, -1))).mean(),
    "FFTLoss": lambda d: np.abs(np.fft.fft2(d).view(np.float64)).mean(),
}

every_loss = pytest.mark.parametrize("name", catalog.names("loss"))


def _loss(name: str) -> torch.nn.Module:
    return catalog.get("loss", name)()


@every_loss
def test_value_agrees_with_a_foreign_implementation(name: str) -> None:
    sr, target = _images(dtype=torch.float64)
    assert _loss(name)(sr, target).item() == pytest.approx(WITNESS[name]((sr - target).numpy()), rel=1e-12)


@every_loss
def test_is_an_unweighted_scalar_with_a_gradient_for_sr(name: str) -> None:
    sr, target = _images()
    sr.requires_grad_()
    value = _loss(name)(sr, target)
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert sr.grad is not None
    assert sr.grad.isfinite().all()
    assert sr.grad.abs().sum() > 0


@every_loss
def test_is_zero_with_a_finite_gradient_where_the_images_are_equal(name: str) -> None:
    sr, elsewhere = _images(dtype=torch.float64)
    target = sr.clone()
    sr.requires_grad_()
    loss = _loss(name)
    value, usual = loss(sr, target), loss(sr, elsewhere)
    (grad,), (usual_grad,) = torch.autograd.grad(value, sr), torch.autograd.grad(usual, sr)
    assert value.item() == pytest.approx(AT_EQUALITY.get(name, 0.0), abs=1e-14 * usual.item())
    assert grad.isfinite().all()
    assert grad.abs().max() <= 1e-12 * usual_grad.abs().max()


@every_loss
def test_does_not_depend_on_the_order_of_the_batch(name: str) -> None:
    sr, target = _images(dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    loss = _loss(name)
    assert loss(sr[order], target[order]).item() == pytest.approx(loss(sr, target).item(), rel=1e-13)


@every_loss
def test_supervises_every_sample_of_the_batch_alike(name: str) -> None:
    sr, _ = _images(dtype=torch.float64)
    loss = _loss(name)
    nothing, everything = loss(sr, sr).item(), loss(sr + 0.1, sr).item()
    assert everything > nothing
    for sample in range(3):
        shifted = sr.clone()
        shifted[sample] += 0.1
        assert loss(shifted, sr).item() - nothing == pytest.approx((everything - nothing) / 3, rel=1e-9)


@every_loss
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    sr, target = _images(dtype=torch.float64, n=2, size=8)
    sr.requires_grad_()
    assert torch.autograd.gradcheck(_loss(name), (sr, target))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_float32_on_half_precision_outputs_under_autocast(name: str, dtype: torch.dtype) -> None:
    sr, target = _images()
    sr, target = sr.to(dtype), target.to(dtype)
    expected = _loss(name)(sr.double(), target.double())
    sr.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = _loss(name)(sr, target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert sr.grad is not None
    assert sr.grad.dtype == dtype
    assert sr.grad.isfinite().all()


@every_loss
def test_takes_channels_last_images_of_odd_size(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    sr, target = torch.rand(2, 2, 3, 13, 17, generator=generator, dtype=torch.float64)
    loss = _loss(name)
    last = [image.to(memory_format=torch.channels_last) for image in (sr, target)]
    assert loss(*last).item() == pytest.approx(loss(sr, target).item(), rel=1e-12)


@every_loss
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 1, 16, 16), (3, 3, 16, 8)])
def test_never_broadcasts_but_names_both_shapes(name: str, shape: tuple[int, ...]) -> None:
    sr, _ = _images()
    with pytest.raises(MtkdError, match=r"\(3, 3, 16, 16\)") as caught:
        _loss(name)(sr, torch.zeros(shape))
    assert str(shape) in str(caught.value)


@every_loss
def test_refuses_images_of_8_bits(name: str) -> None:
    sr, _ = _images()
    with pytest.raises(MtkdError, match="uint8"):
        _loss(name)(sr, torch.zeros(sr.shape, dtype=torch.uint8))


@every_loss
def test_trains_after_a_first_call_under_inference_mode(name: str) -> None:
    sr, target = _images()
    loss = _loss(name)
    for cached in (difference.cached_tensor, frequency._dct_matrix, wavelet._transform):
        cached.cache_clear()  # so that their constants are made under inference_mode
    with torch.inference_mode():
        expected = loss(sr, target).item()
    value = loss(sr.requires_grad_(), target)
    value.backward()
    assert value.item() == expected


@pytest.mark.slow
@every_loss
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiles_without_a_graph_break(name: str) -> None:
    sr, target = _images()
    sr.requires_grad_()
    loss = _loss(name)
    (expected,) = torch.autograd.grad(loss(sr, target), sr)
    (compiled,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(sr, target), sr)
    torch.testing.assert_close(compiled, expected)


@every_loss
def test_holds_no_state_to_save(name: str) -> None:
    loss = _loss(name)
    loss(*_images())
    assert not loss.state_dict()
    assert not list(loss.parameters())


# Each argument that is not a number with another value than its default; a number is doubled.
OTHER = {
    "reduction": "sum",
    "eps": 0.5,
    "block_size": 4,
    "norm": "ortho",
    "wavelet": "db2",
    "levels": 2,
    "criterion": "mse",
    "band_weights": {"ll": 0.0},
}


@every_loss
def test_an_argument_changes_the_value_or_is_said_to_do_nothing(name: str) -> None:
    cls = catalog.get("loss", name)
    sr, target = _images(dtype=torch.float64)
    for key, parameter in inspect.signature(cls).parameters.items():
        given = {key: OTHER[key] if key in OTHER else 2 * parameter.default}
        told = [told for told, _ in getattr(cls, "ignores", lambda _: ())(given)]
        assert (cls(**given)(sr, target) != cls()(sr, target)) == (key not in told), f"{key} of {name}"


def test_the_knee_counts_where_it_is_used() -> None:
    cls = catalog.get("loss", "WaveletLoss")
    assert not list(cls.ignores({"criterion": "charbonnier", "eps": 0.5}))
    assert not list(cls.ignores({"eps": 0.02}))
