"""`train`: optimizers, the learning rate, loss terms and what else a run is trained by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_serializer, model_validator

from mtkd.config.schema.fields import MOST, Count, Int, Section

SchedulerName = Literal["MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR"]


class OptimOptions(Section):
    """`{type, lr, **args}` of an optimizer, see `config.optimizers`."""

    type: str
    lr: float
    args: dict[str, Any] = {}

    @model_serializer
    def arguments(self) -> dict[str, Any]:
        """All of it in one mapping, as the file has it."""
        return {"type": self.type, "lr": self.lr, **self.args}


class SchedulerOptions(Section):
    """`{type, **args}`; `mtkd.training.optim.learning_rate` computes the rate of each iteration."""

    type: SchedulerName
    args: dict[str, Any] = {}

    @model_serializer
    def arguments(self) -> dict[str, Any]:
        """All of it in one mapping, as the file has it."""
        return {"type": self.type, **self.args}


_RESTART_WEIGHTS = "factor of the initial rate after each restart, one per restart or period"


class MultiStep(Section):
    """Arguments of MultiStepLR and MultiStepRestartLR, which are one class in BasicSR."""

    milestones: list[Count] = Field(description="MultiStep: iterations at which the rate is multiplied by `gamma`")
    gamma: float = Field(default=0.1, gt=0, description="MultiStep: factor of the rate at each milestone")
    restarts: list[Int] = Field(default=[0], description="MultiStep: iterations at which the rate begins anew")
    restart_weights: list[float] = Field(default=[1.0], description=_RESTART_WEIGHTS)

    @model_validator(mode="after")
    def _consistent(self) -> MultiStep:
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones must increase, found {self.milestones}.")
        if len(self.restarts) != len(self.restart_weights):
            raise ValueError("restarts and restart_weights must be equally long.")
        return self


class Cosine(Section):
    """Arguments of CosineAnnealingRestartLR."""

    periods: list[Count] = Field(min_length=1, description="cosine: iterations of each period, after which it restarts")
    restart_weights: list[float] = Field(default=[1.0], description=_RESTART_WEIGHTS)
    eta_min: float = Field(default=0.0, ge=0, description="cosine: rate at the end of each period")

    @model_validator(mode="after")
    def _consistent(self) -> Cosine:
        if len(self.periods) != len(self.restart_weights):
            raise ValueError("periods and restart_weights must be equally long.")
        return self


SCHEDULERS: dict[SchedulerName, type[Section]] = {
    "MultiStepLR": MultiStep,
    "MultiStepRestartLR": MultiStep,
    "CosineAnnealingRestartLR": Cosine,
}


class TermOptions(Section):
    """One active loss term.

    Attributes:
        weight: piecewise-linear schedule of `loss_weight`, (iteration, weight) pairs, which
            `mtkd.training.schedule.weight_at` reads.
        args: what the method gets: `type` and the loss's arguments for image terms, the term's own options otherwise.
    """

    weight: list[tuple[int, float]]
    args: dict[str, Any] = {}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        weight: Any = [list(pair) for pair in self.weight]
        return {**self.args, "loss_weight": self.weight[0][1] if len(self.weight) == 1 else weight}


class CurriculumOptions(Section):
    """`train.curriculum`: what grows during a run. Terms have schedules of their own, see `TermOptions.weight`.

    Attributes:
        gt_size: [[iteration, side], ...], beginning at 0: from each iteration on, gt crops have that side. The largest
            is at most `datasets.train.gt_size`, the size that images are checked for.
    """

    gt_size: list[list[Int]] = Field(
        min_length=1,
        description="[[iteration, side], ...] beginning at iteration 0: side of the gt crops from each iteration on",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CurriculumOptions:
        if any(len(pair) != 2 or pair[1] < 1 for pair in self.gt_size):
            raise ValueError(f"gt_size must be [[iteration, side], ...], found {self.gt_size}.")
        starts = [start for start, _ in self.gt_size]
        if starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:], strict=False)):
            raise ValueError(f"gt_size must begin at iteration 0 and go on in order, found {self.gt_size}.")
        return self

    def gt_size_at(self, step: int) -> int:
        """Side of the gt crops in iteration `step` (from 0)."""
        return next(side for start, side in reversed(self.gt_size) if start <= step)


class EarlyStopOptions(Section):
    """`train.early_stop`."""

    patience: Count = Field(
        description="the run ends after so many validations in a row in which `val.best_metric` did not become better"
    )
    min_delta: float = Field(
        default=0.0, ge=0, description="what counts as better: more than this, in units of the metric"
    )


class TrainOptions(Section):
    """`train`.

    Attributes:
        terms: active loss terms by name, from `X_opt` keys and the method's defaults.
        off: terms that are on by default and were switched off by `X_opt: ~`.
    """

    internal: ClassVar[frozenset[str]] = frozenset({"terms", "off"})
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the exponential moving average (EMA) of the student's weights, which is then what is "
        "validated; 0 keeps none",
    )
    optim_g: OptimOptions = Field(
        description="optimizer of the student, and of what a method trains beside it: one of torch.optim, or any "
        "class by its path (`my_package.my_module.Lion`), with its arguments"
    )
    optim_d: OptimOptions | None = Field(default=None, description="the same for the critic of a method that has one")
    scheduler: SchedulerOptions = Field(description="learning rate as a function of the iteration")
    total_iter: Count = Field(description="iterations (optimizer steps) of the whole run")
    warmup_iter: Int = Field(
        default=-1, ge=-1, le=MOST, description="iterations in which the rate rises linearly from 0; -1 is none"
    )
    clip_grad_norm: float | None = Field(
        default=None, gt=0, description="largest L2 norm of the gradient of each optimizer; `~`: no clipping"
    )
    accumulate: Count = Field(default=1, description="batches whose gradients are averaged for one optimizer step")
    curriculum: CurriculumOptions | None = Field(default=None, description="what grows during the run")
    early_stop: EarlyStopOptions | None = Field(
        default=None, description="end the run when its validations no longer become better; `~`: never"
    )
    terms: dict[str, TermOptions] = {}
    off: list[str] = []

    @model_serializer(mode="wrap")
    def _flat(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        plain = handler(self)
        terms, off = plain.pop("terms"), plain.pop("off")
        return {
            **plain,
            **{f"{name}_opt": term for name, term in terms.items()},
            **{f"{name}_opt": None for name in off},
        }
