"""Probabilistic knowledge transfer (PKT): the student imitates which patches the teacher finds alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mtkd.contracts import Batch, MtkdError, Step
from mtkd.losses.features.relation import PairReduction, pkt_loss
from mtkd.methods.base import Term
from mtkd.methods.taps import COMPARED, FeatureMethod, TapConfig, deep_features, over_taps

AFFINITY = COMPARED + ("grid", "reduction")  # noqa: RUF005


@dataclass(frozen=True, kw_only=True)
class PKTConfig(TapConfig):
    """Options of PKT: any number of taps, and the arguments of `pkt_loss`."""

    grid: int = 4
    reduction: PairReduction = "rows"

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise MtkdError(f"grid must be 1 or more, found {self.grid}.")


class PKT(FeatureMethod):
    """`L = L1(sr, gt) + w * KL(p || q)`, p and q the teacher's and student's similarities among patches of the batch.

    PKT compares one vector an image of a classifier. Here an image gives `grid` x `grid` vectors, averages of the last
    features before the upsampler over its cells, so that the set is large enough and its members are places and not
    whole crops. `reduction: rows` makes the weight independent of their number; RepDistiller's mean over all pairs is
    `reduction: mean`. The weight is ours: see docs/methods.md.
    """

    paper = "PKT (Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018)"
    Config = PKTConfig
    rule = staticmethod(deep_features)
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "similarity": Term(
            "similarities among patches of the batch, summed over the taps", weight=0.15, uses=AFFINITY, partial=True
        ),
    }

    def setup(self) -> None:
        super().setup()
        self.divergence = partial(pkt_loss, grid=self.options.grid, reduction=self.options.reduction)
        if "similarity" in self.active:
            self.taps.check("similarity", self.divergence)

    def forward(self, batch: Batch, step: int) -> Step:
        sr, students, teachers = self.features(batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt})
        if "similarity" in self.active:
            losses["similarity"] = over_taps(self.divergence, students, teachers)
        return Step(sr, losses)
