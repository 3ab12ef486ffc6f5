"""`datasets`: images to train on, to validate on and to test with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_serializer, model_validator

from mtkd.config.problems import format_value
from mtkd.config.schema.fields import Batch, Count, FileName, Section, UserPath, Workers

WITHOUT_GT = "SingleImageDataset"
"""BasicSR's type of a set of images without gt, for `mtkd upscale -opt` alone."""


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

    color: Literal["rgb", "y"] | None = Field(
        default=None,
        description="`y`: networks get and make Y of YCbCr alone, one channel, as BasicSR's ECBSR; in every data set "
        "of the file or in none. `~` is RGB",
    )

    @model_validator(mode="after")
    def _template(self) -> _SetOptions:
        rest = self.filename_tmpl.replace("{}", "", 1)
        if "{}" not in self.filename_tmpl or "{" in rest or "}" in rest:
            raise ValueError(
                "filename_tmpl must hold {} once, for the gt's name, and no other brace; found "
                f"{format_value(self.filename_tmpl)}."
            )
        if self.filename_tmpl != "{}" and self.dataroot_lq is None:
            raise ValueError("filename_tmpl names lq files, and there is no dataroot_lq.")
        return self


class TrainSetOptions(_SetOptions):
    """`datasets.train`. `gt_size` is the side of a gt crop in pixels, or of the target's where there is no gt."""

    dataroot_gt: UserPath | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        description="folder of gt images (high resolution); `~` beside `dataroot_lq`: photographs without ground "
        "truth, for methods whose active terms compare with the teacher alone",
    )
    gt_size: Count = Field(description="side of the gt crops in pixels, a multiple of `scale`")
    batch_size_per_gpu: Batch = Field(description="crops in a batch of one process")
    use_hflip: bool = Field(default=True, description="mirror crops left-right with probability 1/2")
    use_rot: bool = Field(
        default=True,
        description="mirror crops top-bottom and exchange their rows and columns, each with probability 1/2",
    )
    cache: Literal["auto", "gpu", "ram", "disk"] = Field(
        default="auto",
        description="where the decoded images stay: `gpu` is the memory of the device that trains, `disk` is for more "
        "than memory holds, and `auto` takes the first that has room",
    )
    num_worker_per_gpu: Workers = Field(
        default=4, description="processes that cut crops ahead, where the images stay on the disk; 0 is none"
    )

    @model_validator(mode="after")
    def _roots(self) -> TrainSetOptions:
        if self.dataroot_gt is None and self.dataroot_lq is None:
            raise ValueError("dataroot_gt is required, and missing (dataroot_lq alone: photographs without gt).")
        if self.dataroot_gt is None and self.filename_tmpl != "{}":
            raise ValueError("filename_tmpl makes lq names from those of gt, and there is no dataroot_gt.")
        return self

    @property
    def residence(self) -> Literal["auto", "device", "ram", "disk"]:
        """`cache` by the names of `mtkd.data.residence`, where `gpu` is `device`: it need not be a GPU."""
        return "device" if self.cache == "gpu" else self.cache


class EvalSetOptions(_SetOptions):
    """`datasets.val`, `val_2`, `test_1`, ...: whole images, one at a time."""


class ItemSetOptions(Section):
    """A data set of a class from outside, `type`: what a run needs of it, and the class's own keys in `args`."""

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
