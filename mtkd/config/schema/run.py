"""The whole option file: the keys of one value, and the sections together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from mtkd.config.problems import KeyPath, OptionError, Origin, Problem, format_value
from mtkd.config.schema.datasets import (
    WITHOUT_GT,
    DatasetsOptions,
    EvalSetOptions,
    ItemSetOptions,
    ItemTrainSetOptions,
    TrainSetOptions,
)
from mtkd.config.schema.fields import Count, FileName, Int, Precision, Section, UserPath
from mtkd.config.schema.folders import LoggerOptions, PathOptions
from mtkd.config.schema.networks import AnswersOptions, FusionOptions, NetworkOptions, TeacherOptions
from mtkd.config.schema.training import TrainOptions
from mtkd.config.schema.validation import ValOptions
from mtkd.config.signatures import whole
from mtkd.contracts import MtkdError


def _gpus(value: Any) -> Any:
    number = whole(value)
    if value != "auto" and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
        raise ValueError(f"must be 'auto' or a number of devices, found {format_value(value)}.")
    return number


def _compile_mode(value: Any) -> Any:
    if not isinstance(value, bool) and value not in ("graphs", "reduce-overhead", "max-autotune"):
        raise ValueError(
            "must be true, false, 'graphs', 'reduce-overhead' or 'max-autotune', found " + format_value(value) + "."
        )
    return value


class Head(Section):
    """The top-level keys that hold one value."""

    name: FileName = Field(description="name of the run, and of its folder")
    model_type: str = Field(
        default="SRModel",
        description="method by which the student is trained, or several, `MTKD + FAKD`; `mtkd list methods`, "
        "docs/methods.md",
    )
    scale: Count = Field(description="factor between lq and gt: 2, 3, 4, ...")
    num_gpu: Annotated[int | Literal["auto"], BeforeValidator(_gpus)] = Field(
        default="auto",
        description="CUDA devices of the run, one process each, started by torchrun or slurm; `auto`: what is there, "
        "0: the CPU",
    )
    manual_seed: Annotated[Int, Field(ge=0, lt=2**63)] | None = Field(
        default=None, description="seed of weights and data; `~`: drawn at random, and kept with the run"
    )
    precision: Precision = Field(
        default="fp32", description="autocast in training and evaluation; weights, losses and metrics stay fp32"
    )
    teacher_precision: Precision | None = Field(
        default=None, description="autocast of frozen teachers, on line and in `mtkd teach`; `~`: as `precision`"
    )
    compile: Annotated[bool | Literal["graphs", "reduce-overhead", "max-autotune"], BeforeValidator(_compile_mode)] = (
        Field(
            default=False,
            description="torch.compile of student and teachers; the named modes record CUDA graphs. What cannot be "
            "compiled runs uncompiled, and the log says so",
        )
    )
    channels_last: bool = Field(default=True, description="torch's channels_last memory format for networks and images")
    tf32: bool = Field(default=True, description="allow TensorFloat-32 in products and convolutions on CUDA")
    deterministic: bool = Field(
        default=False, description="deterministic algorithms of torch where there are some; slower on CUDA"
    )


class Options(Head):
    """A whole option file, checked. `is_train` tells a training file from a test file."""

    internal: ClassVar[frozenset[str]] = frozenset({"file", "notices"})
    datasets: DatasetsOptions
    network_g: NetworkOptions
    """`NO_NETWORK` in a test file that measures its teachers alone."""
    teachers: dict[str, TeacherOptions | AnswersOptions] = {}
    fusion: Literal["mean"] | FusionOptions | None = None
    target_store: UserPath | None = None
    method: dict[str, Any] = {}
    path: PathOptions = PathOptions()
    train: TrainOptions | None = None
    val: ValOptions = ValOptions()
    logger: LoggerOptions = LoggerOptions()
    file: str = Field(default="", exclude=True)
    notices: list[str] = Field(default=[], exclude=True)
    """One line per key that was accepted without effect or departs from a convention."""
    _origin: Origin = PrivateAttr()
    """Where each value was written; `problem` reads it."""

    @property
    def is_train(self) -> bool:
        """The file describes a training run."""
        return self.train is not None

    @property
    def sets_without_gt(self) -> dict[str, ItemSetOptions]:
        """The evaluation sets that nothing can be measured on, by key."""
        return {
            key: given
            for key, given in self.datasets.evaluation.items()
            if isinstance(given, ItemSetOptions) and given.type == WITHOUT_GT
        }

    @property
    def color(self) -> Literal["rgb", "y"]:
        """What images are for the networks of this file: all sets agree."""
        sets = [self.datasets.train, *self.datasets.evaluation.values()]
        return "y" if any(getattr(given, "color", None) == "y" for given in sets) else "rgb"

    @property
    def channels(self) -> int:
        """Channels of such an image."""
        return 1 if self.color == "y" else 3

    def problem(self, path: KeyPath, message: str) -> Problem:
        """`message` about the value at `path`, with the file and line where it was written."""
        return self._origin.problem(path, message)

    @contextmanager
    def at(self, *path: str) -> Generator[None]:
        """Let an MtkdError of the block name the key at `path`, and where it was written."""
        try:
            yield
        except OptionError:
            raise
        except MtkdError as error:
            raise OptionError([self.problem(path, str(error))]) from error

    @property
    def training(self) -> TrainOptions:
        """`train` of a training file.

        Raises:
            MtkdError: this is a test file.
        """
        if self.train is None:
            raise MtkdError(
                f"{self.file or 'The option file'} has no `train` section, so it cannot be used for training."
            )
        return self.train

    @property
    def train_set(self) -> TrainSetOptions | ItemTrainSetOptions:
        """`datasets.train` of a training file.

        Raises:
            MtkdError: this is a test file.
        """
        if self.datasets.train is None:
            raise MtkdError(
                f"{self.file or 'The option file'} has no `datasets.train` section, so it cannot be used for training."
            )
        return self.datasets.train

    @property
    def val_sets(self) -> dict[str, EvalSetOptions | ItemSetOptions]:
        """What a training run validates on, by key; empty in a test file."""
        return self.datasets.evaluation if self.is_train else {}

    @property
    def test_sets(self) -> dict[str, EvalSetOptions | ItemSetOptions]:
        """What a test file evaluates, by key; empty in a training file."""
        return {} if self.is_train else self.datasets.evaluation
