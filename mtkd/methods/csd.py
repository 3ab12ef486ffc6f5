"""CSD: the first channels of a wide network are the student, the whole of it is the teacher, trained at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.archs.slim import Slim, extract
from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step
from mtkd.losses.contrastive import contrastive_ratio_loss
from mtkd.losses.perceptual import CSD_LAYERS, VGG19Features
from mtkd.methods.base import Method, Term

LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Weights of VGG-19's relu1_1 to relu5_1."""


@dataclass(frozen=True, kw_only=True)
class CSDConfig:
    """Options of CSD.

    Attributes:
        width: share of the channels that makes the student, in (0, 1]; published are 0.25 and 0.5.
        vgg: VGG-19's weights for the contrast term: "zoo:vgg19", a path to torchvision's vgg19-dcbb9e9d.pth, or
            "random" for tests.
        negatives: K, lq images of the batch whose bicubic enlargements are pushed away; at most the batch is used.
    """

    width: float = 0.25
    vgg: str | None = None
    negatives: int = 10

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise MtkdError(f"negatives must be 1 or more, got {self.negatives}.")


class CSD(Method):
    """`L = L1(sr, gt) + 200/255 * contrast(sr, wide, negatives) + L1(wide, gt)`, through shared weights.

    `network_g` is the wide network (EDSR or RCAN). sr is made by its first floor(width * C) channels, `wide` by all of
    them. The contrast is sum_j w_j * |phi_j(wide) - phi_j(sr)| / sum_k |phi_j(negative_k) - phi_j(sr)| over VGG-19's
    relu1_1 to relu5_1, with `wide` detached; negatives are the first K lq images of the batch, enlarged bicubically
    (PyTorch's, a = -0.75) and shared by all samples. K rescales the term by about 1 / K.

    The published weight 200 stands beside L1 on 0..255 images; on [0, 1] it is 200 / 255, with VGG still fed 0..255.
    The weights file holds the wide network; what is validated and deployed is the narrow one cut out of it.

    Raises:
        MtkdError: `network_g` cannot be sliced to that width, or the contrast term has no VGG weights.
    """

    paper = "CSD (Wang et al., IJCAI 2021, arXiv 2105.11683)"
    terms = {
        "pixel": Term("sr of the first channels against gt", loss="L1Loss"),
        "teacher_pixel": Term("sr of all channels against gt", loss="L1Loss"),
        "contrast": Term(
            "towards the wide network's sr, away from other images, in VGG features",
            weight=200 / 255,
            uses=("vgg", "negatives"),
        ),
    }
    Config = CSDConfig
    alone = "its student is a slice of the network"

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        if "contrast" in asked.terms and asked.options.vgg is None:
            yield (
                ("method", "vgg"),
                "CSD's contrast term compares VGG-19's features, and method.vgg does not say where its weights are: "
                "`vgg: zoo:vgg19`, or a path to vgg19-dcbb9e9d.pth.",
            )

    @classmethod
    def ignores(cls, asked: Asked) -> Iterator[Remark]:
        yield from super().ignores(asked)
        number, size = asked.options.negatives, asked.batch_size
        if "contrast" in asked.terms and size is not None and number > max(size, CSDConfig.negatives):
            yield ("method", "negatives"), f"acts as {size}: negatives are images of the batch, which has {size}."

    def setup(self) -> None:
        self.slim = Slim(self.student, self.options.width)
        if "contrast" in self.active:
            self.vgg = VGG19Features(self.options.vgg, layers=CSD_LAYERS, input_norm="255")

    def forward(self, batch: Batch, step: int) -> Step:
        sr = self.slim(batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt})
        if "teacher_pixel" in self.active or "contrast" in self.active:
            with torch.set_grad_enabled("teacher_pixel" in self.active):
                wide = self.student(batch.lq)
            losses |= self.image_losses(wide, {"teacher_pixel": batch.gt})
            if "contrast" in self.active:
                losses["contrast"] = self._contrast(sr, wide.detach(), batch.lq)
        return Step(sr, losses)

    def _contrast(self, sr: Tensor, wide: Tensor, lq: Tensor) -> Tensor:
        chosen = lq[: self.options.negatives]
        enlarged = F.interpolate(chosen, size=sr.shape[-2:], mode="bicubic", align_corners=False)
        with torch.no_grad():
            positive, negatives = self.vgg(wide), self.vgg(enlarged)
        anchor = self.vgg(sr)
        return contrastive_ratio_loss(
            list(anchor.values()), list(positive.values()), list(negatives.values()), weights=LAYER_WEIGHTS
        )

    def deployable(self, student: nn.Module) -> nn.Module:
        """The narrow network, standing alone."""
        return extract(student, self.options.width)

    def deployable_arch(self, arch: Mapping[str, Any]) -> Mapping[str, Any]:
        first = self.deployable(self.student).get_submodule("conv_first")
        assert isinstance(first, nn.Conv2d)
        return {"type": arch["type"], "args": {**arch["args"], "num_feat": first.out_channels}}

    def metadata(self) -> dict[str, Any]:
        return {"width": self.options.width}

    def check_metadata(self, facts: Mapping[str, Any]) -> None:
        if facts.get("width", self.options.width) != self.options.width:
            raise MtkdError(
                f"These weights were trained with method.width {facts['width']}, and the option file says "
                f"{self.options.width}: a slice of another width was never trained and scores far below bicubic. Give "
                "the width of the file."
            )
