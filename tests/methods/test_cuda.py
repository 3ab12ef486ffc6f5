"""Every method on CUDA beside the CPU: the same losses and gradients in fp32, sane ones in bf16 on both."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkd import catalog
from mtkd.methods.base import Method
from tests.methods.setups import batch, build

METHODS = list(catalog.METHODS)


@pytest.fixture(autouse=True)
def comparable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products in fp32, not TF32, algorithms that do not change between calls, and the same draws on both devices."""
    real = torch.rand

    def drawn_on_the_cpu(*size: Any, device: Any = None, generator: Any = None, **options: Any) -> Tensor:
        return real(*size, **options).to(device or "cpu")

    def noise_drawn_on_the_cpu(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype).to(like.device)

    monkeypatch.setattr(torch, "rand", drawn_on_the_cpu)
    monkeypatch.setattr(torch, "randn_like", noise_drawn_on_the_cpu)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        # Not monkeypatch, which removes what it set: this attribute is a property of torch's.
        kept, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        yield
        torch.backends.cuda.matmul.allow_tf32 = kept


def step(method: Method, device: str, dtype: torch.dtype | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of the first step, without dropped paths, which are drawn on the device."""
    method = copy.deepcopy(method).eval().to(device)
    torch.manual_seed(5)
    (weight,) = {p.dtype for p in method.parameters()}
    given = type(batch())(*(None if part is None else part.to(device) for part in batch(dtype=weight)))
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        out = method(given, 0)
        terms = {**out.losses, **out.critic}
        total = sum(terms.values())
    total.backward()  # pyright: ignore[reportAttributeAccessIssue]
    gradients = {name: p.grad.double().cpu() for name, p in method.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in terms.items()}, gradients


def norm(gradients: dict[str, Tensor]) -> float:
    return torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_a_step_in_fp32_is_that_of_the_cpu(name: str) -> None:
    method = build(name)
    exact = step(copy.deepcopy(method).double(), "cpu")
    here, there = step(method, "cpu"), step(method, "cuda")
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    assert there[1].keys() == here[1].keys()
    error, rounding = (norm({key: found[1][key] - value for key, value in exact[1].items()}) for found in (there, here))
    # Where fp32 itself is off by more, as in CSD's ratio of distances, no device can be asked for better.
    assert error <= max(1e-4 * norm(exact[1]), 3 * rounding)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_in_bf16_is_finite_and_near(name: str, device: str) -> None:
    method = build(name)
    exact, rounded = step(method, device), step(method, device, torch.bfloat16)
    assert all(torch.isfinite(gradient).all() for gradient in rounded[1].values())
    assert rounded[0] == pytest.approx(exact[0], rel=0.1, abs=0.02)
    inner = sum((exact[1][key] * value).sum().item() for key, value in rounded[1].items())
    # bf16 keeps 8 bits; the direction of the gradient survives, its last digits do not.
    assert inner / (norm(exact[1]) * norm(rounded[1])) > 0.9


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_steps_train_on_cuda(name: str) -> None:
    """Three steps with optimizers, through everything that is drawn on the device."""
    method = build(name).cuda()
    optimizers = [torch.optim.Adam(list(group), lr=1e-3) for group in method.param_groups().values()]
    given = type(batch())(*(None if part is None else part.cuda() for part in batch()))
    for number in range(3):
        out = method(given, number)
        (sum(out.losses.values()) + sum(out.critic.values())).backward()  # pyright: ignore[reportAttributeAccessIssue]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.isfinite(p).all() for p in method.parameters())
