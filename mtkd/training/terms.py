"""The terms of a method, weighted by their schedules."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtkd.config import TermOptions
from mtkd.contracts import Step
from mtkd.training.schedule import weight_at


def weighted_total(out: Step, terms: Mapping[str, TermOptions], step: int) -> Tensor:
    """Sum of the terms times their weights at `step`, student and critic together."""
    total = out.sr.new_zeros(())
    for name, value in [*out.losses.items(), *out.critic.items()]:
        total = total + weight_at(terms[name].weight, step) * value
    return total
