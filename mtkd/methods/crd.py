"""CRD for super-resolution: at a position, student and teacher say the same thing, and something else elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtkd.contracts import Batch, MtkdError, Step
from mtkd.losses.contrastive import info_nce_loss
from mtkd.losses.numerics import unit_vectors, upcast
from mtkd.methods.base import Term
from mtkd.methods.taps import COMPARED, FeatureMethod, TapConfig, deep_features

CONTRAST = COMPARED + (  # noqa: RUF005
    "embed_dim",
    "positions",
    "temperature",
    "queue_size",
    "radius",
    "train_teacher_head",
)


@dataclass(frozen=True, kw_only=True)
class CRDConfig(TapConfig):
    """Options of CRD: one tap of each network, and how its vectors are contrasted.

    Attributes:
        embed_dim: width of the embeddings.
        positions: positions per image at which student and teacher are compared; all of them where there are fewer.
        temperature: divides the cosines.
        queue_size: embeddings of earlier batches kept as further negatives, 0 for the batch's own alone.
        radius: positions of the anchor's image at most this many rows and columns away are not negatives.
        train_teacher_head: whether the teacher's head learns; otherwise it stays the random projection it began as.
    """

    embed_dim: int = 128
    positions: int = 64
    temperature: float = 0.07
    queue_size: int = 4096
    radius: int = 4
    train_teacher_head: bool = True

    def __post_init__(self) -> None:
        for name, least in (("embed_dim", 1), ("positions", 1), ("queue_size", 0), ("radius", 0)):
            if getattr(self, name) < least:
                raise MtkdError(f"{name} of CRD must be {least} or more, found {getattr(self, name)}.")
        if not self.temperature > 0:
            raise MtkdError(f"temperature of CRD must be above 0, found {self.temperature}.")


class CRD(FeatureMethod):
    """`L = L1(sr, gt) + 0.005 * (NCE(s; t) + NCE(t; s))` on embeddings s, t of unit length at the same positions.

    NCE(a; b) = mean over anchors of -log( exp(a.b+ / tau) / (exp(a.b+ / tau) + sum over negatives exp(a.b- / tau)) ),
    tau = 0.07, b+ the other network's embedding at the anchor's position. Embeddings are 1x1 projections of one tap of
    each network at `positions` random positions per image. Negatives are the other positions of the batch and a queue
    of earlier embeddings; they carry no gradient. Left out as false negatives: neighbours within `radius`, and
    everything from another crop of the anchor's own training image, in the batch or in the queue.

    Deviations. CRD contrasts one vector per image with 16,384 draws from two memories indexed by image and scores them
    with NCE under normalisation constants taken from the first batch. A random crop is a new image every time, so an
    index means nothing here: the memories became queues (He et al., arXiv 1911.05722), the loss InfoNCE, and negatives
    are drawn from positions, not from other classes. Kept are the two learnt heads, the unit length, tau, and the sum
    of both directions. CRD's weight 0.8 belongs beside a cross-entropy; 0.005 is ours, from measured gradients
    (docs/methods.md).

    The queues are buffers: saved, resumed, and on several devices those of the first one.
    """

    paper = "CRD (Tian et al., ICLR 2020, arXiv 1910.10699), adapted to images without classes"
    Config = CRDConfig
    rule = staticmethod(deep_features)
    num_taps = 1
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "target": Term("sr against the teacher's image", weight=None, loss="L1Loss", uses=("teachers",)),
        "contrast": Term(
            "embeddings of student and teacher, position by position", weight=0.005, uses=CONTRAST, partial=True
        ),
    }

    queue_student: Tensor
    queue_teacher: Tensor
    queue_image: Tensor
    queue_next: Tensor

    def setup(self) -> None:
        super().setup()
        if "contrast" not in self.active:
            return
        self.taps.check("contrast", _same_positions)
        options = self.options
        (of_teacher,) = self.taps.teachers.values()
        width, teacher_width = self.taps.student.shapes[0][1], of_teacher.shapes[0][1]
        self.student_head = nn.Linear(width, options.embed_dim)
        self.teacher_head = nn.Linear(teacher_width, options.embed_dim).requires_grad_(options.train_teacher_head)
        size = options.queue_size
        self.register_buffer("queue_student", torch.zeros(size, options.embed_dim))
        self.register_buffer("queue_teacher", torch.zeros(size, options.embed_dim))
        # The training image behind each entry; -1 marks an entry that is still empty.
        self.register_buffer("queue_image", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("queue_next", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Batch, step: int) -> Step:
        if not self.reads_teachers:
            sr = self.student(batch.lq)
            return Step(sr, self.image_losses(sr, {"pixel": batch.gt}))
        ((name, teacher),) = self.teachers.items()
        sr, (student_map,) = self.taps.student.read(self.student, batch.lq)
        target, (teacher_map,) = self.taps.teachers[name].read(teacher, batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt, "target": target})
        if "contrast" not in self.active:
            return Step(sr, losses)
        places = self._places(student_map)
        s = self._embedded(student_map, places, self.student_head)
        t = self._embedded(teacher_map, places, self.teacher_head)
        images = batch.index.repeat_interleave(places.shape[1])
        left_out = self._left_out(places, student_map.shape[-1], images)
        losses["contrast"] = self._nce(s, t, self.queue_teacher, left_out) + self._nce(
            t, s, self.queue_student, left_out
        )
        logs = {"agreement": (s * t).sum(1).mean().detach()}
        if self.options.queue_size:
            self._enqueue(s, t, images)
            logs["queue_fill"] = (self.queue_image >= 0).float().mean()
        return Step(sr, losses, logs=logs)

    def _places(self, features: Tensor) -> Tensor:
        """(N, P) distinct random positions of each image, as indices into H * W."""
        n, _, height, width = features.shape
        positions = min(self.options.positions, height * width)
        return torch.rand(n, height * width, device=features.device).topk(positions, sorted=False).indices

    @staticmethod
    def _embedded(features: Tensor, places: Tensor, head: nn.Module) -> Tensor:
        """(N * P, embed_dim) rows of unit length."""
        index = places[:, None].expand(-1, features.shape[1], -1)
        rows = features.flatten(2).gather(2, index).transpose(1, 2).flatten(0, 1)
        (embedded,) = upcast(head(rows))
        return unit_vectors(embedded, 1)

    def _left_out(self, places: Tensor, width: int, images: Tensor) -> Tensor:
        """(R, R + queue) pairs of anchors and candidates that are not negatives; R = N * P."""
        n, positions = places.shape
        flat = places.flatten()
        row, column = flat // width, flat % width
        crop = torch.arange(n, device=places.device).repeat_interleave(positions)
        near = _gap(row).maximum(_gap(column)) <= self.options.radius
        in_batch = (images[:, None] == images) & (near | (crop[:, None] != crop))
        # The anchor's own row of the candidates is its positive, which stands apart.
        in_batch = in_batch.fill_diagonal_(True)
        in_queue = (self.queue_image < 0) | (images[:, None] == self.queue_image)
        return torch.cat([in_batch, in_queue], 1)

    def _nce(self, anchor: Tensor, positive: Tensor, queue: Tensor, left_out: Tensor) -> Tensor:
        negatives = torch.cat([positive.detach(), queue.to(positive.dtype)])
        return info_nce_loss(anchor, positive, negatives, temperature=self.options.temperature, mask=left_out)

    @torch.no_grad()
    def _enqueue(self, student: Tensor, teacher: Tensor, images: Tensor) -> None:
        size = self.options.queue_size
        entries = min(len(images), size)
        index = (self.queue_next + torch.arange(entries, device=images.device)) % size
        for queue, rows in (
            (self.queue_student, student),
            (self.queue_teacher, teacher),
            (self.queue_image, images),
        ):
            queue.index_copy_(0, index, rows[-entries:].to(queue.dtype))
        self.queue_next.add_(entries).remainder_(size)


def _gap(x: Tensor) -> Tensor:
    return (x[:, None] - x).abs()


def _same_positions(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape[-2:] != teacher.shape[-2:]:
        raise MtkdError(
            f"it compares positions with positions, and the maps are {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    return student
