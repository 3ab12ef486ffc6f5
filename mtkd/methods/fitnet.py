"""FitNet: a regressor on the student's features predicts the teacher's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from mtkd.contracts import Batch, Step
from mtkd.losses.features.elementwise import hint_loss
from mtkd.losses.numerics import unit_vectors, upcast
from mtkd.methods.base import Term
from mtkd.methods.taps import COMPARED, FeatureMethod, TapConfig, middle

HINT = COMPARED + ("normalize",)  # noqa: RUF005


@dataclass(frozen=True, kw_only=True)
class FitNetConfig(TapConfig):
    """Options of FitNet: any number of taps (each gets a regressor), and whether features are divided by their size."""

    normalize: bool = True


class FitNet(FeatureMethod):
    """`L = L1(sr, gt) + w * mean (r(S) - T)^2`, r a 1x1 convolution, S and T the middle of both bodies over their size.

    RepDistiller's regressor also has batch norm and ReLU; features of super-resolution networks are signed and
    unnormalised, so both are left out. The paper trains the hint alone first; here both terms train together as in
    RepDistiller, and the two stages are weight schedules: see docs/methods.md.

    Division of both features by their root mean square is ours. Without it (`normalize: false`) the term depends on
    the networks: between published and fresh EDSRs the features' mean squares differ by a factor of 1e5. The weight is
    ours too; RepDistiller's 100 is for classifiers.
    """

    paper = "FitNet (Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550)"
    Config = FitNetConfig
    rule = staticmethod(middle)
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "hint": Term(
            "regressed features against the teacher's, summed over the taps", weight=0.1, uses=HINT, partial=True
        ),
    }

    def setup(self) -> None:
        super().setup()
        widths = self.taps.widths(*self.teachers) if "hint" in self.active else []
        self.regressors = nn.ModuleList(nn.Conv2d(own, other, 1) for own, other in widths)
        for i, regressor in enumerate(self.regressors):
            self.taps.check("hint", lambda s, t, r=regressor: hint_loss(r(s), t), taps=[i])

    def forward(self, batch: Batch, step: int) -> Step:
        sr, students, teachers = self.features(batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt})
        hints = [self._hint(*found) for found in zip(self.regressors, students, teachers, strict=False)]
        if hints:
            losses["hint"] = sum(hints[1:], hints[0])
        return Step(sr, losses)

    def _hint(self, regressor: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        if self.options.normalize:
            student, teacher = _unit_size(student), _unit_size(teacher)
        return hint_loss(regressor(student), teacher)


def _unit_size(x: Tensor) -> Tensor:
    """`x` over its root mean square, the one number of the whole batch; zeros stay zeros and pass no gradient."""
    (x,) = upcast(x)
    return unit_vectors(x.flatten(), 0).unflatten(0, x.shape) * math.sqrt(x.numel())
