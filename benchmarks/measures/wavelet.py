"""How long the wavelet loss takes with its gradient, beside one built on pytorch-wavelets and beside a plain copy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_wavelets import DWTForward
from torch import Tensor

from measures.timing import Aim, Section, ratios, side_by_side, spread
from mtkd.losses.wavelet import WaveletLoss

BASE, OURS, COMPILED, COPY = "pytorch-wavelets", "mtkd", "mtkd, compiled", "copy"
SIZES = ((16, 3, 128, 128), (16, 3, 192, 192))
LEVELS = (1, 2, 3, 4)
AIM = 4.0


def measure(device: str, quick: bool) -> Section:
    rows, slowest = [], float("inf")
    for shape in ((2, 3, 32, 32),) if quick else SIZES:
        for levels in LEVELS[:2] if quick else LEVELS:
            cases = variants(shape, levels, device, compiling=device == "cuda" and not quick)
            times = side_by_side(
                cases, device, rounds=2 if quick else 15, seconds=0.02 if quick else 0.2, warm_up=2 if quick else 5
            )
            moved = spread(times[COPY])["median"]
            for name in cases:
                if name == COPY:
                    continue
                ratio, seconds = spread(ratios(times, BASE, name)), spread(times[name])
                rows.append(
                    {
                        "images": "x".join(map(str, shape)),
                        "levels": levels,
                        "case": name,
                        "ms": seconds["median"] * 1e3,
                        "ms, low": seconds["low"] * 1e3,
                        "ms, high": seconds["high"] * 1e3,
                        "times as fast": ratio["median"],
                        "low": ratio["low"],
                        "high": ratio["high"],
                        "share of the memory's speed": 1.5 * moved / seconds["median"],
                    }
                )
            slowest = min(slowest, spread(ratios(times, BASE, OURS))["median"])
    return Section(
        title="Wavelet loss, value and gradient",
        setting=(
            "Haar, l1 on every band, float32, gradient for one of the two images. pytorch-wavelets: DWTForward (zero "
            "padding) of both images, then means of absolute differences, as the loss of the published code but on "
            "the whole batch. The memory's speed: at least two images must be read and one gradient written, which is "
            "one and a half times what copying one image into another moves; the share is that copy's time, measured "
            "in the same rounds, times 1.5, over the row's."
        ),
        rows=rows,
        aims=[Aim(f"wavelet loss with gradient, slowest size and level: {BASE} / mtkd", AIM, slowest)],
        notes=["A share above 1 is possible where the images fit a cache."],
    )


def variants(shape: tuple[int, ...], levels: int, device: str, *, compiling: bool) -> dict[str, Callable[[], object]]:
    """The rows of one size and number of levels, ready to be called, and a copy of one image batch."""
    sr, target, room = torch.rand(3, *shape, device=device)
    sr.requires_grad_()
    transform = DWTForward(J=levels, wave="haar", mode="zero").to(device)
    loss = WaveletLoss(wavelet="haar", levels=levels)

    def base() -> Tensor:
        (low, highs), (target_low, target_highs) = transform(sr), transform(target)
        value = (low - target_low).abs().mean()
        for high, target_high in zip(highs, target_highs, strict=True):
            value = value + (high - target_high).abs().mean()
        return gradient(value)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, sr)[0]

    torch.testing.assert_close(gradient(loss(sr, target)), base(), rtol=1e-4, atol=1e-7)
    cases: dict[str, Callable[[], object]] = {BASE: base, OURS: lambda: gradient(loss(sr, target))}
    if compiling:
        compiled = torch.compile(loss, dynamic=False)
        cases[COMPILED] = lambda: gradient(compiled(sr, target))
    cases[COPY] = lambda: room.copy_(target)
    return cases
