"""DUKD: more images to imitate the teacher on, made from the training pair, and answers that turn with the input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step
from mtkd.data.resize import imresize
from mtkd.methods.base import Method, Term
from mtkd.methods.tape import in_one_pass

NUM_OPS = 4
"""Colour inversion, vertical flip, horizontal flip, transposition: the columns of `draw_ops`, in order of use."""


@dataclass(frozen=True, kw_only=True)
class DUKDConfig:
    """Options of DUKD.

    Attributes:
        tiles: tiles of each gt that become inputs (zoom-in), at most scale^2.
        consistency: probability of each of the four operations of label consistency, 0 for none.
    """

    tiles: int = 1
    consistency: float = 0.3

    def __post_init__(self) -> None:
        if self.tiles < 1:
            raise MtkdError(f"tiles of DUKD must be 1 or more, found {self.tiles}; zoom_in_opt: ~ does without.")
        if not 0 <= self.consistency <= 1:
            raise MtkdError(f"consistency of DUKD is a probability, found {self.consistency}.")


class DUKD(Method):
    """`L = 5 * L1(S(lq), gt) + L1(S(lq), T(lq)) + zoom-in + 5 * zoom-out(label) + zoom-out(teacher)`.

    - zoom-in: random lq-sized tiles x of gt are inputs whose answer only the teacher knows; with label
      consistency, L1(F^-1(S(F(x))), T(x)), F a random subset of four operations, drawn anew for each tile;
    - zoom-out: lq', lq made smaller by MATLAB's bicubic, has an answer: L1(S(lq'), lq) and L1(S(lq'), T(lq')).

    Published first as "Data Upcycling Knowledge Distillation", then, under review and at ICLR 2025, as AugKD.

    Weights 5 : 1 and probability 0.3 are those of the authors' EDSR and SwinIR option files (RCAN: 1 : 1 or 2 : 1, and
    zoom-out only in EDSR's and RCAN x3's).

    Deviations. One optimizer step on the sum, where the authors' code takes a second one on the extra images, with the
    first one's gradients left in; the teacher is frozen; F^-1 undoes the operations in reverse order (the code repeats
    their order, which is wrong whenever transposition meets one flip alone, 12.6 % of the draws). Tiles that are not
    square are never transposed. Each image draws its own tiles, where the code draws one set of positions for the whole
    batch. Where lq is not divisible by the scale, zoom-out starts from lq cut at the bottom and the right.
    """

    paper = (
        "AugKD: Ingenious Augmentations Empower Knowledge Distillation for Image Super-Resolution (Zhang et al., ICLR "
        "2025), first called DUKD: Data Upcycling Knowledge Distillation for Image Super-Resolution"
    )
    teacher_use = "network"
    gt_terms = ("pixel", "zoom_in")
    Config = DUKDConfig
    terms = {
        "pixel": Term("sr against gt", weight=5.0, loss="L1Loss"),
        "target": Term("sr against the teacher's image", loss="L1Loss", uses=("teachers",)),
        "zoom_in": Term(
            "tiles of gt as inputs, against the teacher's images of them",
            loss="L1Loss",
            uses=("teachers", "tiles", "consistency"),
        ),
        "zoom_out": Term("sr of the smaller lq against lq", weight=5.0, loss="L1Loss"),
        "zoom_out_target": Term(
            "sr of the smaller lq against the teacher's image of it", loss="L1Loss", uses=("teachers",)
        ),
    }

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        if asked.options.tiles > asked.scale**2:
            yield (
                ("method", "tiles"),
                f"DUKD cuts gt into scale^2 = {asked.scale**2} tiles of lq's size, and method.tiles "
                f"is {asked.options.tiles}.",
            )

    def setup(self) -> None:
        self.require_teachers(exactly=1)

    def forward(self, batch: Batch, step: int) -> Step:
        (teacher,) = self.require_teachers(exactly=1)
        lq = batch.lq
        tiles = self._tiles(batch) if "zoom_in" in self.active else lq[:0]
        square = lq.shape[-2] == lq.shape[-1]
        ops = draw_ops(len(tiles), self.options.consistency, device=lq.device, transpose=square)
        sr, sr_tiles = in_one_pass(self.student, lq, transformed(tiles, ops))
        targets = {"pixel": batch.gt}
        if "target" in self.active:
            targets["target"], answers = in_one_pass(teacher, lq, tiles)
        else:
            answers = teacher(tiles) if len(tiles) else tiles
        losses = self.image_losses(sr, targets)
        if "zoom_in" in self.active:
            losses |= self.image_losses(restored(sr_tiles, ops), {"zoom_in": answers})
        if "zoom_out" in self.active or "zoom_out_target" in self.active:
            label, smaller = self._zoomed_out(lq)
            answer = teacher(smaller) if "zoom_out_target" in self.active else label
            losses |= self.image_losses(self.student(smaller), {"zoom_out": label, "zoom_out_target": answer})
        return Step(sr, losses)

    def _tiles(self, batch: Batch) -> Tensor:
        """(N * tiles, 3, h, w) distinct random tiles of each gt, on its grid of lq-sized tiles."""
        height, width = batch.lq.shape[-2:]
        tiles = batch.gt.unflatten(-2, (-1, height)).unflatten(-1, (-1, width)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        chosen = torch.rand(tiles.shape[:2], device=tiles.device).topk(self.options.tiles, sorted=False).indices
        rows = torch.arange(len(tiles), device=tiles.device)[:, None]
        return tiles[rows, chosen].flatten(0, 1)

    def _zoomed_out(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        """lq cut to a multiple of the scale, and the same made smaller by the scale."""
        scale = self.task.scale
        height, width = lq.shape[-2:]
        label = lq[..., : height - height % scale, : width - width % scale]
        return label, imresize(label, 1 / scale)


def draw_ops(number: int, probability: float, *, device: torch.device | str, transpose: bool = True) -> Tensor:
    """(number, 4) bool: which operations each image gets, independent of each other."""
    ops = torch.rand(number, NUM_OPS, device=device) < probability
    ops[:, 3] &= transpose
    return ops


def transformed(x: Tensor, ops: Tensor) -> Tensor:
    """F(x): each of the (N, C, H, W) images under its row of `ops`; square where anything is transposed."""
    invert, vertical, horizontal, transpose = _masks(ops)
    x = torch.where(invert, 1 - x, x)
    x = torch.where(vertical, x.flip(-2), x)
    x = torch.where(horizontal, x.flip(-1), x)
    return torch.where(transpose, x.mT, x) if x.shape[-2] == x.shape[-1] else x


def restored(x: Tensor, ops: Tensor) -> Tensor:
    """F^-1(x): the operations of `transformed` undone, the last one first."""
    invert, vertical, horizontal, transpose = _masks(ops)
    x = torch.where(transpose, x.mT, x) if x.shape[-2] == x.shape[-1] else x
    x = torch.where(horizontal, x.flip(-1), x)
    x = torch.where(vertical, x.flip(-2), x)
    return torch.where(invert, 1 - x, x)


def _masks(ops: Tensor) -> tuple[Tensor, ...]:
    return ops[:, :, None, None, None].unbind(1)
