"""The strict reading of an option file: every problem is found, named by file, line and key, and reported at once."""

from __future__ import annotations

import inspect
import json
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mtkd import catalog, zoo
from mtkd.config import layers, messages, trial, yaml_loader
from mtkd.config.messages import shown
from mtkd.config.schema import (
    FORCE,
    SCHEDULERS,
    TAKEN_OVER,
    DatasetsOptions,
    EvalSetOptions,
    FusionOptions,
    Head,
    ItemSetOptions,
    ItemTrainSetOptions,
    LoggerOptions,
    NetworkOptions,
    OptimOptions,
    Options,
    Origin,
    PathOptions,
    SchedulerOptions,
    Section,
    TeacherOptions,
    TermOptions,
    TileOptions,
    TrainOptions,
    TrainSetOptions,
    ValOptions,
)
from mtkd.config.signatures import (
    annotations_of,
    hint_of_default,
    hint_text,
    is_number,
    plain_hint,
    whole,
    whole_inside,
)
from mtkd.config.yaml_loader import PROBLEMS_SHOWN, Document, KeyPath, OptionError, Problem, is_text, key_text
from mtkd.contracts import MtkdError
from mtkd.runtime.given import check_readable, errors_of
from mtkd.runtime.given import path as given_path
from mtkd.variants import variant

_IMAGE_ARGUMENTS = frozenset({"sr", "gt", "img", "img2", "target"})
_LOWER_IS_BETTER = ("calculate_lpips", "calculate_niqe")
_OPTIMIZERS = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SGD", "ASGD", "RMSprop", "Rprop", "Adagrad", "Adadelta")
_TAKEN_OVER_AT_TOP = ("dist_params", "find_unused_parameters")
_TAKEN_OVER_ELSEWHERE = (*_TAKEN_OVER_AT_TOP, "ignore_resume_networks", "pbar")
_LOADER_KEYS = (
    "num_worker_per_gpu", "prefetch_mode", "num_prefetch_queue", "pin_memory", "persistent_workers",
    "dataset_enlarge_ratio", "use_shuffle", "batch_size_per_gpu",
)  # fmt: skip
"""What BasicSR's loader, not its data sets, reads of a data set's section."""
_NO_NETWORK = NetworkOptions(type="")
"""Stands where a network could not be read; the problem is reported, so that it never leaves the reader."""

_UNSUPPORTED_MODELS = {
    **dict.fromkeys(("SRGANModel", "ESRGANModel", "RealESRGANModel", "HiFaceGANModel", "StyleGAN2Model"), "GANs"),
    **dict.fromkeys(
        ("VideoBaseModel", "VideoGANModel", "VideoRecurrentModel", "VideoRecurrentGANModel", "EDVRModel"), "video"
    ),
    "RealESRNetModel": "degradations that are made during training",
}
"""BasicSR's other models, and what they would need."""
_UNSUPPORTED_KEYS = {"network_d": "GANs", "degradation": "degradations that are made during training"}

Kind = Literal["train", "test"]


def load_options(
    path: str | Path,
    *,
    force: Sequence[str] = (),
    scale: int | None = None,
    debug: bool = False,
    check: bool = True,
    kind: Kind | None = None,
) -> Options:
    """Options of the YAML file at `path`, laid over its `base`, with the scale in place of `{scale}`.

    Args:
        path: a file in the dialect of `mtkd.config.yaml_loader`.
        force: `a:b=VALUE` items that replace or add values, VALUE in YAML (BasicSR's `--force_yml`).
        scale: the same as the item `scale=N`, after the others.
        debug: BasicSR's debug run: `debug_` before the name, validation and checkpoints every 8 iterations, a line per
            iteration, no TensorBoard or wandb. A name that holds "debug" means the same.
        check: look names up in the catalog and check arguments against the signatures found; without it only the
            file's own shape is checked, and terms that it does not name are left out.
        kind: what the file must be, a training file (it has `datasets.train`) or a test file.

    Raises:
        OptionError: lists everything that is wrong. Missing files are not looked for: see `check_paths`.
            Weights are read only where they are there and are to say themselves which network they are of.
    """
    force = force if scale is None else [*force, f"scale={scale}"]
    return _Reader(layers.load(path), force, debug=debug, check=check).options(kind)


def make_options(data: Mapping[str, Any], *, file: str = "options", debug: bool = False, check: bool = True) -> Options:
    """`load_options` for a mapping in memory; `file` stands in the messages."""
    return _Reader(Document(json.loads(json.dumps(data, default=str)), file), (), debug=debug, check=check).options()


Model = TypeVar("Model", bound=Section)
DataSet = TypeVar("DataSet", TrainSetOptions, EvalSetOptions)


class _Reader:
    """Turns a document into `Options`; problems are collected and raised together at the end."""

    def __init__(self, document: Document, force: Sequence[str], *, debug: bool, check: bool) -> None:
        self.document = document
        self.check = check
        self.problems: list[Problem] = []
        self.taken_over: dict[str, list[str]] = {}
        self.notices: list[str] = []
        if not isinstance(document.data, dict):
            raise OptionError([Problem(document.file, None, "", "an option file is a mapping, `key: value` lines.")])
        self.data: dict[str, Any] = document.data
        self.origin = Origin(document.file, document.lines, files=document.files)
        forced = [path for item in force if (path := self.apply_force(item)) is not None]
        self.origin = Origin(document.file, document.lines, frozenset(forced), document.files)
        self.apply_scale()
        self.data = layers.with_network(self.data)
        self.scale: int | None = None
        self.model_type: Any = None
        self.method: Any = None
        sets = self.data.get("datasets")
        self.sets: dict[str, Any] = sets if isinstance(sets, dict) else {}
        tests = any(key.startswith("test") for key in self.sets)
        self.is_train = "train" in self.sets or ("train" in self.data and not tests)
        teachers = self.data.get("teachers")
        # What was written counts, so that a teacher with a typo is not reported as missing as well.
        self.num_teachers = len(teachers) if isinstance(teachers, dict) else 0
        self.apply_debug(debug)

    def problem(self, path: KeyPath, message: str) -> None:
        self.problems.append(self.origin.problem(path, message))

    def options(self, kind: Kind | None = None) -> Options:
        if kind == "train" and not self.is_train:
            self.problem(("datasets",), "holds no `train` set; this is no training file.")
        if kind == "test" and self.is_train:
            self.problem(("datasets",), "holds a `train` set; this is a training file, and a test file is wanted.")
        self.refuse_unsupported_model()
        top = {key: value for key, value in self.data.items() if self.known_top_level(key)}
        head = self.section(Head, {key: top[key] for key in top if key in Head.model_fields}, ())
        scale = top.get("scale")
        self.scale = head.scale if head else scale if isinstance(scale, int) else None
        self.model_type = top.get("model_type", Head.model_fields["model_type"].default)
        if isinstance(self.model_type, str):
            self.method = self.lookup("method", self.model_type, ("model_type",))
        values = {
            "datasets": self.datasets(top.get("datasets")),
            "network_g": self.network(top.get("network_g"), ("network_g",), num_teachers=self.num_teachers),
            "teachers": self.teachers(top.get("teachers")),
            "fusion": self.fusion(top.get("fusion")),
            "target_store": self.text(top.get("target_store"), ("target_store",)),
            "method": self.method_options(top.get("method")),
            "path": self.path(top.get("path")),
            "train": self.train(top.get("train")),
            "val": self.val(top.get("val")),
            "logger": self.logger(top.get("logger")),
        }
        self.teacher_use(values)
        self.curriculum(values)
        if self.problems:
            order = {id(problem): index for index, problem in enumerate(self.problems)}
            raise OptionError(
                sorted(
                    self.problems,
                    key=lambda p: (
                        p.file == FORCE,
                        p.file != self.document.file,
                        p.line is None,
                        p.line or 0,
                        order[id(p)],
                    ),
                )
            )
        assert head is not None
        notices = [f"{', '.join(keys)} ignored: {TAKEN_OVER[name]}." for name, keys in self.taken_over.items()]
        options = Options(**dict(head), **values, file=self.document.file, notices=notices + self.notices)
        options._origin = self.origin
        return options

    def refuse_unsupported_model(self) -> None:
        """Say once that the file is of another kind, rather than of each of its keys that it is unknown."""
        name = self.data.get("model_type")
        if not isinstance(name, str) or (what := _UNSUPPORTED_MODELS.get(name)) is None:
            return
        message = f"{name} is not supported: mtkd has no {what}. Its models are {', '.join(catalog.names('method'))}."
        if not self.is_train and what == "GANs":
            message += " To measure the generator, which makes images of images as others do, write SRModel."
        raise OptionError([self.origin.problem(("model_type",), message)])

    # What changes the tree before it is read.

    def apply_force(self, item: str) -> KeyPath | None:
        name, equals, text = item.partition("=")
        path = tuple(name.strip().split(":"))
        if not equals or not all(path):
            self.problems.append(Problem(FORCE, None, "", f"{item!r} is not of the form a:b=VALUE."))
            return None
        found: list[Problem] = []
        try:
            value = yaml_loader.parse(text, FORCE).data
        except OptionError as error:
            value, found = None, error.problems
        # `filename_tmpl={}x4` is text for BasicSR, and no mapping.
        if (found or value is not None) and not isinstance(value, str) and _takes_text(path) and is_text(text):
            value, found = text.strip(), []
        if found:
            self.problems.extend(Problem(FORCE, None, key_text(path), p.message) for p in found)
            return None
        target = self.data
        for depth, part in enumerate(path[:-1], start=1):
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                message = f"{key_text(path[:depth])} holds a value, so nothing can be set inside it."
                self.problems.append(Problem(FORCE, None, key_text(path), message))
                return None
        target[path[-1]] = value
        return path

    def apply_scale(self) -> None:
        if not layers.holds_scale(self.data):
            return
        scale = whole(self.data.get("scale"))
        if scale is None:
            message = f"required, and missing: {layers.SCALE} stands in this file. Add --scale N, or `scale: N`."
            raise OptionError([self.origin.problem(("scale",), message)])
        if isinstance(scale, int) and not isinstance(scale, bool):
            self.data = layers.with_scale(self.data, scale)

    def apply_debug(self, debug: bool) -> None:
        name = self.data.get("name")
        if not isinstance(name, str):
            return
        if debug and not name.startswith("debug"):
            name = self.data["name"] = f"debug_{name}"
        if "debug" not in name or not self.is_train:
            return
        if isinstance(self.data.get("val"), dict):
            self.data["val"]["val_freq"] = 8
        logger = self.data.get("logger")
        if logger is None or isinstance(logger, dict):
            quick = {"print_freq": 1, "save_checkpoint_freq": 8, "use_tb_logger": False, "wandb": None}
            self.data["logger"] = {**(logger or {}), **quick}

    # Plain sections.

    def section(self, model: type[Model], data: Any, path: KeyPath) -> Model | None:
        """`data` as `model`; None after reporting every problem in it."""
        if not isinstance(data, dict):
            self.problem(path, _no_mapping(data))
            return None
        internal = [key for key in data if key in model.internal]
        for key in internal:
            self.unknown((*path, key), _keys(model))
        try:
            return model.model_validate({key: value for key, value in data.items() if key not in internal})
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                where = (*path, *detail["loc"])
                if detail["type"] == "extra_forbidden":
                    self.unknown(where, _keys(_nested(model, detail["loc"][:-1])))
                else:
                    self.problem(where, messages.of_pydantic(detail))
            return None

    def unknown(self, path: KeyPath, valid: Sequence[str], kind: str = "unknown key") -> None:
        name = str(path[-1])
        if len(path) == 1 and name in _UNSUPPORTED_KEYS:
            self.problem(path, f"not supported: mtkd has no {_UNSUPPORTED_KEYS[name]}.")
            return
        if len(self.problems) >= PROBLEMS_SHOWN:
            self.problem(path, f"{kind}.")  # nobody reads it, and looking for near names takes time
            return
        ignored = TAKEN_OVER if path[0] == "datasets" else _TAKEN_OVER_ELSEWHERE
        if near := messages.near(name, [*valid, *ignored]):
            message = f"{kind}. Did you mean {near}?"
        elif (homes := _HOMES.get(name)) and key_text(path) not in homes:
            message = f"{kind} here; it belongs at {' or '.join(homes)}."
        else:
            message = f"{kind}; valid here: {', '.join(valid) or 'none'}."
        self.problem(path, message)

    def known_top_level(self, key: str) -> bool:
        valid = _keys(Options)
        if key in _TAKEN_OVER_AT_TOP:
            self.take_over((key,))
        elif key == layers.BASE:
            self.problem((key,), "has no effect here: only an option file, in itself, says on which one it stands.")
        elif key not in valid:
            self.unknown((key,), valid)
        else:
            return True
        return False

    def ignore(self, path: KeyPath, why: str) -> None:
        """Note a key of BasicSR's that has no effect in this kind of file."""
        self.notices.append(f"{key_text(path)} ignored: {why}.")

    def take_over(self, path: KeyPath) -> None:
        self.taken_over.setdefault(str(path[-1]), []).append(key_text(path))

    def mapping(self, data: Any, path: KeyPath) -> dict[str, Any]:
        """`data` when it is a mapping; {} when it is absent, or after reporting that it is something else."""
        if data is None:
            return {}
        if not isinstance(data, dict):
            self.problem(path, _no_mapping(data))
            return {}
        return data

    def text(self, data: Any, path: KeyPath) -> str | None:
        if data is None:
            return None
        if not isinstance(data, str):
            self.problem(path, f"must be text, found {shown(data)}.")
            return None
        try:
            check_readable(given_path(data))
        except MtkdError as error:
            self.problem(path, str(error))
            return None
        return os.path.expanduser(data)

    def path(self, data: Any) -> PathOptions:
        given = dict(self.mapping(data, ("path",)))
        if "ignore_resume_networks" in given:
            self.take_over(("path", "ignore_resume_networks"))
            del given["ignore_resume_networks"]
        if not self.is_train:
            if given.get("resume_state") is not None:
                self.ignore(("path", "resume_state"), "a test file resumes nothing")
                del given["resume_state"]
            if given.get("pretrain_network_g") is None:
                self.problem(("path", "pretrain_network_g"), "required in a test file: the weights to test.")
        return self.section(PathOptions, given, ("path",)) or PathOptions()

    def logger(self, data: Any) -> LoggerOptions:
        if data is not None and not self.is_train:
            self.ignore(("logger",), "testing writes a table, a CSV and a JSON")
            return LoggerOptions()
        given = dict(self.mapping(data, ("logger",)))
        if isinstance(given.get("wandb"), dict) and given["wandb"].get("project", "") is None:
            # BasicSR's files switch wandb off by `project: ~`.
            given["wandb"] = None
        return self.section(LoggerOptions, given, ("logger",)) or LoggerOptions()

    def val(self, data: Any) -> ValOptions:
        given = dict(self.mapping(data, ("val",)))
        if "pbar" in given:
            self.take_over(("val", "pbar"))
            del given["pbar"]
        sets = [key for key in self.sets if key != "train"]
        if self.is_train:
            if given and not sets:
                self.ignore(("val",), "there is no data set to validate on (datasets.val)")
            if sets and given.get("val_freq") is None:
                self.problem(("val", "val_freq"), f"required, and missing: datasets.{sets[0]} would never be used.")
            if given.get("suffix") is not None:
                self.ignore(("val", "suffix"), "images of a training carry the iteration")
                del given["suffix"]
        elif given.get("val_freq") is not None:
            self.ignore(("val", "val_freq"), "a test file is measured once")
            del given["val_freq"]
        metrics = self.mapping(given.get("metrics"), ("val", "metrics"))
        given["metrics"] = {name: self.metric(value, ("val", "metrics", name)) for name, value in metrics.items()}
        return self.section(ValOptions, given, ("val",)) or ValOptions()

    # Data sets.

    def datasets(self, data: Any) -> DatasetsOptions:
        if data is None:
            self.problem(("datasets",), "required, and missing.")
            return DatasetsOptions()
        found = self.mapping(data, ("datasets",))
        train = None
        evaluation: dict[str, EvalSetOptions | ItemSetOptions] = {}
        if not found:
            self.problem(("datasets",), "names no data set.")
        elif self.is_train and "train" not in found:
            self.problem(("datasets", "train"), "required beside `train`, and missing.")
        # BasicSR tests its sets in the order of their sorted keys.
        for key in sorted(found):
            path = ("datasets", key)
            phase = key.split("_")[0]
            if phase not in ("train", "val", "test") or (phase == "train" and key != "train"):
                self.unknown(path, ["train", "val", "val_2", "test_1"], "not a kind of data set")
            elif phase == "train":
                train = self.data_set(TrainSetOptions, found[key], path)
                if isinstance(train, ItemTrainSetOptions) and self.data.get("target_store") is not None:
                    self.problem(
                        ("target_store",),
                        "holds one target an image of a PairedImageDataset; a data set "
                        f"that makes its own crops ({train.type}) needs the teachers themselves.",
                    )
            elif phase == "test" and self.is_train:
                self.problem(path, "has no effect in training: validation runs on `val`, `val_2`, ...")
            elif one := self.data_set(EvalSetOptions, found[key], path):
                if one.name in [other.name for other in evaluation.values()]:
                    self.problem((*path, "name"), f"{one.name!r} names two data sets; their results would mix.")
                evaluation[key] = one
        if isinstance(train, TrainSetOptions) and self.scale and train.gt_size % self.scale:
            message = f"must be a multiple of the scale {self.scale}, found {train.gt_size}."
            self.problem(("datasets", "train", "gt_size"), message)
        return DatasetsOptions(train=train, evaluation=evaluation)

    def item_set(self, data: dict[str, Any], path: KeyPath) -> ItemSetOptions | None:
        """A data set of a class from outside: our keys are checked, the rest is the class's."""
        if self.lookup("dataset", data["type"], (*path, "type")) is None and self.check:
            return None
        model = ItemTrainSetOptions if path[-1] == "train" else ItemSetOptions
        for key in data:
            if key in _LOADER_KEYS and key not in _keys(model):
                self.ignore((*path, key), "mtkd draws the batches and needs no such setting")
        given: dict[str, Any] = {key: data[key] for key in data if key in _keys(model)}
        rest = {key: value for key, value in data.items() if key not in given and key not in _LOADER_KEYS}
        found = self.section(model, given, path)
        return found and found.model_copy(update={"args": rest})

    def data_set(self, model: type[DataSet], data: Any, path: KeyPath) -> DataSet | ItemSetOptions | None:
        if not isinstance(data, dict):
            return self.section(model, data, path)
        if isinstance(data.get("type"), str) and data["type"] not in catalog.DATASETS:
            return self.item_set(data, path)
        given = {}
        for key, value in data.items():
            if key == "io_backend":
                given[key] = self.io_backend(value, (*path, key))
            elif key == "gt_size" and model is TrainSetOptions and isinstance(value, dict):
                given[key] = self.of_scale(value, (*path, key))
            elif key == "color" and value not in (None, "rgb"):
                self.problem((*path, key), f"{value!r} is not supported yet; images are RGB.")
            elif key in ("mean", "std") and value is not None:
                self.problem((*path, key), f"not supported: {TAKEN_OVER[key]}.")
            elif key == "num_worker_per_gpu" and model is TrainSetOptions:
                given[key] = value
                if data.get("residence") != "disk":
                    self.take_over((*path, key))
            elif key in TAKEN_OVER and key not in _TAKEN_OVER_ELSEWHERE:
                self.take_over((*path, key))
            elif model is EvalSetOptions and key not in _keys(model) and key in _keys(TrainSetOptions):
                self.ignore((*path, key), "whole images are evaluated, one at a time")
            else:
                given[key] = value
        return self.section(model, given, path)

    def of_scale(self, choices: dict[str, Any], path: KeyPath) -> Any:
        """What `{x2: ..., x3: ..., x4: ...}` says for the scale of the run."""
        for key in choices:
            if not (key.startswith("x") and key[1:].isascii() and key[1:].isdecimal()):
                self.problem((*path, key), "no scale; a number for each is written {x2: 128, x3: 129, x4: 128}.")
        if self.scale is None:
            return 1  # that there is none, or what is wrong with it, is reported
        if f"x{self.scale}" not in choices:
            self.problem(path, f"says nothing for x{self.scale}; it has {', '.join(choices) or 'nothing'}.")
            return self.scale
        return choices[f"x{self.scale}"]

    def io_backend(self, value: Any, path: KeyPath) -> dict[str, str] | None:
        """`{type: lmdb}`; None for files, or after reporting what is wrong."""
        if value is None:
            return None
        backend = value.get("type") if isinstance(value, dict) else value
        if backend in ("disk", "lmdb"):
            for key in value if isinstance(value, dict) else ():
                if key != "type":
                    self.unknown((*path, key), ["type"])
        if backend == "lmdb":
            return {"type": "lmdb"}
        if backend == "disk":
            self.take_over(path)
        elif backend == "memcached":
            self.problem((*path, "type"), "memcached is not supported; give folders and `type: disk`, or `type: lmdb`.")
        else:
            self.problem(path, f"must be {{type: disk}} or {{type: lmdb}}, found {shown(value)}.")
        return None

    # What has a name in the catalog.

    def lookup(self, kind: catalog.Kind, name: str, path: KeyPath) -> Any:
        """The catalog's entry; None when names are not checked, or after reporting that there is none."""
        if not self.check:
            return None
        try:
            with errors_of(f"{name!r} cannot be imported"):
                return catalog.get(kind, name)
        except MtkdError as error:
            self.problem(path, str(error))
            return None

    def typed(self, data: Any, path: KeyPath) -> tuple[str, dict[str, Any]] | None:
        """`type` and the rest of a mapping; None after reporting that there is no such thing."""
        if data is None:
            self.problem(path, "required, and missing.")
        elif not isinstance(data, dict):
            self.problem(path, f"must be a mapping with a `type`, found {shown(data)}.")
        elif not isinstance(data.get("type"), str):
            found = "required, and missing." if "type" not in data else f"must be a name, found {shown(data['type'])}."
            self.problem((*path, "type"), found)
        else:
            return data["type"], {key: value for key, value in data.items() if key != "type"}
        return None

    def network(self, data: Any, path: KeyPath, *, num_teachers: int | None = None) -> NetworkOptions:
        if isinstance(data, str):
            try:
                data = variant(data)
            except MtkdError as error:
                self.problem(path, str(error))
                return _NO_NETWORK
        if (found := self.typed(data, path)) is None:
            return _NO_NETWORK
        name, args = found
        arch = self.lookup("arch", name, (*path, "type"))
        if arch is None:
            return NetworkOptions(type=name, args=args)
        if self.is_train and path == ("network_g",) and hasattr(arch, "adopt"):
            message = f"only its weights tell what a {name} is; it can teach and be tested, and is not trained."
            self.problem((*path, "type"), message)
        parameters = _parameters(arch)
        for key, value, whose in (
            ("upscale", self.scale, "the run's scale"),
            ("scale", self.scale, "the run's scale"),
            ("num_teachers", num_teachers, "the number of teachers"),
        ):
            if key not in parameters or not value:
                continue
            if key in args and args[key] != value:
                self.problem((*path, key), f"is {args[key]!r}, and {whose} is {value}.")
            args[key] = value
        before = len(self.problems)
        args = self.arguments(arch, args, path, f"a key of {name}")
        if len(self.problems) == before and (why := trial.network(name, args)) is not None:
            self.problem(path, why)
        return NetworkOptions(type=name, args=args)

    def teachers(self, data: Any) -> dict[str, TeacherOptions]:
        teachers = {}
        for name, value in self.mapping(data, ("teachers",)).items():
            path = ("teachers", name)
            if "." in name or hasattr(nn.ModuleDict(), name) or not name:
                self.problem(path, "cannot be a teacher's name; use letters, digits and _, and no name of a method.")
            if isinstance(value, str):
                value = {"pretrain": value}
            if isinstance(value, dict):
                value = {**value, "network": self.network_of_weights(value, path)}
            if teacher := self.section(TeacherOptions, value, path):
                teachers[name] = teacher
        return teachers

    def fusion(self, data: Any) -> Literal["mean"] | FusionOptions | None:
        if data is None or data == "mean":
            return data
        if isinstance(data, str) and not _is_no_file(data):
            data = {"pretrain": data}
        if not isinstance(data, dict):
            self.problem(
                ("fusion",),
                f"must be `mean` or weights, a file or {{network: ..., pretrain: ...}}, found {shown(data)}.",
            )
            return None
        network = self.network_of_weights(data, ("fusion",), num_teachers=self.num_teachers)
        return self.section(FusionOptions, {**data, "network": network}, ("fusion",))

    def network_of_weights(
        self, data: dict[str, Any], path: KeyPath, *, num_teachers: int | None = None
    ) -> NetworkOptions | None:
        """`network`, or what `pretrain` says it is; None where it cannot say so yet, or after reporting why."""
        if data.get("network") is not None:
            return self.network(data["network"], (*path, "network"), num_teachers=num_teachers)
        source = data.get("pretrain")
        if not isinstance(source, str) or not self.check:
            return None
        try:
            place = given_path(source)
            check_readable(place)
        except MtkdError:
            return None  # the section says what is wrong with it
        if not source.startswith("zoo:") and not os.path.exists(place):
            return None  # `check_paths` says so
        try:
            found = zoo.describe(
                source if source.startswith("zoo:") else str(place), key=data.get("param_key", "auto") or "auto"
            )
        except MtkdError as error:
            self.problem((*path, "pretrain"), str(error))
            return None
        if found.assumed:
            assumed = ", ".join(f"{key} {value}" for key, value in found.assumed.items())
            self.notices.append(
                f"{key_text(path)}: by its tensors {source} is {found.type}; assumed, as no tensor shows it: {assumed}."
            )
        return self.network({"type": found.type, **found.args}, (*path, "network"), num_teachers=num_teachers)

    def metric(self, data: Any, path: KeyPath) -> dict[str, Any]:
        if (found := self.typed(data, path)) is None:
            return {}
        name, args = found
        better = args.pop("better", "lower" if name in _LOWER_IS_BETTER else "higher")
        if better not in ("higher", "lower"):
            self.problem((*path, "better"), f"must be 'higher' or 'lower', found {shown(better)}.")
        if (metric := self.lookup("metric", name, (*path, "type"))) is not None:
            args = self.arguments(metric, args, path, f"a key of {name}", skip=_IMAGE_ARGUMENTS, more=["better"])
        border = args.get("crop_border")
        if self.scale and isinstance(border, int) and border != self.scale:
            self.notices.append(
                f"{key_text((*path, 'crop_border'))} is {border}; published numbers crop the scale, {self.scale}."
            )
        return {"type": name, **args, "better": better}

    def arguments(
        self,
        target: Callable[..., Any],
        given: dict[str, Any],
        path: KeyPath,
        kind: str,
        *,
        skip: Iterable[str] = (),
        more: Sequence[str] = (),
    ) -> dict[str, Any]:
        """`given`, checked against the signature of `target` and converted to its annotations (a list to a tuple).

        `skip` are parameters that the file does not set, `more` further keys that are valid beside the signature's.
        """
        parameters = [p for p in _parameters(target).values() if p.name not in skip]
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        hints = annotations_of(target)
        result = {}
        for key, value in given.items():
            if key in names:
                result[key] = self.converted(hints.get(key, Any), value, (*path, key))
            elif is_open and key not in skip:
                result[key] = value
            else:
                self.unknown((*path, key), [*names, *more], f"not {kind}")
        for p in parameters:
            if p.name in names and p.default is p.empty and p.name not in given:
                self.problem((*path, p.name), "required, and missing.")
        return result

    def converted(self, hint: Any, value: Any, path: KeyPath) -> Any:
        hint = plain_hint(hint)
        if hint is None:
            return value
        adapter = _adapter(hint)
        try:
            return adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            try:
                # `!!float 5e3` where a whole number is wanted.
                return adapter.validate_json(json.dumps(whole_inside(value)), strict=True)
            except ValidationError:
                pass
            details = error.errors(include_url=False)
            if len(details) == 1:
                inner = tuple(part for part in details[0]["loc"] if isinstance(part, int))
                self.problem((*path, *inner), messages.of_pydantic(details[0]))
            else:
                self.problem(path, f"must be {hint_text(hint)}, found {shown(value)}.")
            return value

    # Training.

    def train(self, data: Any) -> TrainOptions | None:
        if not self.is_train:
            if data is not None:
                self.problem(("train",), "has no effect without datasets.train.")
            return None
        if not isinstance(data, dict):
            missing = "required beside datasets.train, and missing."
            self.problem(("train",), missing if data is None else _no_mapping(data))
            return None
        given = dict(data)
        for key in ("optim_g", "optim_d"):
            if given.get(key) is not None:
                given[key] = self.optimizer(given[key], ("train", key))
        if given.get("scheduler") is not None:
            given["scheduler"] = self.scheduler(given["scheduler"])
        term_keys = [key for key in given if key.endswith("_opt")]
        terms, off = self.terms({key: given.pop(key) for key in term_keys})
        train = self.section(TrainOptions, given, ("train",))
        if train is None:
            return None
        self.lengths(train)
        if self.method is not None:
            critics = [name for name in terms if self.method.terms[name].critic]
            if critics and train.optim_d is None:
                message = f"required, and missing: {key_text(('train', critics[0] + '_opt'))} trains a critic."
                self.problem(("train", "optim_d"), message)
            if train.optim_d is not None and not critics:
                self.problem(("train", "optim_d"), "has no effect: no term of this run trains a critic.")
        return train.model_copy(update={"terms": terms, "off": off})

    def curriculum(self, values: dict[str, Any]) -> None:
        train, images = values["train"], values["datasets"].train if values["datasets"] else None
        if train is None or images is None or train.curriculum is None:
            return
        if isinstance(images, ItemTrainSetOptions):
            self.problem(("train", "curriculum"), f"has no effect: {images.type} makes its own crops.")
            return
        for index, (_, side) in enumerate(train.curriculum.gt_size):
            if side > images.gt_size or (self.scale and side % self.scale):
                message = f"{side} must be a multiple of scale and at most datasets.train.gt_size, {images.gt_size}."
                self.problem(("train", "curriculum", "gt_size", index), message)

    def lengths(self, train: TrainOptions) -> None:
        periods = train.scheduler.args.get("periods")
        if periods and sum(periods) < train.total_iter:
            message = f"add up to {sum(periods)}, less than total_iter {train.total_iter}."
            self.problem(("train", "scheduler", "periods"), message)
        late = [at for at in train.scheduler.args.get("milestones", ()) if at >= train.total_iter]
        if late:
            self.notices.append(f"train.scheduler.milestones {late} are not reached in {train.total_iter} iterations.")

    def optimizer(self, data: Any, path: KeyPath) -> OptimOptions:
        if (found := self.typed(data, path)) is None:
            return OptimOptions(type="", lr=0.0)
        name, args = found
        given = dict(args)
        if name not in _OPTIMIZERS:
            self.problem((*path, "type"), messages.choice(name, _OPTIMIZERS))
            return OptimOptions(type="", lr=0.0)
        lr = args.pop("lr", None)
        if not is_number(lr) or lr <= 0:
            found_lr = "required, and missing." if lr is None else f"must be a positive number, found {shown(lr)}."
            self.problem((*path, "lr"), found_lr)
            lr = 1.0
        optimizer = getattr(torch.optim, name)
        before = len(self.problems)
        args = self.arguments(optimizer, args, path, f"a key of {name}", skip={"params", "lr"}, more=["lr"])
        for key, value in args.items():
            numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if is_number(v)]
            if any(v < 0 for v in numbers) or (key == "betas" and any(v >= 1 for v in numbers)):
                self.problem((*path, key), f"out of range, found {shown(given[key])}.")
        if len(self.problems) == before and (why := trial.optimizer(optimizer, float(lr), args)) is not None:
            self.problem(path, why)
        return OptimOptions(type=name, lr=float(lr), args=args)

    def scheduler(self, data: Any) -> SchedulerOptions:
        path = ("train", "scheduler")
        nothing = SchedulerOptions(type="MultiStepLR")
        if (found := self.typed(data, path)) is None:
            return nothing
        name, args = found
        if name not in SCHEDULERS:
            self.problem((*path, "type"), messages.choice(name, list(SCHEDULERS)))
            return nothing
        checked = self.section(SCHEDULERS[name], args, path)
        return SchedulerOptions(type=typing.cast(Any, name), args=dict(checked)) if checked else nothing

    def terms(self, given: dict[str, Any]) -> tuple[dict[str, TermOptions], list[str]]:
        known: Mapping[str, Any] = self.method.terms if self.method is not None else {}
        terms: dict[str, TermOptions] = {}
        for key in given:
            name = key.removesuffix("_opt")
            if self.method is not None and name not in known:
                near = messages.near(name, list(known)) if len(self.problems) < PROBLEMS_SHOWN else None
                hint = f" Did you mean {near}_opt?" if near else ""
                terms_text = ", ".join(f"{term}_opt" for term in known)
                self.problem(("train", key), f"{self.model_type} has no such term.{hint} Its terms are {terms_text}.")
            elif given[key] is not None:
                terms[name] = self.term(given[key], known.get(name), ("train", key))
        off = [name for name, term in known.items() if term.weight is not None and given.get(f"{name}_opt", 0) is None]
        for name, term in known.items():
            if term.weight is not None and name not in terms and name not in off:
                terms[name] = self.term({}, term, ("train", f"{name}_opt"))
        if known and not any(not known[name].critic for name in terms if name in known):
            choices = [f"{name}_opt" for name, term in known.items() if not term.critic]
            self.problem(("train",), f"no loss is active; give at least one of {', '.join(choices)}.")
        order = {name: index for index, name in enumerate(known)}
        return dict(sorted(terms.items(), key=lambda item: order.get(item[0], 0))), off

    def term(self, data: Any, term: Any, path: KeyPath) -> TermOptions:
        given = dict(self.mapping(data, path))
        weight = self.schedule(given.pop("loss_weight", None), term.weight if term else None, (*path, "loss_weight"))
        if term is None:
            return TermOptions(weight=weight, args=given)
        own = {key: given.pop(key) for key in list(given) if key in term.options}
        for key, value in own.items():
            own[key] = self.converted(hint_of_default(term.options[key]), value, (*path, key))
        own = {**term.options, **own}
        if term.loss is None:
            for key in given:
                self.unknown((*path, key), [*term.options, "loss_weight"], "not a key of this term")
            return TermOptions(weight=weight, args=own)
        name = given.pop("type", term.loss)
        if not isinstance(name, str):
            self.problem((*path, "type"), f"must be a name, found {shown(name)}.")
        elif (loss := self.lookup("loss", name, (*path, "type"))) is not None:
            # BasicSR's losses take their weight as an argument; ours have none, so that it cannot count twice.
            skip = {"loss_weight"}
            more = ["type", "loss_weight", *term.options]
            given = self.arguments(loss, given, path, f"a key of {name}", skip=skip, more=more)
            return TermOptions(weight=weight, args={"type": name, **given, **own})
        return TermOptions(weight=weight)

    def schedule(self, value: Any, default: float | None, path: KeyPath) -> list[tuple[int, float]]:
        if value is None:
            return [(0, 1.0 if default is None else float(default))]
        if is_number(value):
            return [(0, float(value))]
        pairs: list[tuple[int, float]] = []
        if not isinstance(value, list) or not value:
            self.problem(path, f"must be a number or a schedule [[iteration, weight], ...], found {shown(value)}.")
        for index, pair in enumerate(value if isinstance(value, list) else []):
            at = whole(pair[0]) if isinstance(pair, list) and len(pair) == 2 else None
            if not isinstance(at, int) or isinstance(at, bool) or at < 0 or not is_number(pair[1]):
                self.problem((*path, index), f"must be [iteration, weight], found {shown(pair)}.")
            elif pairs and at <= pairs[-1][0]:
                self.problem((*path, index), f"iterations must increase, found {at} after {pairs[-1][0]}.")
            else:
                pairs.append((at, float(pair[1])))
        return pairs or [(0, 1.0)]

    # Teachers and method.

    def method_options(self, data: Any) -> dict[str, Any]:
        given = self.mapping(data, ("method",))
        if self.method is None:
            return given
        before = len(self.problems)
        config, path = self.method.Config, ("method",)
        result = self.arguments(config, given, path, f"an option of {self.model_type}")
        if len(self.problems) == before:
            try:
                config(**result)
            except (MtkdError, ValueError, TypeError) as error:
                self.problem(path, str(error))
        return result

    def teacher_use(self, values: dict[str, Any]) -> None:
        if self.method is None:
            return
        name, use, number = self.model_type, self.method.teacher_use, self.num_teachers
        has_fusion, has_store = self.data.get("fusion") is not None, values["target_store"] is not None
        has = {"teachers": number > 0, "fusion": has_fusion, "target_store": has_store}
        useless = {"none": tuple(has), "network": ("fusion", "target_store"), "image": ()}[use]
        reason = {"none": f"{name} uses no teacher", "network": f"{name} uses the teacher networks themselves"}
        for key in useless:
            if has[key]:
                self.problem((key,), f"has no effect: {reason[use]}.")
        if not self.is_train:
            if has_store and use == "image":
                self.problem(("target_store",), "has no effect in a test file.")
            return
        if use == "network" and not number:
            self.problem(("teachers",), f"required, and missing: {name} needs at least one.")
        if use != "image":
            return
        if not number and not has_store:
            message = f"required, and missing: {name} imitates a teacher's image (or give target_store)."
            self.problem(("teachers",), message)
        if number > 1 and not has_fusion and not self.method.takes_several_teachers(values["method"]):
            self.problem(
                ("teachers",),
                f"{name} imitates one image, and there are {number} teachers; say how they become one: `fusion: mean`, "
                "or `fusion: {network: {type: DCTSwin}, pretrain: FILE}`.",
            )
        if has_fusion and number < 2:
            self.problem(("fusion",), f"has no effect with {number or 'no'} teacher{'s' if number != 1 else ''}.")


_ADAPTERS: dict[str, TypeAdapter[Any]] = {}
"""By the text of the annotation: equal annotations may list their choices in another order, which messages show."""


def _adapter(hint: Any) -> TypeAdapter[Any]:
    text = repr(hint)
    if text not in _ADAPTERS:
        _ADAPTERS[text] = TypeAdapter(hint)
    return _ADAPTERS[text]


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # written in C without a signature: anything may be right
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}


def _is_no_file(text: str) -> bool:
    """Whether `text` is rather a misspelt word than the path of weights that are not there yet."""
    return text.isidentifier() and not os.path.exists(text)


def _no_mapping(data: Any) -> str:
    return f"must be a mapping (`key: value` lines), found {shown(data)}."


def _keys(model: type[Section] | None) -> list[str]:
    return [key for key in model.model_fields if key not in model.internal] if model else []


def _nested(model: type[Section], loc: Sequence[Any]) -> type[Section] | None:
    """The section inside `model` that a pydantic location points at."""
    found: Any = model
    for part in loc:
        hint = found.model_fields[part].annotation if found and part in found.model_fields else None
        options = [hint, *typing.get_args(hint)]
        found = next((o for o in options if inspect.isclass(o) and issubclass(o, Section)), None)
    return found


def _takes_text(path: KeyPath) -> bool:
    """Whether the value at `path` is text, or nothing, and never anything else."""
    model: type[Section] | None = Options
    for part in path[:-1]:
        if model is DatasetsOptions:
            model = TrainSetOptions if part == "train" else EvalSetOptions
        elif part in ("teachers",) and model is Options:
            model = _Teachers
        elif model is _Teachers:
            model = TeacherOptions
        else:
            model = _nested(model, [part]) if model is not None else None
    field = model.model_fields.get(str(path[-1])) if model is not None else None
    if field is None:
        return False
    kinds = set(typing.get_args(field.annotation)) or {field.annotation}
    return bool(kinds) and all(kind in (str, type(None)) or _is_text_kind(kind) for kind in kinds)


class _Teachers(Section):
    """Stands for `teachers`, whose keys are names."""


def _is_text_kind(kind: Any) -> bool:
    return typing.get_origin(kind) is Annotated and typing.get_args(kind)[0] is str


def _homes() -> dict[str, list[str]]:
    """Key -> where in a file it is valid."""
    homes: dict[str, list[str]] = {}
    sections = {
        "": Options,
        "datasets.train.": TrainSetOptions,
        "path.": PathOptions,
        "train.": TrainOptions,
        "val.": ValOptions,
        "val.tile.": TileOptions,
        "logger.": LoggerOptions,
    }
    for prefix, model in sections.items():
        for key in _keys(model):
            if key not in ("name", "type"):
                homes.setdefault(key, []).append(prefix + key)
    return homes


_HOMES = _homes()
