"""What an option file may say: one model per section, field names are BasicSR's keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_serializer,
    model_validator,
)

from mtkd.config import yaml_loader
from mtkd.config.messages import shown
from mtkd.config.signatures import whole
from mtkd.config.yaml_loader import KeyPath, Problem, key_text
from mtkd.contracts import MtkdError
from mtkd.runtime.given import check_name, check_readable
from mtkd.runtime.given import path as given_path

FORCE = "--force_yml"

TAKEN_OVER = {
    "num_worker_per_gpu": "images are decoded once and crops are cut on the device or from memory; workers cut them "
    "only where the images stay on the disk (`residence`)",
    "prefetch_mode": "batches are made on the device, and ahead of it where that takes time",
    "num_prefetch_queue": "batches are made on the device, and ahead of it where that takes time",
    "pin_memory": "memory is pinned wherever it is copied to a GPU",
    "persistent_workers": "workers, where there are any, live as long as the run",
    "dataset_enlarge_ratio": "a pass over the data set costs nothing to restart",
    "use_shuffle": "the order is drawn from the seed, every image once per pass",
    "io_backend": "folders are decoded once into an image store",
    "color": "images are RGB",
    "mean": "networks take images in [0, 1] and shift them inside",
    "std": "networks take images in [0, 1] and scale them inside",
    "dist_params": "torchrun sets up the processes",
    "find_unused_parameters": "methods use all their parameters in every iteration",
    "pbar": "progress is printed in lines",
    "ignore_resume_networks": "only what was trained is resumed; teachers come from their own files",
}
"""BasicSR keys that are accepted without effect, and why nothing is lost."""


def _gpus(value: Any) -> Any:
    number = whole(value)
    if value != "auto" and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
        raise ValueError(f"must be 'auto' or a number of devices, found {shown(value)}.")
    return number


def _compile_mode(value: Any) -> Any:
    if not isinstance(value, bool) and value not in ("graphs", "reduce-overhead", "max-autotune"):
        raise ValueError(f"must be true, false, 'graphs', 'reduce-overhead' or 'max-autotune', found {shown(value)}.")
    return value


def _file_name(value: str) -> str:
    try:
        check_name(value)
    except MtkdError as error:
        raise ValueError(str(error)) from error
    return value


def _user_path(value: str) -> str:
    try:
        check_readable(given_path(value))
    except MtkdError as error:
        raise ValueError(str(error)) from error
    return os.path.expanduser(value)


_MOST = 2**31 - 1
"""Largest count: products of two still fit into 64 bits."""
Int = Annotated[int, BeforeValidator(whole)]
Count = Annotated[int, BeforeValidator(whole), Field(ge=1, le=_MOST)]
Batch = Annotated[int, BeforeValidator(whole), Field(ge=1, le=65_536)]
Workers = Annotated[int, BeforeValidator(whole), Field(ge=0, le=1024)]
Precision = Literal["fp32", "bf16", "fp16"]
UserPath = Annotated[str, AfterValidator(_user_path)]
FileName = Annotated[str, AfterValidator(_file_name)]


class Section(BaseModel):
    """A mapping of an option file: no further keys, no conversions between kinds of values."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    internal: ClassVar[frozenset[str]] = frozenset()
    """Fields that the reader fills, not the file."""


class NetworkOptions(Section):
    """`{type: ARCH, **args}`: a name of the catalog and its constructor's arguments."""

    type: str
    args: dict[str, Any] = {}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"type": self.type, **self.args}


class OptimOptions(Section):
    """`{type, lr, **args}` of a `torch.optim` optimizer."""

    type: str
    lr: float
    args: dict[str, Any] = {}

    @model_serializer
    def arguments(self) -> dict[str, Any]:
        """All of it in one mapping, as the file has it."""
        return {"type": self.type, "lr": self.lr, **self.args}


class SchedulerOptions(Section):
    """`{type, **args}`; learning rates as BasicSR computes them, stepped per iteration."""

    type: Literal["MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR"]
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


SCHEDULERS = {"MultiStepLR": MultiStep, "MultiStepRestartLR": MultiStep, "CosineAnnealingRestartLR": Cosine}


class TermOptions(Section):
    """One active loss term.

    Attributes:
        weight: piecewise-linear schedule of `loss_weight`, (iteration, weight) pairs; read it with `weight_at`.
        args: what the method gets: `type` and the loss's arguments for image terms, the term's own options otherwise.
    """

    weight: list[tuple[int, float]]
    args: dict[str, Any] = {}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        weight: Any = [list(pair) for pair in self.weight]
        return {**self.args, "loss_weight": self.weight[0][1] if len(self.weight) == 1 else weight}


class _SetOptions(Section):
    name: FileName = Field(description="what the data set is called in logs, tables and file names")
    type: Literal["PairedImageDataset"] = Field(
        description="`PairedImageDataset`, or a class of BasicSR's registry or your own (`my.module:MyClass`) with its "
        "keys"
    )
    dataroot_gt: UserPath = Field(description="folder of gt images (high resolution)")
    dataroot_lq: UserPath | None = Field(
        default=None, description="folder of lq images (low resolution); `~`: lq is made from gt by MATLAB's bicubic"
    )
    meta_info_file: UserPath | None = Field(
        default=None, description="text file that names the gt images to use, one a line; `~`: all of the folder"
    )
    filename_tmpl: str = Field(
        default="{}", description="lq file name, without its suffix, where `{}` is the gt's: `'{}x4'` for `0801x4.png`"
    )
    io_backend: dict[str, str] | None = Field(
        default=None, description="`{type: disk}` for folders of images, `{type: lmdb}` for BasicSR's lmdb folders"
    )

    @model_validator(mode="after")
    def _template(self) -> _SetOptions:
        rest = self.filename_tmpl.replace("{}", "", 1)
        if "{}" not in self.filename_tmpl or "{" in rest or "}" in rest:
            raise ValueError(
                "filename_tmpl must hold {} once, for the gt's name, and no other brace; found "
                f"{shown(self.filename_tmpl)}."
            )
        if self.filename_tmpl != "{}" and self.dataroot_lq is None:
            raise ValueError("filename_tmpl names lq files, and there is no dataroot_lq.")
        return self


class TrainSetOptions(_SetOptions):
    """`datasets.train`. `gt_size` is the side of a gt crop in pixels."""

    gt_size: Count = Field(description="side of the gt crops in pixels, a multiple of `scale`")
    batch_size_per_gpu: Batch = Field(description="crops in a batch of one process")
    use_hflip: bool = Field(default=True, description="mirror crops left-right with probability 1/2")
    use_rot: bool = Field(
        default=True,
        description="mirror crops top-bottom and exchange their rows and columns, each with probability 1/2",
    )
    residence: Literal["auto", "device", "ram", "disk"] = Field(
        default="auto",
        description="where the decoded images stay; `disk` is for more than memory holds, and `auto` takes the first "
        "that has room",
    )
    num_worker_per_gpu: Workers = Field(
        default=4, description="processes that cut crops ahead, where the images stay on the disk; 0 is none"
    )


class EvalSetOptions(_SetOptions):
    """`datasets.val`, `val_2`, `test_1`, ...: whole images, one at a time."""


class ItemSetOptions(Section):
    """A data set of a class from outside, `type`: what the engine needs of it, and the class's own keys in `args`."""

    internal: ClassVar[frozenset[str]] = frozenset({"args"})
    name: FileName
    type: str
    args: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _flat(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        plain = handler(self)
        return {**plain.pop("args"), **plain}


class ItemTrainSetOptions(ItemSetOptions):
    """The same in training; `num_worker_per_gpu` processes read items ahead."""

    batch_size_per_gpu: Batch
    num_worker_per_gpu: Workers = 0


class DatasetsOptions(Section):
    """`datasets`.

    Attributes:
        train: the training set, None in a test file.
        evaluation: the val and test sets by their key (`val`, `test_1`), in BasicSR's order (sorted by key).
    """

    train: TrainSetOptions | ItemTrainSetOptions | None = None
    evaluation: dict[str, EvalSetOptions | ItemSetOptions] = {}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        train = {} if self.train is None else {"train": self.train.model_dump()}
        return {**train, **{key: value.model_dump() for key, value in self.evaluation.items()}}


class TeacherOptions(Section):
    """One teacher.

    `pretrain` is a file or `zoo:NAME`; `param_key` is the file's entry that holds the weights, None when the file is a
    bare state dict, "auto" to look for `params_ema` first and `params` next. `network` is None only where the weights
    are to say what they are and were not there when the options were read.
    """

    network: NetworkOptions | None = None
    pretrain: UserPath
    param_key: str | None = "auto"


class FusionOptions(Section):
    """The network that makes one image of the teachers'; fields as in `TeacherOptions`."""

    network: NetworkOptions | None = None
    pretrain: UserPath
    param_key: str | None = "auto"


class PathOptions(Section):
    """`path`. Relative paths start at the working directory, `~` is the home folder."""

    pretrain_network_g: UserPath | None = Field(
        default=None,
        description="weights of `network_g`, a file or `zoo:NAME`: where training begins, or what is tested",
    )
    param_key_g: str | None = Field(
        default="auto",
        description="entry of that file that holds the weights, `~` for a bare state dict; `auto` takes `params_ema`, "
        "then `params`",
    )
    strict_load_g: bool = Field(
        default=True, description="every tensor must match the network; `false` loads what does and says what does not"
    )
    resume_state: UserPath | None = Field(
        default=None,
        description="training state to go on from; `mtkd train --auto_resume` finds the newest one itself",
    )
    experiments_root: UserPath = Field(default="experiments", description="folder of the folders of training runs")
    results_root: UserPath = Field(default="results", description="folder of the folders of tests")


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
        description="optimizer of the student, and of what a method trains beside it: one of torch.optim with its "
        "arguments"
    )
    optim_d: OptimOptions | None = Field(default=None, description="the same for the critic of a method that has one")
    scheduler: SchedulerOptions = Field(description="learning rate as a function of the iteration")
    total_iter: Count = Field(description="iterations (optimizer steps) of the whole run")
    warmup_iter: Int = Field(
        default=-1, ge=-1, le=_MOST, description="iterations in which the rate rises linearly from 0; -1 is none"
    )
    clip_grad_norm: float | None = Field(
        default=None, gt=0, description="largest L2 norm of the gradient of each optimizer; `~`: no clipping"
    )
    accumulate: Count = Field(default=1, description="batches whose gradients are averaged for one optimizer step")
    curriculum: CurriculumOptions | None = Field(default=None, description="what grows during the run")
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


class TileOptions(Section):
    """Evaluation in tiles of `tile_size` lq pixels with `tile_pad` pixels of context on each side."""

    tile_size: Count = Field(description="side of a tile in lq pixels")
    tile_pad: Int = Field(
        default=32, ge=0, le=_MOST, description="lq pixels of context around a tile, which are cut off the result"
    )


class ValOptions(Section):
    """`val`. `metrics` maps a name to `type`, `better` ("higher" or "lower") and the metric's arguments."""

    val_freq: Count | None = Field(
        default=None, description="iterations between validations; `~`: after the last one only. Not in a test file"
    )
    save_img: bool = Field(default=False, description="keep the images that the network makes, as PNG files")
    suffix: FileName | None = Field(
        default=None, description="what `mtkd test` adds to the names of the images it keeps; `~`: the file's `name`"
    )
    metrics: dict[str, dict[str, Any]] = Field(default={}, description="what is measured, by the name of its column")
    tile: TileOptions | None = Field(
        default=None, description="run the network over tiles of an image, for large images; `~`: over whole images"
    )
    self_ensemble: bool = Field(
        default=False, description="average over the eight flips and rotations of each image (x8, the + of EDSR+)"
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the network, for images of all sizes. What cannot be compiled runs "
        "uncompiled, and the log says so",
    )


class WandbOptions(Section):
    """`logger.wandb`."""

    project: str = Field(description="project at wandb; `~` switches wandb off")
    resume_id: str | None = Field(default=None, description="id of the run at wandb that goes on; `~`: a new one")


class LoggerOptions(Section):
    """`logger`; frequencies in iterations."""

    print_freq: Count = Field(
        default=100, description="iterations between lines of the log, and over which their losses are averaged"
    )
    save_checkpoint_freq: Count = Field(default=5000, description="iterations between checkpoints")
    use_tb_logger: bool = Field(default=False, description="write TensorBoard events to `tb_logger/NAME`")
    wandb: WandbOptions | None = Field(default=None, description="log to Weights & Biases; `~`: do not")


class Head(Section):
    """The top-level keys that hold one value."""

    name: FileName = Field(description="name of the run, and of its folder")
    model_type: str = Field(
        default="SRModel", description="method by which the student is trained; `mtkd list methods`, docs/methods.md"
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
    teachers: dict[str, TeacherOptions] = {}
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

    @property
    def is_train(self) -> bool:
        """The file describes a training run."""
        return self.train is not None

    @property
    def val_sets(self) -> dict[str, EvalSetOptions | ItemSetOptions]:
        """What a training run validates on, by key; empty in a test file."""
        return self.datasets.evaluation if self.is_train else {}

    @property
    def test_sets(self) -> dict[str, EvalSetOptions | ItemSetOptions]:
        """What a test file evaluates, by key; empty in a training file."""
        return {} if self.is_train else self.datasets.evaluation


@dataclass(frozen=True)
class Origin:
    """Where each value was written: a line of the file or of its base (`files`), or the command line."""

    file: str
    lines: dict[KeyPath, int]
    forced: frozenset[KeyPath] = frozenset()
    files: Mapping[KeyPath, str] = field(default_factory=dict)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """`message` about the value at `path`, with the nearest line that is known."""
        prefixes = [path[:end] for end in range(len(path), 0, -1)]
        if not any(prefix in self.forced for prefix in prefixes):
            for prefix in prefixes:
                if prefix in self.lines:
                    return Problem(self.files.get(prefix, self.file), self.lines[prefix], key_text(path), message)
                if any(forced[: len(prefix)] == prefix for forced in self.forced):
                    break
            else:
                return Problem(self.file, None, key_text(path), message)
        return Problem(FORCE, None, key_text(path), message)


def resolved_yaml(options: Options) -> str:
    """`options` as a complete option file, every default and every forced value written out; it loads back equal."""
    plain = options.model_dump()
    if not options.is_train:
        del plain["logger"]
    if not options.datasets.evaluation:
        del plain["val"]
    return yaml_loader.dump({key: value for key, value in plain.items() if value is not None and value != {}})


def weight_at(schedule: Sequence[tuple[int, float]], step: int) -> float:
    """Weight at iteration `step` (from 0): linear between the schedule's points, constant before and after them."""
    before, weight = schedule[0]
    if step <= before:
        return weight
    for at, value in schedule[1:]:
        if step < at:
            return weight + (value - weight) * (step - before) / (at - before)
        before, weight = at, value
    return weight


def check_paths(options: Options) -> list[Problem]:
    """A problem for each file or folder that `options` names and that is not there. `zoo:` names are not looked up."""
    wanted: list[tuple[KeyPath, str | None, bool]] = []
    sets = {"train": options.datasets.train, **options.datasets.evaluation}
    for key, data in sets.items():
        if isinstance(data, TrainSetOptions | EvalSetOptions):
            wanted.append((("datasets", key, "dataroot_gt"), data.dataroot_gt, True))
            wanted.append((("datasets", key, "dataroot_lq"), data.dataroot_lq, True))
            wanted.append((("datasets", key, "meta_info_file"), data.meta_info_file, False))
    for name, teacher in options.teachers.items():
        wanted.append((("teachers", name, "pretrain"), teacher.pretrain, False))
    if isinstance(options.fusion, FusionOptions):
        wanted.append((("fusion", "pretrain"), options.fusion.pretrain, False))
    wanted.append((("path", "pretrain_network_g"), options.path.pretrain_network_g, False))
    wanted.append((("path", "resume_state"), options.path.resume_state, False))
    problems = []
    for path, value, folder in wanted:
        if value is None or value.startswith("zoo:"):
            continue
        if not (os.path.isdir(value) if folder else os.path.isfile(value)):
            kind = "folder" if folder else "file"
            start = "" if os.path.isabs(value) else f" (relative to {os.getcwd()})"
            problems.append(options._origin.problem(path, f"there is no {kind} {value!r}{start}."))
    if options.target_store is not None and not os.path.exists(options.target_store):
        message = f"nothing is at {options.target_store!r}; `mtkd teach` makes it."
        problems.append(options._origin.problem(("target_store",), message))
    return problems
