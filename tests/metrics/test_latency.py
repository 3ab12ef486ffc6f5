"""Latency and peak memory: what is counted, and that measuring changes nothing. No test holds a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtkd.archs.edsr import EDSR
from mtkd.contracts import MtkdError
from mtkd.metrics.latency import ALLOCATED, RESIDENT, latency, peak_memory, running_cost
from mtkd.runtime import memory

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the counter is Linux's")


class Holds(nn.Module):
    """Holds `mib` MiB during its forward, and weights of `weights` MiB."""

    scale = 2

    def __init__(self, mib: int, weights: int = 0) -> None:
        super().__init__()
        self.mib = mib
        self.weight = nn.Parameter(torch.zeros(weights * MIB // 4))
        self.shapes: list[tuple[int, ...]] = []
        self.graph: list[bool] = []

    def forward(self, lq: Tensor) -> Tensor:
        self.shapes.append(tuple(lq.shape))
        self.graph.append(self.training or torch.is_grad_enabled())
        held = torch.ones(self.mib * MIB // 4, device=lq.device)
        return lq * held[0]


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, 3), (1e9, 100)])
def test_runs_are_repeated_3_to_100_times_after_a_warm_up(seconds: float, runs: int) -> None:
    net = Holds(1)
    found = latency(net, (6, 8), seconds=seconds)
    assert found.runs == runs and net.shapes == [(1, 3, 6, 8)] * (runs + 1)
    assert found.milliseconds > 0 and found.spread >= 0
    assert not any(net.graph) and net.training


def test_the_median_and_the_quartiles_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 1.0, 9.0, 2.0, 100.0])
    monkeypatch.setattr("mtkd.metrics.latency._by_the_clock", lambda net, lq: next(times))
    found = latency(nn.Identity(), (4, 4), seconds=0.1)
    # Sorted 1, 2, 5, 9, 100: the quartiles of five values are the second and the fourth.
    assert (found.milliseconds, found.spread, found.runs) == (5.0, 7.0, 5)


@linux
def test_memory_is_what_the_forward_holds_with_weights_and_input() -> None:
    net = Holds(64, weights=16)
    net(torch.zeros(1, 3, 4, 4))
    image = 3 * 400 * 500 * 4 / MIB
    found = peak_memory(net, (400, 500))
    assert found is not None
    assert found == pytest.approx(64 + 16 + 2 * image, abs=3)  # input and output
    more = peak_memory(Holds(128, weights=16), (400, 500))
    assert more is not None and more - found == pytest.approx(64, abs=3)


@linux
def test_memory_of_a_network_is_that_of_torchs_profiler_or_more() -> None:
    """The profiler counts torch's own allocations, and not the scratch of the libraries it calls."""
    from torch.profiler import ProfilerActivity, profile

    net = EDSR(num_feat=32, num_block=2, upscale=2).eval()
    lq = torch.rand(1, 3, 200, 200)
    with torch.no_grad():
        net(lq)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            net(lq)
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    found = peak_memory(net, (200, 200))
    weights = sum(value.nbytes for value in net.parameters())
    assert found is not None
    assert 0.95 < found * MIB / (peak + weights + lq.nbytes) < 2


def test_memory_that_cannot_be_counted_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(memory.Path, "write_text", refuse)
    found = running_cost(Holds(1), device="cpu")
    assert found.memory is None and found.latency > 0


def test_the_cost_is_for_1280x720_and_says_what_it_is() -> None:
    net, state = Holds(1), torch.get_rng_state()
    found = running_cost(net)
    assert {shape[2:] for shape in net.shapes} == {(360, 640)} == {found.lq}
    facts = found.facts()
    assert facts["latency_ms"] == found.latency and facts["memory_mib"] == found.memory and facts["lq"] == [360, 640]
    assert facts["threads"] == torch.get_num_threads() and facts["memory_is"] == RESIDENT and facts["device"]
    assert torch.equal(torch.get_rng_state(), state)
    assert running_cost(net, scale=4).lq == (180, 320)
    with pytest.raises(MtkdError, match="has no `scale`"):
        running_cost(nn.Identity())


def test_a_reduced_precision_is_that_of_the_run() -> None:
    seen: list[torch.dtype] = []

    class Asks(nn.Module):
        scale = 4

        def forward(self, lq: Tensor) -> Tensor:
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            seen.append(product.dtype)
            return lq

    running_cost(Asks(), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert set(seen) == {torch.bfloat16}


@pytest.mark.cuda
def test_cuda_counts_what_torch_allocates_and_no_other_network() -> None:
    other = torch.zeros(300 * MIB // 4, device="cuda")
    net = Holds(64, weights=16).cuda()
    found = running_cost(net, device="cuda")
    image = 3 * 360 * 640 * 4 / MIB
    assert found.memory == pytest.approx(64 + 16 + 2 * image, abs=4) and found.memory_is == ALLOCATED
    assert found.latency > 0 and found.runs >= 3 and "NVIDIA" in found.device
    del other
