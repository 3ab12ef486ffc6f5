"""SRKD: the student imitates statistics of the teacher's features, taken over the channels at every position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step
from mtkd.losses.features.statistics import Norm, Statistic, statistics_loss
from mtkd.methods.asked import tried
from mtkd.methods.base import Term
from mtkd.methods.taps import COMPARED, FeatureMethod, TapConfig, thirds

LEVELS = ("low", "mid", "high")

STATISTICS = COMPARED + ("statistic", "power", "norm", "normalize")  # noqa: RUF005


@dataclass(frozen=True, kw_only=True)
class SRKDConfig(TapConfig):
    """Options of SRKD: three taps (low, mid, high) and the arguments of `statistics_loss`."""

    statistic: Statistic = "mean"
    power: int | None = None
    norm: Norm = "l1"
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.power is not None and self.power < 1:
            raise MtkdError(f"power must be 1 or more, found {self.power}.")


class SRKD(FeatureMethod):
    """`L = 2 * L1(sr, gt) + d(low) + d(mid)`, d the distance of the features' statistics; the high tap is off.

    The statistic is the squared mean over the channels, the paper's best, which needs no regressor between widths. Taps
    are the blocks that end each third of the body, the paper's 4, 7, 10 of 10 and 1, 2, 3 of 3. The weights are the
    best of its ablation, in which the high tap does harm. There is no term on the teacher's image.

    The paper works on Y and does not name its norms; RGB and L1 are ours. A statistic to the power p grows with the
    features' scale to that power, and scales differ between networks by orders of magnitude, so the paper's weights
    carry to other networks only with `normalize`: see docs/methods.md.
    """

    paper = "SRKD (Gao et al., Image Super-Resolution Using Knowledge Distillation, ACCV 2018)"
    Config = SRKDConfig
    rule = staticmethod(thirds)
    num_taps = 3
    terms = {
        "pixel": Term("sr against gt", weight=2.0, loss="L1Loss"),
        "low": Term("statistics of the features after the first third of the body", uses=STATISTICS, partial=True),
        "mid": Term("statistics of the features after the second third of the body", uses=STATISTICS, partial=True),
        "high": Term("statistics of the features at the end of the body", weight=None, uses=STATISTICS, partial=True),
    }

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        if any(level in asked.terms for level in LEVELS):
            yield from tried(("method",), _distance(asked.options))

    def setup(self) -> None:
        super().setup()
        self.distance = _distance(self.options)
        for i, level in enumerate(LEVELS):
            if level in self.active:
                self.taps.check(level, self.distance, taps=[i])

    def forward(self, batch: Batch, step: int) -> Step:
        sr, students, teachers = self.features(batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt})
        for level, student, teacher in zip(LEVELS, students, teachers, strict=self.reads_teachers):
            if level in self.active:
                losses[level] = self.distance(student, teacher)
        return Step(sr, losses)


def _distance(o: SRKDConfig) -> partial[Tensor]:
    return partial(statistics_loss, statistic=o.statistic, power=o.power, norm=o.norm, normalize=o.normalize)
