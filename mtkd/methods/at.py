"""Attention transfer (AT): the student imitates where the teacher's features have their energy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mtkd.contracts import Batch, Step
from mtkd.losses.features.statistics import AttentionForm, attention_loss
from mtkd.methods.base import Term
from mtkd.methods.taps import COMPARED, FeatureMethod, TapConfig, over_taps, thirds

ENERGY = COMPARED + ("form",)  # noqa: RUF005


@dataclass(frozen=True, kw_only=True)
class ATConfig(TapConfig):
    """Options of AT: any number of taps, and the form of `attention_loss`."""

    form: AttentionForm = "at"


class AT(FeatureMethod):
    """`L = L1(sr, gt) + w * sum over taps of mean (A(S) - A(T))^2`, A the energy over the channels, of unit norm.

    The attention term is RepDistiller's; the cross-entropy becomes the pixel loss. The paper compares the ends of a
    network's groups, here the blocks that end each third of the body. The weight is ours, RepDistiller's 1000 being for
    classifiers. `form: fakd` is the variant of FAKD's code, whose values and gradients are larger by one to two orders
    of magnitude and need another weight: see docs/methods.md for both.
    """

    paper = "AT (Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928)"
    Config = ATConfig
    rule = staticmethod(thirds)
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "attention": Term("energy maps of the features, summed over the taps", weight=50.0, uses=ENERGY, partial=True),
    }

    def setup(self) -> None:
        super().setup()
        self.distance = partial(attention_loss, form=self.options.form)
        if "attention" in self.active:
            self.taps.check("attention", self.distance)

    def forward(self, batch: Batch, step: int) -> Step:
        sr, students, teachers = self.features(batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt})
        if "attention" in self.active:
            losses["attention"] = over_taps(self.distance, students, teachers)
        return Step(sr, losses)
