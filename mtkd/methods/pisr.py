"""PISR: a teacher that sees the ground truth through a narrow encoder, and a student that starts as its decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step
from mtkd.losses.features.vid import vid_loss
from mtkd.methods.asked import tried
from mtkd.methods.base import Method, Term
from mtkd.methods.taps import TapConfig, Taps, deep_features, only_teacher

ScaleOf = Literal["element", "channel", "position", "image"]
"""What has a scale of its own in the estimator's density. PISR's code calls them None, C, HW and CHW."""


class PISRTeacher(Method):
    """Step 1: `L = L1(decoder(encoder(gt)), gt) + 1e-4 * L1(encoder(gt), lq)`; the run's network is the teacher.

    The imitation term keeps the code close to a real lq, so that the decoder can serve as the student's start. The
    network is a `PrivilegedTeacher`; validation runs its decoder on the real lq, as the student will.

    Deviations: RGB instead of the Y channel; encoder and FSRCNN start as FSRCNN's paper says (He, and 0.001 for the
    deconvolution), where the authors' configurations leave PyTorch's default (a fresh network's images have a standard
    deviation of 0.003 instead of 0.16, its codes one of 0.31 instead of 0.042).
    """

    paper = "PISR (Lee et al., ECCV 2020, arXiv 2007.07524), step 1"
    terms = {
        "pixel": Term("decoder(encoder(gt)) against gt", loss="L1Loss"),
        "imitation": Term("encoder(gt) against lq", weight=1e-4, loss="L1Loss", partial=True),
    }

    def setup(self) -> None:
        _privileged(self.student, "network_g")

    def forward(self, batch: Batch, step: int) -> Step:
        teacher = _privileged(self.student, "network_g")
        code = teacher.encode(batch.gt)
        sr = teacher.decoder(code)
        losses = self.image_losses(sr, {"pixel": batch.gt}) | self.image_losses(code, {"imitation": batch.lq})
        return Step(sr, losses)

    def deployable(self, student: nn.Module) -> nn.Module:
        """The decoder: the encoder needs the ground truth, which is not there at test time."""
        return student.get_submodule("decoder")

    def deployable_arch(self, arch: Mapping[str, Any]) -> Mapping[str, Any]:
        decoder = dict(arch["args"].get("decoder") or {"type": "FSRCNN"})
        return {"type": decoder.pop("type"), "args": {"upscale": arch["args"]["upscale"], **decoder}}


@dataclass(frozen=True, kw_only=True)
class PISRConfig(TapConfig):
    """Options of PISR.

    Attributes:
        student_taps: one tap; None takes what the upsampler gets (`expanding` of FSRCNN).
        teacher_taps: one tap of the teacher's decoder, named as in the decoder; None as above.
        init_from_teacher: start from the decoder's weights, as published.
        scale_of: what has a scale of its own in the estimator's density.
    """

    init_from_teacher: bool = True
    scale_of: ScaleOf = "element"


class PISR(Method):
    """Step 2: `L = L1(sr, gt) + 1e-6 * VID(f_S; f_T)`, the student starting as the teacher's decoder.

    VID is the negative log-likelihood of the teacher's map f_T of `encoder(gt)` under a Laplace (or Gaussian) density
    whose location and scale an estimator makes of the student's map f_S. The estimator trains along and is thrown away.

    Deviations: RGB instead of the Y channel; the teacher runs without gradients and its map is detached (the official
    code builds its graph for nothing); the density's wrong constant is left out, so values are C * log(2 pi) / 2 lower
    than the official log; FSRCNN starts as its own paper says (He, and 0.001 for the deconvolution), where the authors'
    configurations leave PyTorch's default. The weights of `path.pretrain_network_g`, where given, replace those of the
    decoder.
    """

    paper = "PISR (Lee et al., ECCV 2020, arXiv 2007.07524), step 2"
    teacher_use = "network"
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "vid": Term(
            "negative log-likelihood of the teacher's map given the student's",
            weight=1e-6,
            options={"pdf": "laplace"},
            uses=("student_taps", "teacher_taps", "scale_of", "teachers"),
            partial=True,
        ),
    }
    Config = PISRConfig

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        pdf = asked.terms.get("vid", {}).get("pdf", "laplace")
        yield from tried(("train", "vid_opt", "pdf"), lambda s, t: vid_loss(s, t, scale=torch.ones_like(t), pdf=pdf))

    @classmethod
    def ignores(cls, asked: Asked) -> Iterator[Remark]:
        for key, why in super().ignores(asked):
            if key[0] == "method" or not asked.options.init_from_teacher:
                yield key, why

    def setup(self) -> None:
        if not self.active:
            # Built to run a trained student: its weights are loaded, and there is no teacher to be had.
            return
        decoder = self._teacher().decoder
        if self.options.init_from_teacher:
            _initialise(self.student, decoder)
        if "vid" in self.active:
            self.taps = _one_tap(self.student, self.options.student_taps, "method.student_taps")
            self.teacher_taps = _one_tap(decoder, self.options.teacher_taps, "method.teacher_taps")
            ours, theirs = self.taps.shapes[0], self.teacher_taps.shapes[0]
            if ours[2:] != theirs[2:]:
                raise MtkdError(
                    f"PISR compares maps of one size. For an lq of 16 x 16 the student's tap {self.taps.names[0]!r} is "
                    f"{ours[2]} x {ours[3]}, the teacher's {self.teacher_taps.names[0]!r} {theirs[2]} x {theirs[3]}."
                )
            self.estimator = Estimator(ours[1], theirs[1], self.options.scale_of)

    def forward(self, batch: Batch, step: int) -> Step:
        if "vid" not in self.active:
            sr = self.student(batch.lq)
            return Step(sr, self.image_losses(sr, {"pixel": batch.gt}))
        teacher, frozen = self._teacher(), only_teacher(self)
        with torch.no_grad(), frozen.autocast(batch.gt):
            _, (wanted,) = self.teacher_taps.read(teacher.decoder, teacher.encode(batch.gt))
        sr, (features,) = self.taps.read(self.student, batch.lq)
        losses = self.image_losses(sr, {"pixel": batch.gt})
        location, scale = self.estimator(features)
        losses["vid"] = vid_loss(location, wanted, scale=scale, pdf=self.term_options["vid"]["pdf"])
        return Step(sr, losses)

    def student_modules(self) -> Sequence[str]:
        return self.taps.modules if "vid" in self.active else ()

    def _teacher(self) -> Privileged:
        return _privileged(only_teacher(self).net, f"teachers.{next(iter(self.teachers))}.network")


class Estimator(nn.Module):
    """Student's map (N, in_channels, H, W) -> location (N, out_channels, H, W) and a positive scale that broadcasts to
    it. Two heads of two 1x1 convolutions with a PReLU between; 12,770 parameters for 56 channels.

    `scale_of` is what has a scale of its own: "element", "channel" (averaged over positions after the convolutions),
    "position" (one for all channels) or "image" (both). Between its convolutions every head is as wide as the teacher's
    map, whatever it answers with; in the authors' code as wide as the student's, which has the same width.
    """

    def __init__(self, in_channels: int, out_channels: int, scale_of: ScaleOf = "element") -> None:
        super().__init__()
        self.location = _head(in_channels, out_channels, out_channels)
        self.scale = _head(in_channels, out_channels, 1 if scale_of in ("position", "image") else out_channels)
        self.pooled = scale_of in ("channel", "image")

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale(features)
        if self.pooled:
            scale = scale.mean((2, 3), keepdim=True)
        return self.location(features), F.softplus(scale)


def _head(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, hidden, 1), nn.PReLU(), nn.Conv2d(hidden, out_channels, 1))


def _one_tap(net: nn.Module, given: list[str] | None, key: str) -> Taps:
    names = given if given is not None else ["expanding"] if hasattr(net, "expanding") else deep_features(net)
    if len(names) != 1:
        raise MtkdError(f"PISR has one tap, and {key} names {len(names)} ({', '.join(names)}).")
    return Taps(net, names, key=key)


class Privileged(Protocol):
    """What PISR asks of its teacher: `encode`, gt -> code of lq's size, and `decoder`, code -> sr."""

    decoder: nn.Module

    def encode(self, gt: Tensor) -> Tensor:
        """The code (N, 3, H, W) of gt (N, 3, H * scale, W * scale)."""
        ...


def _privileged(net: nn.Module, key: str) -> Privileged:
    if not (hasattr(net, "encode") and hasattr(net, "decoder")):
        raise MtkdError(
            f"PISR's teacher encodes the ground truth, and {key} ({type(net).__name__}) has no encoder. Set "
            f"`{key}: {{type: PrivilegedTeacher, decoder: {{type: {type(net).__name__}, ...}}}}`."
        )
    return cast(Privileged, net)


def _initialise(student: nn.Module, decoder: nn.Module) -> None:
    theirs = decoder.state_dict()
    shapes, wanted = ({key: value.shape for key, value in state.items()} for state in (student.state_dict(), theirs))
    different = [key for key in wanted | shapes if wanted.get(key) != shapes.get(key)]
    if different:
        raise MtkdError(
            f"PISR starts the student {type(student).__name__} as the teacher's decoder {type(decoder).__name__}, and "
            f"they differ in {len(different)} of their weights, {different[0]} first. Give both the same network, or "
            "start from elsewhere with method: {init_from_teacher: false}."
        )
    student.load_state_dict(theirs)
