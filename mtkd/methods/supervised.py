"""Supervised training without a teacher: BasicSR's SRModel, the baseline every distillation must beat."""

from __future__ import annotations

from mtkd.contracts import Batch, Step
from mtkd.methods.base import Method, Term


class Supervised(Method):
    """The student against the ground truth.

    Takes BasicSR's `model_type: SRModel` (and `SwinIRModel`, which differs there only in padding at test time: our
    networks pad themselves).
    """

    paper = "BasicSR's SRModel"
    takes_luma = True
    terms = {"pixel": Term("sr against gt", weight=None, loss="L1Loss")}

    def forward(self, batch: Batch, step: int) -> Step:
        sr = self.student(batch.lq)
        return Step(sr, self.image_losses(sr, {"pixel": batch.gt}))
