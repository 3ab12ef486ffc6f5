"""Wavelet loss of MTKD (Jiang et al., ECCV 2024, arXiv 2404.09571) and the transform behind it.

Bands are named as in `haar`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache, reduce
from operator import add
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.losses.difference import cached_tensor, check_comparable, check_nchw, difference
from mtkd.losses.haar import butterflies, even_sided, haar, transposed_butterflies

Criterion = Literal["l1", "charbonnier", "mse"]

KNEE = 0.02


class Details(NamedTuple):
    """Detail bands of one level, each (N, C, h, w)."""

    lh: Tensor
    hl: Tensor
    hh: Tensor


class WaveletBands(NamedTuple):
    """A decomposition: the last low-pass band, and the detail bands of every level, finest first."""

    ll: Tensor
    details: tuple[Details, ...]


class WaveletLoss(nn.Module):
    """Distance of two images in the sub-bands of a discrete wavelet transform.

    With d = sr - target, K levels and orthonormal filters on a zero-padded image:

        value = sum_{k=1..K} mean rho(details_k of d) + mean rho(LL_K of d)

    The three detail bands of a level share one mean. The form is that of the authors' code with rho = absolute value;
    K = 1 is the paper's choice, 4 the code's default. Deviation from that code: it compares LL on one sample of the
    batch only (the batch is indexed with the level number), here the whole batch is supervised.

    `criterion` is rho:

    - "l1": |x|.
    - "charbonnier": sqrt(x^2 + eps^2) - eps, quadratic below eps and |x| - eps far above it. It is 0 at equality. Here
      `eps` has the unit of the coefficients (in `CharbonnierLoss`, which follows BasicSR, it is the square of that).
    - "mse": x^2.

    An l1 on detail coefficients pulls those the student cannot predict yet to their median, zero, which hurts from
    random initialisation; the criteria that are quadratic near zero pull them to their mean.

    Haar takes a fast path that needs neither pytorch-wavelets nor convolutions and gives the same numbers.

    Args:
        wavelet: name of any discrete wavelet of PyWavelets: "haar", "db2", "sym4", "bior2.2", ...
        levels: number of levels K >= 1.
        criterion: "l1", "charbonnier" or "mse".
        eps: knee of "charbonnier", > 0.
        band_weights: weight of "ll", "lh", "hl", "hh"; a band that is not named keeps 1. {"ll": 0} leaves the details
            alone.

    Example:
        >>> dark, light = torch.full((1, 3, 4, 4), 0.25), torch.full((1, 3, 4, 4), 0.5)
        >>> WaveletLoss()(light, dark)  # a constant difference is all in LL, twice as large at one orthonormal level
        tensor(0.5000)
        >>> WaveletLoss(band_weights={"ll": 0})(light, dark)
        tensor(0.)
    """

    def __init__(
        self,
        *,
        wavelet: str = "haar",
        levels: int = 1,
        criterion: Criterion = "l1",
        eps: float = KNEE,
        band_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if criterion not in get_args(Criterion):
            raise MtkdError(f"WaveletLoss has the criteria {', '.join(get_args(Criterion))}, got {criterion!r}.")
        if not eps > 0:
            raise MtkdError(f"WaveletLoss needs eps > 0, got {eps}; for eps = 0 use `criterion: l1`.")
        weights = {"ll": 1.0, "lh": 1.0, "hl": 1.0, "hh": 1.0}
        for band, weight in (band_weights or {}).items():
            if band not in weights:
                raise MtkdError(f"WaveletLoss weighs the bands ll, lh, hl and hh; band_weights names {band!r}.")
            if not weight >= 0:
                raise MtkdError(f"band_weights of WaveletLoss must be >= 0, and {band} is {weight}.")
            weights[band] = float(weight)
        if not any(weights.values()):
            raise MtkdError("All band_weights of WaveletLoss are 0, so that nothing would be compared.")
        _check_wavelet(wavelet, levels)
        self.wavelet = wavelet
        self.levels = levels
        self.criterion = criterion
        self.eps = eps
        self.band_weights = weights

    @staticmethod
    def ignores(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Of the arguments `given`, those that change nothing, and why."""
        criterion = given.get("criterion", "l1")
        if criterion != "charbonnier" and given.get("eps", KNEE) != KNEE:
            yield "eps", f"has no effect: it is the knee of `criterion: charbonnier`, and the criterion is {criterion}."

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Scalar >= 0 for two (N, C, H, W) tensors of one shape, any H and W; float32 even under autocast.

        Raises:
            MtkdError: the shapes differ, or pytorch-wavelets is needed and cannot be imported.
        """
        if self.levels == 1 and _is_haar(self.wavelet) and _for_kernel(sr, target):
            check_comparable(sr, target)
            return _HaarKernel.apply(check_nchw(sr, "WaveletLoss"), target, self)
        d = check_nchw(difference(sr, target), "WaveletLoss")
        ll = (self.band_weights["ll"],)
        details = tuple(self.band_weights[band] / 3 for band in Details._fields)
        terms = []
        if _is_haar(self.wavelet) and not torch.compiler.is_compiling():
            return _HaarLoss.apply(d, self)
        if _is_haar(self.wavelet):
            for level in range(1, self.levels):
                low, high = haar(d).split([1, 3])
                terms.append(self._penalty(high, details, gain=2**level))
                d = low[0]
            terms.append(self._penalty(haar(d), ll + details, gain=2**self.levels))
        else:
            with torch.autocast(d.device.type, enabled=False):
                low, highs = _transform(self.wavelet, self.levels, d.dtype, d.device)(d)
            terms.append(self._penalty(low[None], ll))
            terms += [self._penalty(high.movedim(2, 0), details) for high in highs]
        return reduce(add, terms)

    def _penalty(self, bands: Tensor, weights: tuple[float, ...], gain: float = 1.0) -> Tensor:
        """Weighted sum over the first axis of mean rho(bands / gain).

        The gain is divided out of a handful of means rather than of every coefficient: rho_eps(x / g) is
        rho_{g eps}(x) / g for l1 and charbonnier.
        """
        if self.criterion == "l1":
            values = bands.abs()
        elif self.criterion == "charbonnier":
            eps = gain * self.eps
            values = (bands.square() + eps**2).sqrt() - eps
        else:
            values = bands.square()
        return (values.mean(dim=(1, 2, 3, 4)) * self._factors(bands, weights, gain)).sum()

    def _to_slope_(self, bands: Tensor, weights: tuple[float, ...], gain: float) -> None:
        """Overwrite `bands` with the derivative of `_penalty` with respect to them."""
        if self.criterion == "l1":
            bands.sign_()
        elif self.criterion == "charbonnier":
            bands.div_((bands.square() + (gain * self.eps) ** 2).sqrt_())
        else:
            bands.mul_(2)
        count = bands[0].numel()
        bands.mul_(self._factors(bands, tuple(weight / count for weight in weights), gain).view(-1, 1, 1, 1, 1))

    def _factors(self, bands: Tensor, weights: tuple[float, ...], gain: float) -> Tensor:
        gain = gain**2 if self.criterion == "mse" else gain
        return cached_tensor(tuple(weight / gain for weight in weights), bands.dtype, bands.device)


def wavelet_bands(x: Tensor, *, wavelet: str = "haar", levels: int = 1) -> WaveletBands:
    """Orthonormal wavelet transform of a zero-padded image, differentiable.

    Args:
        x: (N, C, H, W) floating point, any H and W.
        wavelet: name of any discrete wavelet of PyWavelets.
        levels: number of levels >= 1.

    Raises:
        MtkdError: the wavelet does not exist, or pytorch-wavelets is needed and cannot be imported.

    Example:
        >>> ll, (first, second) = wavelet_bands(torch.rand(1, 3, 8, 12), levels=2)
        >>> ll.shape, first.hh.shape, second.hh.shape
        (torch.Size([1, 3, 2, 3]), torch.Size([1, 3, 4, 6]), torch.Size([1, 3, 2, 3]))
    """
    _check_wavelet(wavelet, levels)
    x = check_nchw(x, "wavelet_bands")
    details = []
    if not _is_haar(wavelet):
        ll, highs = _transform(wavelet, levels, x.dtype, x.device)(x)
        return WaveletBands(ll, tuple(Details(*high.unbind(2)) for high in highs))
    for _ in range(levels):
        x, *high = (haar(x) / 2).unbind(0)
        details.append(Details(*high))
    return WaveletBands(x, tuple(details))


class _HaarLoss(torch.autograd.Function):
    """`WaveletLoss` on Haar bands of a difference.

    A Function because the gradient follows from the bands while they are there: the way back is one more transform,
    and nothing but the gradient itself is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, d: Tensor, loss: WaveletLoss) -> Tensor:
        ll = (loss.band_weights["ll"],)
        details = tuple(loss.band_weights[band] / 3 for band in Details._fields)
        sizes, levels, terms = [], [], []
        low = d
        for level in range(1, loss.levels + 1):
            sizes.append(low.shape[-2:])
            bands = butterflies(even_sided(low))
            low = bands[0]
            compared, weights = (bands, ll + details) if level == loss.levels else (bands[1:], details)
            terms.append(loss._penalty(compared, weights, gain=2**level))
            if ctx.needs_input_grad[0]:
                loss._to_slope_(compared, weights, gain=2**level)
                levels.append(bands)
        if ctx.needs_input_grad[0]:
            grad = levels[-1][0]
            for (height, width), bands in zip(reversed(sizes), reversed(levels), strict=True):
                bands[0] = grad
                grad = transposed_butterflies(bands)[..., :height, :width]
            ctx.save_for_backward(grad)
        return reduce(add, terms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = ctx.saved_tensors
        return factor * grad, None


class _HaarKernel(torch.autograd.Function):
    """`WaveletLoss` of one Haar level on CUDA."""

    @staticmethod
    def forward(ctx: Any, sr: Tensor, target: Tensor, loss: WaveletLoss) -> Tensor:
        from mtkd.losses.haar_kernel import value_and_gradient

        ll, *details = (loss.band_weights[band] for band in ("ll", *Details._fields))
        value, grad = value_and_gradient(
            sr,
            target,
            criterion=loss.criterion,
            eps=loss.eps,
            weights=(ll, details[0] / 3, details[1] / 3, details[2] / 3),
            gradient=ctx.needs_input_grad[0],
        )
        if grad is not None:
            ctx.save_for_backward(grad)
            ctx.dtype = sr.dtype
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = ctx.saved_tensors
        return (factor * grad).to(ctx.dtype), None, None


def _for_kernel(sr: Tensor, target: Tensor) -> bool:
    """Whether the Triton kernel serves these tensors: both on one CUDA device, at most float32, no gradient for target,
    and no tracer is active.
    """
    return (
        sr.device.type in _KERNEL_DEVICES
        and sr.device == target.device
        and sr.dtype != torch.float64 != target.dtype
        and not target.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _has_triton()
    )


_KERNEL_DEVICES = {"cuda"}


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    # It comes with torch on Linux, and not everywhere else.
    return importlib.util.find_spec("triton") is not None


def _is_haar(wavelet: str) -> bool:
    return wavelet in ("haar", "db1")


def _check_wavelet(wavelet: str, levels: int) -> None:
    if levels < 1:
        raise MtkdError(f"A wavelet transform has 1 level or more, got levels: {levels}.")
    if _is_haar(wavelet):
        return
    import pywt

    if wavelet not in pywt.wavelist(kind="discrete"):  # pyright: ignore[reportAttributeAccessIssue]  compiled code
        raise MtkdError(
            f"No discrete wavelet is called {wavelet!r}. Common ones are haar, db2 to db38, sym2 to sym20, coif1 to "
            "coif17 and bior1.1 to bior6.8; `pywt.wavelist(kind='discrete')` lists all."
        )


@lru_cache(maxsize=16)
def _transform(wavelet: str, levels: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    try:
        from pytorch_wavelets import DWTForward
    except ImportError as error:
        raise MtkdError(
            f"The wavelet {wavelet!r} needs pytorch-wavelets, which cannot be imported ({error}). Install it together "
            "with a setuptools that still has pkg_resources: pip install pytorch-wavelets 'setuptools<81'. "
            "Haar works without it."
        ) from error
    with torch.inference_mode(False):
        return DWTForward(J=levels, wave=wavelet, mode="zero").to(device, dtype)
