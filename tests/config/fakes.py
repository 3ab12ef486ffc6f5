"""Stands in for a method from outside: named in option files as `tests.config.fakes:Fake`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mtkd.methods.base import Method, Term


class Fake(Method):
    @dataclass(frozen=True)
    class Config:
        taps: tuple[str, ...]
        mode: Literal["sum", "mean"] = "sum"
        every: int = 1

        def __post_init__(self) -> None:
            if self.every < 1:
                raise ValueError("every must be at least 1")

    teacher_use = "network"
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "feature": Term("features", weight=0.5, options={"power": 2, "normalise": True}),
        "extra": Term("off unless named", weight=None, loss="MSELoss"),
        "critic": Term("trains the critic", weight=None, critic=True),
    }


class FakeLoss(nn.Module):
    def __init__(self, *, needed: float, blocks: int = 1) -> None:
        super().__init__()
        self.needed, self.blocks = needed, blocks

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        return (sr - target).abs().mean() * self.needed


not_callable = 3
