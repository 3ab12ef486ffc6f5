"""A prepared run: its parts, which stay the same after preparation, and its state, which alone changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from mtkd.contracts import Batch
from mtkd.data.sampling import CropSampler

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mtkd.config import Options
    from mtkd.data.foreign import ForeignImages, ForeignSampler
    from mtkd.data.paired import PairedImages
    from mtkd.inference.evaluate import MetricFunction
    from mtkd.methods.base import Method
    from mtkd.runtime.run_folder import RunFolder
    from mtkd.training.claim import Claim
    from mtkd.training.ema import Ema
    from mtkd.training.log import RunLog
    from mtkd.training.loss_trace import LossTrace
    from mtkd.training.optim import LearningRate
    from mtkd.training.own_state import OwnState


@dataclass
class RunState:
    """The progress of a run. Besides it, only the tensors of a run change.

    Attributes:
        start: iteration that this process goes on from.
        done: iterations that are complete.
        saved: iteration of the newest checkpoint in the folder; 0 for none.
        stepping: optimizers are moving the weights, which belong to no iteration meanwhile.
        own: what changes without an optimizer, as it was after iteration `done`; None before the first.
        validation_due: iteration `done` is still to be validated. A checkpoint is saved before its validation and
            amended after it; a run that is killed or fails in between validates first when it is resumed.
        best: validation set -> metric -> the best value so far and its iteration.
        progress: of `train.early_stop`: the value `val` and iteration `iter` of the last progress, and the validations
            `since`; {} before the first.
        validation_copy: the copy of the student that is validated when `val.compile` is on and there is no EMA.
        compile_validation: False once `val.compile` has failed, so that it is not tried at every validation.
    """

    start: int = 0
    done: int = 0
    saved: int = 0
    stepping: bool = False
    own: OwnState | None = None
    validation_due: bool = False
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    validation_copy: Ema | None = None
    compile_validation: bool = True


@dataclass(frozen=True)
class Run:
    """Everything a run consists of, ready to step.

    Attributes:
        wrapped: the method inside DDP, where there are several processes.
        record: what a training state records of the run, see `record.record`.
        trace: losses that have not been logged yet.
        held: the claim on the run folder; None on ranks other than 0.
        notices: lines for the log, beside those of `options`.
    """

    options: Options
    fabric: Fabric
    folder: RunFolder
    seed: int
    method: Method
    wrapped: nn.Module
    optimizers: dict[str, Any]
    rates: dict[str, LearningRate]
    sampler: CropSampler | ForeignSampler
    ema: Ema | None
    log: RunLog
    val_sets: dict[str, PairedImages | ForeignImages]
    metrics: dict[str, MetricFunction]
    num_samples: int
    record: dict[str, Any]
    trace: LossTrace
    held: Claim | None = None
    notices: tuple[str, ...] = ()
    state: RunState = field(default_factory=RunState)

    @property
    def losses_due(self) -> bool:
        """Whether the losses of iteration `state.start` are still to be logged: the run failed before their line."""
        return self.trace.waiting and self.state.start % self.options.logger.print_freq == 0

    def epoch(self, done: int) -> int:
        """Passes over the training images that `done` iterations have begun, on all ranks together."""
        batch = self.options.train_set.batch_size_per_gpu * self.options.training.accumulate
        return done * batch * self.fabric.world_size // self.num_samples

    def batches(self) -> Iterator[Batch]:
        """Training batches from iteration `state.start` on, `train.accumulate` for each iteration."""
        every, curriculum = self.options.training.accumulate, self.options.training.curriculum
        start, stop = self.state.start * every, self.options.training.total_iter * every
        if curriculum is None:
            return self.sampler.batches(start, stop)
        # Classes from outside make their own crops, and an option file with both is refused.
        assert isinstance(self.sampler, CropSampler)
        return self.sampler.batches(start, stop, lambda k: curriculum.gt_size_at(k // every))

    def label(self, key: str) -> str:
        """The name of the validation set `key` on the screen: its `name`, with the key where several have that name."""
        sets = self.options.datasets.evaluation
        name = sets[key].name or key
        return name if sum(given.name == sets[key].name for given in sets.values()) == 1 else f"{name} ({key})"

    def close(self) -> None:
        """End the log and release the run folder; a run that has trained nothing removes its folder."""
        try:
            self.log.close()
        finally:
            if self.held is not None:
                self.held.release()
