"""DCKD: away from what the student could do a while ago, towards the teacher, in a VQGAN's features and codes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mtkd.contracts import Asked, Batch, MtkdError, Remark, Step
from mtkd.losses.contrastive import contrastive_ratio_loss
from mtkd.losses.vqgan import VQGANFeatures, code_distribution_loss
from mtkd.methods.base import Method, Term
from mtkd.methods.dukd import draw_ops, restored, transformed
from mtkd.methods.tape import in_one_pass

LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Weights of VQGAN's five levels, the finest first."""

NOISE = (1.0, 30.0)
"""Standard deviations of the noise of negatives, in levels of 255."""

PHASE = 100_000
"""Iterations after which the next entry of `refresh` is used."""


@dataclass(frozen=True, kw_only=True)
class DCKDConfig:
    """Options of DCKD.

    Attributes:
        vqgan: VQGAN's weights for the terms contrast and distribution: "zoo:vqgan_f16_1024", a path, or "random" for
            tests.
        probability: of each of the four operations of label consistency.
        negatives: noisy lq whose answers of the history student are pushed away, besides that of lq itself.
        refresh: iterations between refreshments of the history student, one number for each 100,000 iterations; the
            last one holds for the rest.
        history_decay: share of itself that the history student keeps when it is refreshed.
        ema_decay: of the average of the student's weights from which it is refreshed; as `train.ema_decay`.
    """

    vqgan: str | None = None
    probability: float = 0.5
    negatives: int = 4
    refresh: tuple[int, ...] = (1000, 2000, 3000)
    history_decay: float = 0.1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        for name in ("probability", "history_decay", "ema_decay"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise MtkdError(f"{name} of DCKD lies between 0 and 1, found {value}.")
        if self.negatives < 0:
            raise MtkdError(f"negatives of DCKD must be 0 or more, found {self.negatives}.")
        if not self.refresh or min(self.refresh) < 1:
            raise MtkdError(f"refresh of DCKD is a list of one or more numbers of iterations, found {self.refresh}.")


class DCKD(Method):
    """`L = L1(sr, gt) + L1(sr, T(lq)) + L1(sr, F^-1(T(F(lq)))) + 0.1 * contrast + 0.001 * distribution`.

    - consistency: F is a random subset of colour inversion, flips and transposition, each with probability 0.5, drawn
      for each image; here the teacher gets F(lq), where DUKD's student does;
    - contrast: sum over levels i of w_i * mean |phi_i(sr) - phi_i(T(lq))| / mean sum_k |phi_i(sr) - phi_i(n_k)|, phi_i
      the first residual block of each level of VQGAN's encoder, w = 1/32 ... 1. The negatives n_k are answers of the
      history student, to lq and to `negatives` noisy lq (Gaussian, sigma 1 to 30 of 255, grey with probability 0.5);
    - distribution: cross-entropy of VQGAN's codes of sr, given those of T(lq).

    The history student starts as the student. Every `refresh` iterations it becomes 0.1 of itself and 0.9 of the
    average of the student's weights. Both are saved and resumed with the run.

    contrast and distribution are off unless the option file names them, because they need VQGAN's weights. The paper's
    loss has no consistency; the authors' code has it, and it is on here. Formulas, weights and schedule are those of
    their code, also where it takes a softmax twice (`distribution_opt: {softmax_twice: false}` takes one).

    Deviations: the average is the method's own, equal to the run's where `ema_decay` is; grey noise is drawn for each
    image, where BasicSR's function shares one among the batch; images that are not square are not transposed.

    Raises:
        MtkdError: there is not exactly one teacher, or a term needs VQGAN's weights and they are not given.
    """

    paper = "DCKD (Zhou et al., AAAI 2025, arXiv 2412.08939), with the label consistency of its code"
    teacher_use = "network"
    gt_terms = ("pixel",)
    Config = DCKDConfig
    terms = {
        "pixel": Term("sr against gt", loss="L1Loss"),
        "target": Term("sr against the teacher's image", loss="L1Loss", uses=("teachers",)),
        "consistency": Term(
            "sr against the teacher's image of the transformed lq, transformed back",
            loss="L1Loss",
            uses=("teachers", "probability"),
        ),
        "contrast": Term(
            "towards the teacher's image, away from the student's former ones (published: 0.1)",
            weight=None,
            uses=("teachers", "vqgan", "negatives", "refresh", "history_decay", "ema_decay"),
        ),
        "distribution": Term(
            "codes of sr, given the teacher's (published: 0.001)",
            weight=None,
            options={"softmax_twice": True},
            uses=("teachers", "vqgan"),
        ),
    }

    @classmethod
    def refuses(cls, asked: Asked) -> Iterator[Remark]:
        seen = [name for name in ("contrast", "distribution") if name in asked.terms]
        if seen and asked.options.vqgan is None:
            yield (
                ("method", "vqgan"),
                f"DCKD's {' and '.join(seen)} compare images as a VQGAN sees them, and method.vqgan does not say where "
                "its weights are: `vqgan: zoo:vqgan_f16_1024`, or a path. Without them, remove "
                f"{' and '.join(f'train.{name}_opt' for name in seen)}; the other terms need none.",
            )

    def setup(self) -> None:
        if not self.active:
            # Built to run a trained student, without a teacher.
            return
        self.require_teachers(exactly=1)
        seen = [name for name in ("contrast", "distribution") if name in self.active]
        if seen:
            self.vqgan = VQGANFeatures(self.options.vqgan)
        if "contrast" in self.active:
            options = self.options
            self.history = History(
                self.student, average_decay=options.ema_decay, decay=options.history_decay, refresh=options.refresh
            )
        if "distribution" in self.active:
            self.divergence = partial(code_distribution_loss, **self.term_options["distribution"])

    def forward(self, batch: Batch, step: int) -> Step:
        (teacher,) = self.require_teachers(exactly=1)
        lq = batch.lq
        if "contrast" in self.active:
            self.history.follow(self.student, step)
        sr = self.student(lq)
        targets = {"pixel": batch.gt}
        ops = turned = lq[:0]
        if "consistency" in self.active:
            ops = draw_ops(len(lq), self.options.probability, device=lq.device, transpose=lq.shape[-2] == lq.shape[-1])
            turned = transformed(lq, ops)
        if set(self.active) & {"target", "contrast", "distribution"}:
            targets["target"], answers = in_one_pass(teacher, lq, turned)
        else:
            answers = teacher(turned) if len(turned) else turned
        if "consistency" in self.active:
            targets["consistency"] = restored(answers, ops)
        losses = self.image_losses(sr, targets)
        if "contrast" in self.active:
            losses["contrast"] = self._contrast(sr, targets["target"], lq)
        if "distribution" in self.active:
            with torch.no_grad():
                wanted = self.vqgan.distances(targets["target"])
            losses["distribution"] = self.divergence(self.vqgan.distances(sr), wanted)
        return Step(sr, {name: losses[name] for name in self.active})

    def _contrast(self, sr: Tensor, target: Tensor, lq: Tensor) -> Tensor:
        anchors = self.vqgan.levels(sr)
        with torch.no_grad():
            positives = self.vqgan.levels(target)
            inputs = [lq, *(noisy(lq) for _ in range(self.options.negatives))]
            former = [self.vqgan.levels(self.history.past(image)) for image in inputs]
            negatives = [torch.stack(level) for level in zip(*former, strict=True)]
        return contrastive_ratio_loss(anchors, positives, negatives, weights=LAYER_WEIGHTS)


class History(nn.Module):
    """What the student was: the running average of its weights, and the history student that follows it in leaps.

    Attributes:
        average: the student with averaged weights.
        past: the history student.
    """

    def __init__(self, student: nn.Module, *, average_decay: float, decay: float, refresh: Sequence[int]) -> None:
        super().__init__()
        self.average, self.past = (copy.deepcopy(student).eval().requires_grad_(False) for _ in range(2))
        self.average_decay, self.decay, self.refresh = average_decay, decay, refresh
        self._followed = -1
        self.register_load_state_dict_post_hook(_begin_again)

    def train(self, mode: bool = True) -> History:
        """Both stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """Take in the weights that `student` has after `step` iterations; once, however often a step asks."""
        if step == self._followed:
            return
        self._followed = step
        if step == 0:
            # Only now has the student the weights with which it starts.
            _lerp(self.average, student, 1.0)
            _lerp(self.past, student, 1.0)
            return
        _lerp(self.average, student, 1 - self.average_decay)
        if step % self.refresh[min((step - 1) // PHASE, len(self.refresh) - 1)] == 0:
            _lerp(self.past, self.average, 1 - self.decay)


def noisy(lq: Tensor) -> Tensor:
    """lq (N, 3, H, W) with Gaussian noise, clipped to [0, 1]; sigma is uniform in 1 to 30 of 255 for each image, and
    the noise the same in all channels with probability 0.5.
    """
    shape = (len(lq), 1, 1, 1)
    low, high = NOISE
    sigma = (low + (high - low) * torch.rand(shape, device=lq.device, dtype=lq.dtype)) / 255
    grey = torch.rand(shape, device=lq.device) < 0.5
    noise = torch.where(grey, torch.randn_like(lq[:, :1]), torch.randn_like(lq))
    return (lq + sigma * noise).clamp(0, 1)


def _begin_again(history: nn.Module, keys: object) -> None:
    """After loading a state, the step that follows it is still to be taken in, also when it was before."""
    assert isinstance(history, History)
    history._followed = -1


def _lerp(net: nn.Module, towards: nn.Module, share: float) -> None:
    own: Iterable[Tensor] = list(net.parameters())
    torch._foreach_lerp_(own, list(towards.parameters()), share)
    for mine, theirs in zip(net.buffers(), towards.buffers(), strict=True):
        mine.copy_(theirs)
