"""Reads `train`: optimizers, the scheduler and what has to agree with the length of the run."""

from __future__ import annotations

from typing import Any

from mtkd.config import trial
from mtkd.config.optimizers import OPTIMIZERS, optimizer_class
from mtkd.config.problems import KeyPath, format_value, key_text, no_mapping, unknown_choice
from mtkd.config.read.arguments import check_arguments, typed
from mtkd.config.read.reader import Reader
from mtkd.config.read.terms import read_terms
from mtkd.config.schema import (
    SCHEDULERS,
    DatasetsOptions,
    ItemTrainSetOptions,
    OptimOptions,
    SchedulerName,
    SchedulerOptions,
    TrainOptions,
    TrainSetOptions,
    ValOptions,
)
from mtkd.config.signatures import is_number
from mtkd.contracts import MtkdError


def read_training(reader: Reader, data: Any) -> TrainOptions | None:
    """`train`; None in a test file, or after reporting what is wrong."""
    if not reader.is_train:
        if data is not None:
            reader.problem(("train",), "has no effect without datasets.train.")
        return None
    if not isinstance(data, dict):
        missing = "required beside datasets.train, and missing."
        reader.problem(("train",), missing if data is None else no_mapping(data))
        return None
    given = dict(data)
    for key in ("optim_g", "optim_d"):
        if given.get(key) is not None:
            given[key] = _optimizer(reader, given[key], ("train", key))
    if given.get("scheduler") is not None:
        given["scheduler"] = _scheduler(reader, given["scheduler"])
    term_keys = [key for key in given if key.endswith("_opt")]
    terms, off = read_terms(reader, {key: given.pop(key) for key in term_keys})
    train = reader.section(TrainOptions, given, ("train",))
    if train is None:
        return None
    _check_lengths(reader, train)
    if reader.method is not None:
        critics = [name for name in terms if reader.method.terms[name].critic]
        if critics and train.optim_d is None:
            message = f"required, and missing: {key_text(('train', critics[0] + '_opt'))} trains a critic."
            reader.problem(("train", "optim_d"), message)
        if train.optim_d is not None and not critics:
            reader.problem(("train", "optim_d"), "has no effect: no term of this run trains a critic.")
    return train.model_copy(update={"terms": terms, "off": off})


def check_curriculum(reader: Reader, train: TrainOptions | None, datasets: DatasetsOptions) -> None:
    """Report sides of `train.curriculum` that the training images cannot have."""
    images = datasets.train
    if train is None or images is None or train.curriculum is None:
        return
    if isinstance(images, ItemTrainSetOptions):
        reader.problem(("train", "curriculum"), f"has no effect: {images.type} makes its own crops.")
        return
    for index, (_, side) in enumerate(train.curriculum.gt_size):
        if side > images.gt_size or (reader.scale and side % reader.scale):
            message = f"{side} must be a multiple of scale and at most datasets.train.gt_size, {images.gt_size}."
            reader.problem(("train", "curriculum", "gt_size", index), message)


def check_early_stop(reader: Reader, train: TrainOptions | None, val: ValOptions, datasets: DatasetsOptions) -> None:
    """Report `train.early_stop` where nothing is measured that it could follow; note that it comes too late."""
    if train is None or train.early_stop is None:
        return
    if not datasets.evaluation or not val.metrics:
        what = (
            "there are no val.metrics" if datasets.evaluation else "there is no data set to validate on (datasets.val)"
        )
        reader.problem(("train", "early_stop"), f"has no effect: {what}. Give some, or leave early_stop out.")
        return
    first = (train.early_stop.patience + 1) * (val.val_freq or train.total_iter)
    if first >= train.total_iter:
        reader.notices.append(
            f"train.early_stop ends no run of {train.total_iter} iterations: with a validation every {val.val_freq} "
            f"iterations, {train.early_stop.patience + 1} validations are needed."
        )


def check_gt(reader: Reader, train: TrainOptions | None, datasets: DatasetsOptions) -> None:
    """Report terms that compare with gt where the training images have none."""
    images = datasets.train
    if train is None or reader.method is None or not isinstance(images, TrainSetOptions) or images.dataroot_gt:
        return
    readers, path = reader.method.gt_terms, ("datasets", "train", "dataroot_gt")
    found = [f"train.{name}_opt" for name in train.terms if readers is None or name in readers]
    if readers is None:
        message = (
            f"missing, and {reader.model_type} needs gt for {', '.join(found)}. Give dataroot_gt, or take a method "
        )
        reader.problem(path, message + "that can do without, such as OutputKD or MTKD.")
    elif found:
        message = (
            f"missing, and {reader.model_type} compares with gt in {', '.join(found)}. Give dataroot_gt, or switch "
        )
        reader.problem(path, f"{message}{'them' if len(found) > 1 else 'it'} off (`~`): the teacher alone remains.")


def _check_lengths(reader: Reader, train: TrainOptions) -> None:
    periods = train.scheduler.args.get("periods")
    if periods and sum(periods) < train.total_iter:
        message = f"add up to {sum(periods)}, less than total_iter {train.total_iter}."
        reader.problem(("train", "scheduler", "periods"), message)
    late = [at for at in train.scheduler.args.get("milestones", ()) if at >= train.total_iter]
    if late:
        reader.notices.append(f"train.scheduler.milestones {late} are not reached in {train.total_iter} iterations.")


def _optimizer(reader: Reader, data: Any, path: KeyPath) -> OptimOptions:
    if (found := typed(reader, data, path)) is None:
        return OptimOptions(type="", lr=0.0)
    name, args = found
    given = dict(args)
    foreign = name not in OPTIMIZERS
    optimizer = None
    if reader.check or not foreign:
        try:
            optimizer = optimizer_class(name)
        except MtkdError as error:
            reader.problem((*path, "type"), str(error))
            return OptimOptions(type="", lr=0.0)
    lr = args.pop("lr", None)
    if not is_number(lr) or lr <= 0:
        found_lr = "required, and missing." if lr is None else f"must be a positive number, found {format_value(lr)}."
        reader.problem((*path, "lr"), found_lr)
        lr = 1.0
    if optimizer is None:
        return OptimOptions(type=name, lr=float(lr), args=args)
    before = len(reader.problems)
    args = check_arguments(reader, optimizer, args, path, f"a key of {name}", skip={"params", "lr"}, more=["lr"])
    for key, value in () if foreign else args.items():
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if is_number(v)]
        if any(v < 0 for v in numbers) or (key == "betas" and any(v >= 1 for v in numbers)):
            reader.problem((*path, key), f"out of range, found {format_value(given[key])}.")
    if len(reader.problems) == before and (why := trial.optimizer(optimizer, float(lr), args)) is not None:
        reader.problem(path, why)
    return OptimOptions(type=name, lr=float(lr), args=args)


def _scheduler(reader: Reader, data: Any) -> SchedulerOptions:
    path = ("train", "scheduler")
    nothing = SchedulerOptions(type="MultiStepLR")
    if (found := typed(reader, data, path)) is None:
        return nothing
    name, args = found
    names: dict[str, SchedulerName] = {one: one for one in SCHEDULERS}
    known = names.get(name)
    if known is None:
        reader.problem((*path, "type"), unknown_choice(name, list(names)))
        return nothing
    checked = reader.section(SCHEDULERS[known], args, path)
    return SchedulerOptions(type=known, args=dict(checked)) if checked else nothing
