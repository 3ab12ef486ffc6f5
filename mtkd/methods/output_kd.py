"""Output distillation: the student imitates a teacher's image, or several teachers' images, beside the ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mtkd.contracts import Asked, Batch, Remark, Step
from mtkd.losses.numerics import check_choice
from mtkd.methods.base import Method, Term

Several = Literal["error", "mean", "random"]


class OutputKD(Method):
    """`L = L1(sr, gt) + L1(sr, target)`, the "Logits" row of the field's tables.

    Equal weights as in DCKD's equations 2-3 and the plain-KD option files of DUKD; FAKD's 0.5 / 0.5 is the same
    direction. `target` is the teacher's image, or the fused or mean image when `fusion` is declared. Without `fusion`,
    `several` says what becomes of several teachers: nothing ("error"), their mean in every iteration ("mean", the same
    as `fusion: mean`, which can also be stored), or one of them, drawn anew in every iteration with equal chances
    ("random", as FAKD's code does).
    """

    paper = "the logits baseline of DCKD (AAAI 2025, arXiv 2412.08939), equations 2-3; several teachers as in FAKD"
    takes_luma = True
    teacher_use = "image"
    gt_terms = ("pixel",)
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "target": Term("sr against the teacher's image", loss="L1Loss", uses=("several", "teachers")),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options under `method:`.

        Attributes:
            several: what becomes of several teachers.
        """

        several: Several = "error"

        def __post_init__(self) -> None:
            check_choice("several of OutputKD", self.several, Several)

    @classmethod
    def takes_several_teachers(cls, options: Mapping[str, Any]) -> bool:
        return options.get("several", "error") != "error"

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        if asked.options.several != "error" and len(asked.teachers) < 2:
            yield (
                ("method", "several"),
                f"`method.several: {asked.options.several}` says how several teachers become one target, and this run "
                f"has {len(asked.teachers)} ({', '.join(asked.teachers) or 'its targets come from a store'}). Declare "
                "more teachers, without `fusion` and `target_store`, or remove the option.",
            )

    def forward(self, batch: Batch, step: int) -> Step:
        sr = self.student(batch.lq)
        targets = {"pixel": batch.gt}
        if "target" in self.active:
            targets["target"] = self.target(batch)
        return Step(sr, self.image_losses(sr, targets))

    def target(self, batch: Batch) -> Tensor:
        if self.options.several == "error":
            return super().target(batch)
        names = list(self.teachers)
        if self.options.several == "random":
            # On the host, where no device waits for the answer; every rank draws its own.
            return self.answer(names[int(torch.randint(len(names), ()))], batch)
        total = self.answer(names[0], batch)
        for name in names[1:]:
            total = total + self.answer(name, batch)
        return total / len(names)
