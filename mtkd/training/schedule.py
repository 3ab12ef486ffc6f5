"""Weights of loss terms that change during a run."""

from __future__ import annotations

from collections.abc import Sequence


def weight_at(schedule: Sequence[tuple[int, float]], step: int) -> float:
    """Weight at iteration `step` (from 0): linear between the schedule's points, constant before and after them."""
    before, weight = schedule[0]
    if step <= before:
        return weight
    for at, value in schedule[1:]:
        if step < at:
            return weight + (value - weight) * (step - before) / (at - before)
        before, weight = at, value
    return weight
