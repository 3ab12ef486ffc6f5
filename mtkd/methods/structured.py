"""Structured distillation: pixels, the relations among pixels, and a critic that looks at the whole image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.archs.critics import SelfAttentionCritic
from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step
from mtkd.losses.adversarial import gradient_penalty, wasserstein_critic_loss, wasserstein_student_loss
from mtkd.losses.features.affinity import pairwise_affinity_loss
from mtkd.losses.numerics import check_choice
from mtkd.methods.asked import tried
from mtkd.methods.base import Term, frozen_parameters
from mtkd.methods.taps import COMPARED, FeatureMethod, TapConfig, deep_features, over_taps

Real = Literal["teacher", "gt"]
ADVERSARIAL = ("holistic", "critic", "penalty")
CRITIC = ("real", "conditional", "critic_feat")


@dataclass(frozen=True, kw_only=True)
class StructuredKDConfig(TapConfig):
    """Options of structured distillation: the taps of the pair-wise term, and the critic's.

    Attributes:
        real: what the critic calls real, the teacher's image or the ground truth.
        conditional: whether the critic sees lq, upscaled bicubically, beside the image.
        critic_feat: width of the critic's first convolution.
    """

    real: Real = "teacher"
    conditional: bool = True
    critic_feat: int = 64

    def __post_init__(self) -> None:
        check_choice("real of StructuredKD", self.real, Real)
        if self.critic_feat < 1:
            raise MtkdError(f"critic_feat of StructuredKD must be 1 or more, found {self.critic_feat}.")


class StructuredKD(FeatureMethod):
    """`L = L1(sr, gt) + L1(sr, teacher) + 0.5 * pair-wise`, and optionally a holistic term with a critic D.

    pair-wise = sum over taps of mean over i, j of (cos(s_i, s_j) - cos(t_i, t_j))^2 over nodes pooled 2 x 2;
    holistic = -mean D(sr), D(x) the mean of the critic's scores of the P patches of an image, where D minimises
    mean D(sr) - mean D(real) + 10 * mean (sqrt(P) * |dD/dx| - 1)^2 (WGAN-GP's where P = 1) under an optimizer of its
    own, `train.optim_d`. The critic answers to its own terms alone; everything is one backward pass.

    Deviations. The paper's networks classify pixels: its pixel-wise term is a divergence of class probabilities, which
    images don't have; here it is L1. Its pair-wise term pools the whole map to 2 x 2 nodes, too coarse for
    super-resolution; here 2 x 2 positions make a node. It averages nodes as the paper says (the code takes the
    maximum) and differentiates the norms (the code does not). Of the released weights 10, 0.5 and 0.1, the
    first belongs to the divergence, and 1 is the logits baseline's; the others are kept (docs/methods.md says what they
    come to beside L1). The critic sees lq as in the paper (its code leaves it out). It scores patches, and the square
    root of their number in the penalty makes the holistic term as strong beside an L1 at every crop size; the published
    critic answers once for an image of one size. The code trains it by SGD and multiplies both of its losses by 0.1.

    The holistic term is off because it pulls towards images that look like the teacher's, not towards the nearest: it
    is expected to cost PSNR, and needs a critic and second derivatives. To use it, give `holistic_opt` (published
    weight 0.1), `critic_opt` (1), `penalty_opt` (10) and `optim_d` (the recipe's is SAGAN's Adam, at the code's
    rate 4e-4).
    """

    gt_terms = ("pixel", "holistic", "critic", "penalty")  # the critic's with `real: gt`, and they go together
    paper = "Structured Knowledge Distillation (Liu et al., CVPR 2019, arXiv 1903.04197), adapted to images"
    Config = StructuredKDConfig
    rule = staticmethod(deep_features)
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "target": Term("sr against the teacher's image", loss="L1Loss", uses=("teachers",)),
        "pairwise": Term(
            "affinities among pooled positions of the taps",
            weight=0.5,
            options={"pool": 2, "pool_type": "avg", "detach_norm": False},
            uses=COMPARED,
            partial=True,
        ),
        "holistic": Term("the critic's verdict on sr", weight=None, uses=CRITIC),
        "critic": Term("the critic tells sr from real images", weight=None, critic=True, uses=CRITIC),
        "penalty": Term("the critic's gradient has norm 1", weight=None, critic=True, uses=CRITIC),
    }

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        if "pairwise" in asked.terms:
            options = {**cls.terms["pairwise"].options, **asked.terms["pairwise"]}
            yield from tried(("train", "pairwise_opt"), partial(pairwise_affinity_loss, **options))
        named = [name for name in ADVERSARIAL if name in asked.terms]
        missing = [name for name in ADVERSARIAL if name not in asked.terms]
        if named and missing:
            yield (
                ("train", f"{named[0]}_opt"),
                f"StructuredKD's critic needs {', '.join(f'train.{name}_opt' for name in ADVERSARIAL)} together; "
                f"{', '.join(f'train.{name}_opt' for name in missing)} is missing beside {', '.join(named)}.",
            )

    @classmethod
    def ignores(cls, asked: Asked) -> Iterator[Remark]:
        for key, why in super().ignores(asked):
            # The critic may call the teacher's image real.
            if key[0] == "method" or not ("critic" in asked.terms and asked.options.real == "teacher"):
                yield key, why

    def setup(self) -> None:
        super().setup()
        if "pairwise" in self.active:
            self.affinity = partial(pairwise_affinity_loss, **self.term_options["pairwise"])
            self.taps.check("pairwise", self.affinity)
        self.critic: SelfAttentionCritic | None = None
        if "critic" in self.active:
            channels = 6 if self.options.conditional else 3
            self.critic = SelfAttentionCritic(num_in_ch=channels, num_feat=self.options.critic_feat)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().param_groups()
        if self.critic is None:
            return groups
        critic = list(self.critic.parameters())
        own = {id(parameter) for parameter in critic}
        return {"main": [p for p in groups["main"] if id(p) not in own], "critic": critic}

    def forward(self, batch: Batch, step: int) -> Step:
        ((name, teacher),) = self.teachers.items()
        targets = {"pixel": batch.gt}
        if self.reads_teachers or (self.critic is not None and self.options.real == "teacher"):
            sr, students = self.taps.student.read(self.student, batch.lq)
            targets["target"], teachers = self.taps.teachers[name].read(teacher, batch.lq)
        else:
            sr, students, teachers = self.student(batch.lq), [], []
        losses = self.image_losses(sr, targets)
        if "pairwise" in self.active:
            losses["pairwise"] = over_taps(self.affinity, students, teachers)
        if self.critic is None:
            return Step(sr, losses)
        real, fake = targets["pixel" if self.options.real == "gt" else "target"], sr.detach()
        condition = _upscaled(batch.lq, self.task.scale) if self.options.conditional else None
        with frozen_parameters(self.critic):
            losses["holistic"] = wasserstein_student_loss(self._score(sr, condition))
        scores = self._score(real, condition), self._score(fake, condition)
        critic = {
            "critic": wasserstein_critic_loss(*scores),
            "penalty": gradient_penalty(partial(self._penalised, condition=condition), real, fake),
        }
        return Step(sr, losses, critic=critic)

    def _penalised(self, image: Tensor, condition: Tensor | None) -> Tensor:
        """Scores whose mean has a gradient of norm 1 when that of each of the P patches' own scores has."""
        scores = self._score(image, condition)
        return scores * math.sqrt(scores[0].numel())

    def _score(self, image: Tensor, condition: Tensor | None) -> Tensor:
        assert self.critic is not None
        return self.critic(image if condition is None else torch.cat([image, condition.to(image.dtype)], 1))


def _upscaled(lq: Tensor, scale: int) -> Tensor:
    return F.interpolate(lq, scale_factor=float(scale), mode="bicubic", align_corners=False)
