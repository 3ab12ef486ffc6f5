"""The attention that works on a few windows at a time, against the same formula written with torch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtkd.archs import cpu_attention, windows

masks = pytest.mark.parametrize("masked", [True, False])


def attention(dim: int = 20, heads: int = 2, **options) -> windows.WindowAttention:
    torch.manual_seed(0)
    made = windows.WindowAttention(dim, 4, heads, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def by_formula(net: windows.WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = net.qkv(x).unflatten(-1, (3, net.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = net.logit_scale * q @ k.mT
    logits = logits + net.relative_position_bias_table[net.relative_position_index].permute(2, 0, 1)
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return net.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def some_windows(masked: bool, images: int = 3) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(images * 6, 16, 20, generator=torch.Generator().manual_seed(1))
    return x, windows.shifted_window_mask(8, 12, 4, 2) if masked else None


@masks
@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"qk_scale": 0.7}], ids=str)
@pytest.mark.parametrize("at_a_time", [1, 4, 5, 1000])
def test_value_and_gradients_are_those_of_the_formula(
    masked: bool, options: dict, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "LOGITS_AT_A_TIME", at_a_time * 2 * 16**2 / torch.get_num_threads())
    net, (x, mask) = attention(**options), some_windows(masked)
    x.requires_grad_()
    assert net._is_fused(x)
    wanted, y = by_formula(net, x, mask), net(x, mask)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(y)
    grads, wanted_grads = (torch.autograd.grad(out, [x, *net.parameters()], cotangent) for out in (y, wanted))
    for (name, _), grad, wanted_grad in zip([("x", x), *net.named_parameters()], grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=2e-5 * wanted_grad.abs().max().item(), msg=name)


@masks
def test_gradients_agree_with_finite_differences(masked: bool) -> None:
    net = attention(dim=6).double()
    x = torch.randn(6, 16, 6, dtype=torch.float64, requires_grad=True)
    mask = windows.shifted_window_mask(8, 12, 4, 2, dtype=torch.float64) if masked else None
    names = [name for name, _ in net.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x, mask))

    assert torch.autograd.gradcheck(run, (x, *net.parameters()), fast_mode=True)


@masks
def test_without_gradient_it_gives_the_same(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "LOGITS_AT_A_TIME", 4 * 2 * 16**2 / torch.get_num_threads())
    net, (x, mask) = attention(), some_windows(masked)
    expected = net(x, mask)
    with torch.no_grad():
        assert torch.equal(net(x, mask), expected)
    with torch.inference_mode():
        assert torch.equal(net(x, mask), expected)


def test_logits_of_any_size_stay_finite() -> None:
    net, (x, mask) = attention(), some_windows(True)
    x = (1e4 * x).requires_grad_()
    y = net(x, mask)
    assert y.isfinite().all()
    torch.testing.assert_close(y, by_formula(net, x, mask), rtol=1e-3, atol=1.0)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *net.parameters()))


@masks
def test_slices_and_expanded_gradients_are_taken_as_they_come(masked: bool) -> None:
    net, (x, mask) = attention(), some_windows(masked)
    strided = torch.stack((x, x), -1)[..., 0].requires_grad_()
    assert not strided.is_contiguous()
    grads = [
        torch.autograd.grad(out.sum(), [strided, *net.parameters()])
        for out in (net(strided, mask), by_formula(net, strided, mask))
    ]
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one() -> None:
    net, (x, mask) = attention().requires_grad_(False), some_windows(True)
    net.proj.weight.requires_grad_()
    net(x, mask).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["proj.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_goes_through_torchs_kernel(dtype: torch.dtype) -> None:
    net, (x, mask) = attention(), some_windows(True)
    with torch.autocast("cpu", dtype=dtype):
        assert not net._is_fused(x)
        y = net(x, mask)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), by_formula(net, x, mask), rtol=0.05, atol=0.05)


def test_dropout_of_the_weights_acts_in_training_only() -> None:
    net, (x, mask) = attention(attn_drop=0.5), some_windows(True)
    assert not net._is_fused(x)
    assert not torch.allclose(net(x, mask), net(x, mask))
    assert torch.allclose(net.eval()(x, mask), by_formula(net, x, mask), atol=1e-4)


@pytest.mark.slow
@masks
def test_a_compiler_sees_one_graph_with_the_same_result(masked: bool) -> None:
    net, (x, mask) = attention(), some_windows(masked)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), net(x, mask), rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(f(x, mask).square().sum(), list(net.parameters())) for f in (compiled, net)]
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-3)


def test_projections_that_are_tapped_or_replaced_are_called() -> None:
    net, (x, mask) = attention(), some_windows(True)
    expected = net(x, mask)
    seen = []
    hook = net.qkv.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    torch.testing.assert_close(net(x, mask), expected)
    assert len(seen) == 1
    hook.remove()
    net.proj = nn.Sequential(net.proj, nn.Tanh())  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(net(x, mask), expected.tanh())
