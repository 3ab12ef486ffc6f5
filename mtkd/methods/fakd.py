"""FAKD: the student imitates the affinities among positions of the teacher's features, beside its image and gt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mtkd.archs.rcan import RCAN
from mtkd.contracts import Asked, Batch, Remark, Step
from mtkd.losses.features.affinity import channel_affinity_loss, instance_affinity_loss, spatial_affinity_loss
from mtkd.losses.features.statistics import attention_loss
from mtkd.methods.asked import tried
from mtkd.methods.base import Frozen, Method, Term
from mtkd.methods.taps import COMPARED, TapConfig, TapPairs, body_blocks, over_taps

RANGE = 1 / 255
"""From weights beside a pixel loss on 0..255 images, the paper's, to weights beside one on [0, 1] images."""

AFFINITIES: Mapping[str, Callable[..., Tensor]] = {
    "spatial": spatial_affinity_loss,
    "pooled": spatial_affinity_loss,
    "channel": channel_affinity_loss,
    "instance": instance_affinity_loss,
    "attention": attention_loss,
}


def fakd_taps(net: nn.Module) -> list[str]:
    """The taps of FAKD's code: two thirds inside the body, and what the upsampler gets.

    EDSR after blocks int(n/3) and int(2n/3): 5 and 10 of 16, 10 and 21 of 32; RCAN after groups 3 and 7 of 10, which
    are the thirds rounded; other networks as EDSR. The code adds the global skip in place to the tensor that it keeps
    as its third tap, so that this tap is the body's end plus the shallow map.
    """
    shallow, blocks, end = body_blocks(net)
    cut = round if isinstance(net, RCAN) else int
    inside = [min(max(cut(i * len(blocks) / 3), i), len(blocks)) for i in (1, 2)]
    return [*(blocks[i - 1] for i in inside), f"{end} + {shallow}"]


@dataclass(frozen=True, kw_only=True)
class FAKDConfig(TapConfig):
    """Options of FAKD: any number of taps; `teacher_taps` may also be one list for each teacher's name."""

    teacher_taps: list[str] | dict[str, list[str]] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class FAKD(Method):
    """`L = 0.5 * L1(sr, gt) + 0.5 * L1(sr, teacher) + 10/255 * sum over taps of SA(S, T)`.

    SA is the mean absolute difference of the cosine similarities between all pairs of positions; widths may differ. The
    paper's 10 stands beside images in 0..255 and is divided by 255 here. The other maps of the authors' code are terms
    that are off by default; `instance_opt: {norm: l2}` is similarity-preserving distillation, SP (Tung and Mori, ICCV
    2019, arXiv 1907.09682). With several teachers, one is drawn at random in every iteration, and its image and
    features are the target, as in the authors' code.
    """

    paper = "FAKD (He et al., Feature-Affinity Based Knowledge Distillation for Efficient SR, ICIP 2020)"
    teacher_use = "network"
    gt_terms = ("pixel",)
    Config = FAKDConfig
    terms = {
        "pixel": Term("sr against gt", weight=0.5, loss="L1Loss"),
        "target": Term("sr against the teacher's image", weight=0.5, loss="L1Loss", uses=("teachers",)),
        "spatial": Term(
            "affinities among positions (SA), summed over the taps", weight=10 * RANGE, uses=COMPARED, partial=True
        ),
        "pooled": Term(
            "SA of pooled positions (PSA)",
            weight=None,
            options={"pool": 2, "pool_type": "avg"},
            uses=COMPARED,
            partial=True,
        ),
        "channel": Term("affinities among channels (CA); needs equal widths", weight=None, uses=COMPARED, partial=True),
        "instance": Term(
            "affinities among the batch's images (IA)", weight=None, options={"norm": "l1"}, uses=COMPARED, partial=True
        ),
        "attention": Term("energy maps (AT)", weight=None, options={"form": "fakd"}, uses=COMPARED, partial=True),
    }

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        for name, loss in AFFINITIES.items():
            if name in asked.terms:
                options = {**cls.terms[name].options, **asked.terms[name]}
                yield from tried(("train", f"{name}_opt"), partial(loss, **options))

    def setup(self) -> None:
        self.require_teachers()
        self.taps = TapPairs(self, fakd_taps)
        self.affinities = {
            name: partial(loss, **self.term_options[name]) for name, loss in AFFINITIES.items() if name in self.active
        }
        for name, loss in self.affinities.items():
            self.taps.check(name, loss)

    def student_modules(self) -> Sequence[str]:
        return self.taps.student.modules

    def teacher_modules(self, name: str) -> Sequence[str]:
        return self.taps.teachers[name].modules

    def forward(self, batch: Batch, step: int) -> Step:
        if not self.reads_teachers:
            sr = self.student(batch.lq)
            return Step(sr, self.image_losses(sr, {"pixel": batch.gt}))
        sr, students = self.taps.student.read(self.student, batch.lq)
        name, teacher = self._drawn()
        image, teachers = self.taps.teachers[name].read(teacher, batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt, "target": image})
        for term, loss in self.affinities.items():
            losses[term] = over_taps(loss, students, teachers)
        return Step(sr, losses)

    def _drawn(self) -> tuple[str, Frozen]:
        """One teacher. The run seeds torch's generator in every iteration, so a resumed run draws the same."""
        names = list(self.teachers)
        name = names[int(torch.randint(len(names), ()))] if len(names) > 1 else names[0]
        return name, self.teachers[name]
