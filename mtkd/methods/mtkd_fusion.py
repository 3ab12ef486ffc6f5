"""MTKD, stage 1: train the fusion network that turns the teachers' images into one better image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mtkd.archs.ensemble import Ensemble, FusedTeacher
from mtkd.contracts import Batch, Step
from mtkd.methods.base import Method, Term


class MTKDFusion(Method):
    """`L = L1(fusion(teachers(lq)), gt)`; the student of this run is the fusion network.

    The teachers run frozen and without gradients; the official code back-propagates through all of them. Their names
    in order travel with the checkpoint, because the official code trains with one order and distils with another.
    """

    paper = "MTKD (Jiang et al., ECCV 2024, arXiv 2404.09571), stage 1; loss from the authors' option files"
    teacher_use = "network"
    answers_suffice = True
    alone = "it trains the fusion network"
    terms = {"pixel": Term("fused image against gt", loss="L1Loss")}

    def setup(self) -> None:
        self.require_teachers()
        self.ensemble = Ensemble(dict(self.teachers.items()))

    def forward(self, batch: Batch, step: int) -> Step:
        fused = self.student(self.ensemble(batch.lq, batch.answers))
        return Step(fused, self.image_losses(fused, {"pixel": batch.gt}))

    def predictor(self, student: nn.Module) -> nn.Module:
        # The bare networks, so that parameters and multiply-adds of the whole can be counted.
        members = {name: teacher.net for name, teacher in self.teachers.items()}
        return FusedTeacher(Ensemble(members), student)

    def metadata(self) -> dict[str, Any]:
        return {"members": list(self.ensemble.names)}

    def check_metadata(self, facts: Mapping[str, Any]) -> None:
        if "members" in facts:
            self.ensemble.check_order(facts["members"])
