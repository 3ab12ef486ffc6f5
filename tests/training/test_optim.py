"""Learning rates against BasicSR's schedulers, optimizers by name, the moving average."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd.contracts import MtkdError
from mtkd.training.ema import Ema
from mtkd.training.optim import build_optimizer, learning_rate

SCHEDULES = [
    {"type": "MultiStepLR", "milestones": [4, 8, 11], "gamma": 0.5},
    {
        "type": "MultiStepRestartLR",
        "milestones": [3, 6, 12, 14],
        "gamma": 0.5,
        "restarts": [0, 9],
        "restart_weights": [1, 0.5],
    },
    {"type": "CosineAnnealingRestartLR", "periods": [20], "eta_min": 1e-6},
    {"type": "CosineAnnealingRestartLR", "periods": [8, 12], "restart_weights": [1, 0.5], "eta_min": 1e-6},
]


def rates_of_basicsr(schedule: dict, base: float, warmup: int, steps: int) -> list[float]:
    """BasicSR's `update_learning_rate` before each iteration, its counter starting at 1."""
    from basicsr.models import lr_scheduler

    arguments = copy.deepcopy(schedule)
    name = arguments.pop("type").replace("MultiStepLR", "MultiStepRestartLR")
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
    rates = []
    for current in range(1, steps + 1):
        if current > 1:
            scheduler.step()
        if current < warmup:
            rates.append(base / warmup * current)
        else:
            rates.append(optimizer.param_groups[0]["lr"])
            continue
        # BasicSR overwrites the rate during warm-up and the scheduler goes on from its own closed form or last rate.
        optimizer.param_groups[0]["lr"] = rates[-1]
    return rates


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s['type']}-{len(s.get('restart_weights', [1]))}")
def test_rates_equal_basicsrs(schedule: dict) -> None:
    ours = learning_rate(2e-4, schedule)
    assert [ours(step) for step in range(20)] == pytest.approx(rates_of_basicsr(schedule, 2e-4, -1, 20), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_warm_up_is_basicsrs_except_that_multistep_reaches_the_base_rate() -> None:
    cosine = SCHEDULES[2]
    ours = learning_rate(2e-4, cosine, warmup_iter=6)
    assert [ours(step) for step in range(20)] == pytest.approx(rates_of_basicsr(cosine, 2e-4, 6, 20), rel=1e-12)
    steps = SCHEDULES[0]
    theirs = rates_of_basicsr(steps, 1.0, 4, 8)
    ours = learning_rate(1.0, steps, warmup_iter=4)
    assert theirs[:3] == pytest.approx([ours(step) for step in range(3)])
    assert theirs[3] == pytest.approx(0.75) and ours(3) == pytest.approx(1.0)


def test_warm_up_is_linear_and_ends_at_the_schedule() -> None:
    rate = learning_rate(1.0, {"type": "MultiStepLR", "milestones": [8], "gamma": 0.1}, warmup_iter=4)
    assert [rate(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rate(8) == pytest.approx(0.1)


def test_no_scheduler_keeps_the_rate() -> None:
    rate = learning_rate(3e-4, None)
    assert {rate(step) for step in (0, 10, 10**6)} == {3e-4}


def test_unknown_names_are_errors() -> None:
    with pytest.raises(MtkdError, match="Adamm"):
        build_optimizer([nn.Parameter(torch.zeros(1))], {"type": "Adamm", "lr": 1.0})
    with pytest.raises(MtkdError, match="StepLR"):
        learning_rate(1.0, {"type": "StepLR"})


def test_ema_is_the_closed_form_and_copies_buffers() -> None:
    net = nn.BatchNorm1d(2)
    ema = Ema(net, 0.9)
    expected = net.weight.detach().clone()
    for value in (2.0, 3.0):
        with torch.no_grad():
            net.weight.fill_(value)
            net.running_mean.fill_(value)
        ema.update()
        expected = 0.9 * expected + 0.1 * value
    torch.testing.assert_close(ema.net.weight.detach(), expected)
    assert torch.equal(ema.net.running_mean, net.running_mean)
    assert not ema.net.training and not ema.net.weight.requires_grad
