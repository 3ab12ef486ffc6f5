"""Output distillation: the student imitates the teacher's image beside the ground truth."""

from __future__ import annotations

from mtkd.contracts import Batch, Step
from mtkd.methods.base import Method, Term


class OutputKD(Method):
    """`L = L1(sr, gt) + L1(sr, target)`, the "Logits" row of the field's tables.

    Equal weights as in DCKD's equations 2-3 and the plain-KD option files of DUKD; FAKD's 0.5 / 0.5 is the same
    direction. `target` is the single teacher's image, or the fused or mean image when `fusion` is declared.
    """

    paper = "the logits baseline of DCKD (AAAI 2025, arXiv 2412.08939), equations 2-3"
    teacher_use = "image"
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "target": Term("sr against the teacher's image", loss="L1Loss"),
    }

    def forward(self, batch: Batch, step: int) -> Step:
        sr = self.student(batch.lq)
        return Step(sr, self.image_losses(sr, {"pixel": batch.gt, "target": self.target(batch)}))
