"""RKD: the student keeps the distances and angles among the teacher's features of the patches of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mtkd.contracts import Batch, MtkdError, Step
from mtkd.losses.features.relation import rkd_angle_loss, rkd_distance_loss
from mtkd.methods.base import Term
from mtkd.methods.taps import COMPARED, FeatureMethod, TapConfig, deep_features, over_taps

RELATIONS = COMPARED + ("grid",)  # noqa: RUF005
ANGLES = RELATIONS + ("angle_vectors",)  # noqa: RUF005


@dataclass(frozen=True, kw_only=True)
class RKDConfig(TapConfig):
    """Options of RKD: any number of taps, and what their vectors are.

    Attributes:
        grid: each image gives grid x grid vectors, the averages over its cells.
        angle_vectors: at most so many of the batch's vectors, drawn anew in every iteration, make angles; memory grows
            with their third power.
    """

    grid: int = 4
    angle_vectors: int = 64

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise MtkdError(f"grid of RKD must be 1 or more, found {self.grid}.")
        if self.angle_vectors < 3:
            raise MtkdError(
                f"angle_vectors of RKD must be 3 or more, found {self.angle_vectors}: an angle takes three vectors. "
                "angle_opt: ~ does without angles."
            )


class RKD(FeatureMethod):
    """`L = L1(sr, gt) + 0.4 * distance + 0.8 * angle`, relations among vectors of the batch, compared by a smooth L1.

    distance: |x_i - x_j| over the mean of all such distances; angle: the cosine at x_i between x_j and x_k. Only
    relations within a network are compared, so widths and sizes may differ.

    Deviations. RKD compares one embedding an image of a classifier or of metric learning; here, as in PKT, an image
    gives `grid` x `grid` vectors, averages of the last features before the upsampler over its cells. Angles are among
    `angle_vectors` = 64 of them, the batch size of RepDistiller, because the number of angles grows with the third
    power. The published weights 25 and 50 (RepDistiller, mdistiller) stand beside a cross-entropy; beside an L1 they
    would begin with about 10 and 26 times its gradient, so ours are 0.4 and 0.8 (docs/methods.md).
    """

    paper = "RKD (Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068), adapted to patches"
    Config = RKDConfig
    rule = staticmethod(deep_features)
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "distance": Term(
            "distances among patches of the batch, summed over the taps", weight=0.4, uses=RELATIONS, partial=True
        ),
        "angle": Term("angles among patches of the batch, summed over the taps", weight=0.8, uses=ANGLES, partial=True),
    }

    def setup(self) -> None:
        super().setup()
        grid = self.options.grid
        relations = {
            "distance": partial(rkd_distance_loss, grid=grid),
            "angle": partial(rkd_angle_loss, grid=grid, sample=self.options.angle_vectors),
        }
        self.relations = {name: loss for name, loss in relations.items() if name in self.active}
        for name, loss in self.relations.items():
            self.taps.check(name, loss)

    def forward(self, batch: Batch, step: int) -> Step:
        sr, students, teachers = self.features(batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt})
        for name, loss in self.relations.items():
            losses[name] = over_taps(loss, students, teachers)
        return Step(sr, losses)
