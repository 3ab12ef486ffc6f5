"""How long the wavelet loss takes with its gradient, beside one built on pytorch-wavelets and beside a plain copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pytorch_wavelets import DWTForward
from torch import Tensor

from measures.timing import Aim, Effort, Section, ratios, side_by_side, spread
from mtkd.losses.wavelet import WaveletLoss

BASE, OURS, COMPILED, COPY = "pytorch-wavelets", "mtkd", "mtkd, compiled", "copy"
TRAINING_SIZES = [(16, 3, 128, 128), (16, 3, 192, 192)]
LARGE = (64, 3, 768, 768)
"""Three of these fill no cache: what bounds the loss is the memory's speed, and no longer the launching of kernels."""
SIZES = {"cpu": TRAINING_SIZES, "cuda": [*TRAINING_SIZES, LARGE]}
LEVELS = (1, 2, 3, 4)
AIM, FLOOR_AIM = 4.0, 2.0


def measure(device: str, effort: Effort) -> Iterator[Section]:
    quick = effort.quick
    rows, aims, slowest = [], [], float("inf")
    for shape in ((2, 3, 32, 32),) if quick else SIZES[device]:
        for levels in LEVELS if effort.full else LEVELS[:2]:
            cases = variants(shape, levels, device, compiling=device == "cuda" and effort.full)
            times = side_by_side(
                cases, device, rounds=effort.rounds(15), seconds=effort.seconds(0.2), warm_up=2 if quick else 5
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
            if shape == LARGE:
                about = f"wavelet loss with gradient, {levels} level{'s' if levels > 1 else ''}, large images"
                floor = spread([own / (1.5 * copy) for own, copy in zip(times[OURS], times[COPY], strict=True)])
                aims.append(
                    Aim(f"{about}: time / time of moving the bytes", FLOOR_AIM, floor["median"], at_least=False)
                )
    yield Section(
        title="Wavelet loss, value and gradient",
        setting=(
            "Haar, l1 on every band, float32, gradient for one of the two images. pytorch-wavelets: DWTForward (zero "
            "padding) of both images, then means of absolute differences, as the loss of the published code but on "
            "the whole batch. The memory's speed: at least two images must be read and one gradient written, which is "
            "one and a half times what copying one image into another moves; the share is that copy's time, measured "
            "in the same rounds, times 1.5, over the row's."
        ),
        rows=rows,
        aims=[Aim(f"wavelet loss with gradient, slowest size and level: {BASE} / mtkd", AIM, slowest), *aims],
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
