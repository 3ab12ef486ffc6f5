"""On-line privileged teacher: a block that sees the ground truth refines the student's features while both train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step
from mtkd.losses.features.elementwise import check_share, improvement_mask, masked_distance_loss
from mtkd.methods.base import Method, Term
from mtkd.runtime.modes import evaluating

PROBE_SIZE = 16
"""Side of the lq on which the student's tail is tried out."""

BLOCK = ("tail", "num_feat", "num_block", "code_channels", "code_stride", "detach_student")


@dataclass(frozen=True, kw_only=True)
class OnlineTeacherConfig:
    """Options of the on-line teacher.

    Attributes:
        tail: module of the student that takes its last map at lq size and from which on only the upsampler follows:
            `upsample` of EDSR, RCAN and SwinIR, `last_layer` of FSRCNN.
        margin: how much better than the student, in mean absolute error on [0, 1], the teacher must be at a pixel for
            the student to follow it there; RIFE's is 0.01, -1 follows it everywhere.
        share: of an image's pixels at most this share, those with the largest gains, in (0, 1]; 1 leaves all of them
            to `margin`.
        num_feat: channels inside the teacher block.
        num_block: residual blocks of the teacher block.
        code_channels: channels of the code of gt.
        code_stride: lq pixels that share one position of the code, along each axis.
        detach_student: keep the teacher's gradient out of the student's body (the shared tail still learns from it).
    """

    tail: str = "upsample"
    margin: float = 0.0
    share: float = 1.0
    num_feat: int = 64
    num_block: int = 2
    code_channels: int = 4
    code_stride: int = 2
    detach_student: bool = False

    def __post_init__(self) -> None:
        for name in ("num_feat", "code_channels", "code_stride"):
            if getattr(self, name) < 1:
                raise MtkdError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        check_share(self.share)


class OnlineTeacher(Method):
    """`L = L1(sr, gt) + L1(sr_T, gt) + 0.2 * mean(m * |sg(f_T) - f_S|)`, everything trained in one run.

    f_S is the map that the student's upsampler takes. The teacher block adds to it what it makes of f_S and of a code
    of gt, f_T = f_S + delta, and the student's own tail turns f_T into sr_T. m is 1 where sr_T is better than sr by
    more than `margin`. The block is thrown away after training.

    This is RIFE's privileged distillation (frame interpolation) carried over, not a published method. Chosen here: the
    code is a bottleneck (by default 4 channels at half the lq's size: 1 / 48 of gt's numbers at x4), because a wide
    one would let the teacher copy gt; distances and the block's input are divided by the root mean square of f_S, one
    number an image and detached, because features of EDSR are 255 times those of SwinIR; the last convolution of the
    block starts small, so that the teacher starts where the student is. As in RIFE the teacher's gradient reaches the
    student through f_S (`detach_student` stops it) and the target of the distillation is detached.

    Weight and margin are not RIFE's, which are 0.01 and 0.01: its frames differ by more than super-resolved images do,
    and here those left the distillation 0.2 to 4 % of the pixel term's gradient (docs/methods.md).

    Terms that are off by default: `image_distill`, the same mask on |sr - sg(sr_T)|, and its control `image_control`,
    the same mask on |sr - gt|, which says whether the teacher's image brings more than the weighting.
    """

    paper = "after RIFE's privileged distillation (Huang et al., ECCV 2022, arXiv 2011.06294)"
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "teacher_pixel": Term("the teacher's image against gt", loss="L1Loss", uses=BLOCK),
        "distill": Term(
            "student's features against the teacher's, where the teacher is better",
            weight=0.2,
            uses=("margin",),
            partial=True,
        ),
        "image_distill": Term(
            "sr against the teacher's image, where the teacher is better", weight=None, uses=("margin",)
        ),
        "image_control": Term("sr against gt, where the teacher is better", weight=None, uses=("margin",)),
    }
    Config = OnlineTeacherConfig
    alone = "its teacher is made of the student's own features, inside the student's pass"

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        idle = [name for name in asked.terms if name != "pixel"]
        if idle and "teacher_pixel" not in asked.terms:
            yield (
                ("train", f"{idle[0]}_opt"),
                f"OnlineTeacher's teacher learns by teacher_pixel_opt, which is off, and {idle[0]}_opt would teach the "
                "student what it has not learnt. Leave teacher_pixel_opt on.",
            )

    def setup(self) -> None:
        if "teacher_pixel" not in self.active:
            return
        options = self.options
        self.block = TeacherBlock(
            feature_channels(self.student, options.tail),
            self.task.scale,
            num_feat=options.num_feat,
            num_block=options.num_block,
            code_channels=options.code_channels,
            code_stride=options.code_stride,
        )

    def forward(self, batch: Batch, step: int) -> Step:
        lq, gt = batch.lq, batch.gt
        if "teacher_pixel" not in self.active:
            sr = self.student(lq)
            return Step(sr, self.image_losses(sr, {"pixel": gt}))
        deltas: list[tuple[Tensor, Tensor]] = []

        def twin(features: Tensor) -> Tensor:
            seen = features.detach() if self.options.detach_student else features
            unit = features.detach().float().square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
            delta = self.block(seen / unit, gt)
            deltas.append((features / unit, delta))
            return seen + (unit * delta).to(seen.dtype)

        both = with_twin(self.student, self.options.tail, lq, twin)
        sr, teacher_sr = both.chunk(2)
        ((features, delta),) = deltas
        losses = self.image_losses(sr, {"pixel": gt}) | self.image_losses(teacher_sr, {"teacher_pixel": gt})
        mask = improvement_mask(sr, teacher_sr, gt, margin=self.options.margin, share=self.options.share)
        if "distill" in self.active:
            # SwinIR pads its maps to whole windows at the right and bottom. The mask covers the image alone.
            cut = (..., slice(lq.shape[-2]), slice(lq.shape[-1]))
            wanted = features.detach() + delta.detach()
            losses["distill"] = masked_distance_loss(features[cut], wanted[cut], mask=mask)
        if "image_distill" in self.active:
            losses["image_distill"] = (mask * (sr - teacher_sr.detach()).abs()).mean()
        if "image_control" in self.active:
            losses["image_control"] = (mask * (sr - gt).abs()).mean()
        return Step(sr, losses, logs={"mask_fraction": mask.mean(), "teacher_gain_db": _gain(sr, teacher_sr, gt)})


class TeacherBlock(nn.Module):
    """(features (N, C, h, w), gt) -> correction of the features, shaped alike.

    gt is laid out at lq size (`pixel_unshuffle`), squeezed into `code_channels` at 1 / `code_stride` of the lq's size,
    and joined with the features. Features larger than the lq see no code in their margin.
    """

    def __init__(
        self, channels: int, scale: int, *, num_feat: int, num_block: int, code_channels: int, code_stride: int
    ) -> None:
        super().__init__()
        self.scale = scale
        self.encoder = nn.Sequential(
            nn.Conv2d(3 * scale**2, num_feat, 3, code_stride, 1),
            nn.PReLU(),
            nn.Conv2d(num_feat, code_channels, 1),
        )
        self.head = nn.Conv2d(channels + code_channels, num_feat, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.PReLU(), nn.Conv2d(num_feat, num_feat, 3, padding=1)) for _ in range(num_block)
        )
        self.last = nn.Conv2d(num_feat, channels, 3, padding=1)
        # Not zero: the layers before it would have no gradient in the first step.
        nn.init.normal_(self.last.weight, std=1e-3)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor, gt: Tensor) -> Tensor:
        h, w = gt.shape[-2] // self.scale, gt.shape[-1] // self.scale
        code = self.encoder(F.pixel_unshuffle(gt, self.scale) - 0.5)
        code = F.interpolate(code, size=(h, w), mode="nearest")
        code = F.pad(code, (0, features.shape[-1] - w, 0, features.shape[-2] - h))
        x = self.head(torch.cat([features, code], 1))
        for block in self.body:
            x = x + block(x)
        return self.last(x)


def with_twin(net: nn.Module, tail: str, lq: Tensor, twin: Callable[[Tensor], Tensor]) -> Tensor:
    """Images (2N, 3, H, W): those of `net(lq)`, then those that the tail makes of `twin(f)`, in one pass.

    f is the input of the module `tail`; `twin(f)` is appended to it on the batch axis, so that every layer from there
    on runs once for both. The network must be a chain of layers from that module on.
    """
    handle = net.get_submodule(tail).register_forward_pre_hook(
        lambda _module, inputs: (torch.cat([inputs[0], twin(inputs[0])]), *inputs[1:])
    )
    try:
        return net(lq)
    finally:
        handle.remove()


def feature_channels(net: nn.Module, tail: str) -> int:
    """Channels of what the module `tail` takes, after trying out `with_twin` on a small lq.

    Raises:
        MtkdError: there is no such module, it takes no map at lq size, or the layers behind it are no chain.
    """
    name = type(net).__name__
    outer = ", ".join(child for child, _ in net.named_children())
    if tail not in dict(net.named_modules()) or not tail:
        raise MtkdError(
            f"method.tail: {name} has no module {tail!r}. Name the one that takes its last map at lq size; its outer "
            f"modules are {outer}."
        )
    like = next(net.parameters())
    # Two images, because with one a map that bypasses the tail would be spread over both unnoticed.
    lq = torch.zeros(2, 3, PROBE_SIZE, PROBE_SIZE, device=like.device, dtype=like.dtype)
    seen: list[Tensor] = []

    def twin(features: Tensor) -> Tensor:
        seen.append(features)
        return features

    try:
        with torch.no_grad(), evaluating(net):
            both = with_twin(net, tail, lq, twin)
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise MtkdError(
            f"method.tail: from {tail!r} on {name} is no chain of layers that could run on the student's and the "
            f"teacher's map at once ({str(error).splitlines()[0]}). Name a later one of its modules: {outer}."
        ) from error
    if len(seen) != 1 or len(both) != 2 * len(lq) or seen[0].dim() != 4 or min(seen[0].shape[-2:]) < PROBE_SIZE:
        raise MtkdError(
            f"method.tail: the module {tail!r} of {name} does not run once on a map (N, C, H, W) at lq size. Name the "
            f"one that takes its last such map; its outer modules are {outer}."
        )
    return seen[0].shape[1]


@torch.no_grad()
def _gain(sr: Tensor, teacher_sr: Tensor, gt: Tensor) -> Tensor:
    """PSNR of the teacher's batch minus that of the student's, in dB, on RGB."""
    student, teacher = ((image.float() - gt.float()).square().mean().clamp_min(1e-12) for image in (sr, teacher_sr))
    return 10 * torch.log10(student / teacher)
