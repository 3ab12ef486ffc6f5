"""Reads `datasets`."""

from __future__ import annotations

from typing import Any, TypeVar

from mtkd import catalog
from mtkd.config.basicsr_keys import IGNORED_KEYS, IGNORED_OUTSIDE_DATASETS, LOADER_KEYS
from mtkd.config.problems import KeyPath, format_value, key_text
from mtkd.config.read.arguments import lookup
from mtkd.config.read.reader import Reader, keys_of
from mtkd.config.schema import (
    WITHOUT_GT,
    DatasetsOptions,
    EvalSetOptions,
    ItemSetOptions,
    ItemTrainSetOptions,
    TrainSetOptions,
)

DataSet = TypeVar("DataSet", TrainSetOptions, EvalSetOptions)

_CACHE_OF_RESIDENCE = {"auto": "auto", "device": "gpu", "ram": "ram", "disk": "disk"}
"""Values of `residence`, as the key was called until version 0.1 -> those of `cache`."""


def read_datasets(reader: Reader, data: Any) -> DatasetsOptions:
    """`datasets`; without what could not be read, after reporting why."""
    if data is None:
        reader.problem(("datasets",), "required, and missing.")
        return DatasetsOptions()
    found = reader.mapping(data, ("datasets",))
    train = None
    evaluation: dict[str, EvalSetOptions | ItemSetOptions] = {}
    if not found:
        reader.problem(("datasets",), "names no data set.")
    elif reader.is_train and "train" not in found:
        reader.problem(("datasets", "train"), "required beside `train`, and missing.")
    # Sets run in the order of their sorted keys.
    for key in sorted(found):
        path = ("datasets", key)
        phase = key.split("_")[0]
        if phase not in ("train", "val", "test") or (phase == "train" and key != "train"):
            reader.unknown(path, ["train", "val", "val_2", "test_1"], "not a kind of data set")
        elif phase == "train":
            one = _data_set(reader, TrainSetOptions, found[key], path)
            train = one if isinstance(one, TrainSetOptions | ItemTrainSetOptions) else None
            if isinstance(train, ItemTrainSetOptions) and reader.data.get("target_store") is not None:
                reader.problem(
                    ("target_store",),
                    "holds one target per image of a PairedImageDataset, and "
                    f"{train.type} makes its own crops. Give `teachers` instead.",
                )
        elif phase == "test" and reader.is_train:
            reader.problem(path, "has no effect in training: validation runs on `val`, `val_2`, ...")
        elif one := _data_set(reader, EvalSetOptions, found[key], path):
            if one.name in [other.name for other in evaluation.values()]:
                reader.problem((*path, "name"), f"{one.name!r} names two data sets; their results would mix.")
            evaluation[key] = one
    _check_color(reader, train, evaluation)
    if isinstance(train, TrainSetOptions) and reader.scale and train.gt_size % reader.scale:
        message = f"must be a multiple of the scale {reader.scale}, found {train.gt_size}."
        reader.problem(("datasets", "train", "gt_size"), message)
    return DatasetsOptions(train=train, evaluation=evaluation)


def _check_color(
    reader: Reader,
    train: TrainSetOptions | ItemTrainSetOptions | None,
    evaluation: dict[str, EvalSetOptions | ItemSetOptions],
) -> None:
    """Report sets that differ in `color`, and what cannot be with `color: y`."""
    sets = {"train": train, **evaluation} if train is not None else evaluation
    luma = [key for key, given in sets.items() if getattr(given, "color", None) == "y"]
    for key in sets if luma else ():
        if key not in luma:
            message = f"must be y as in datasets.{luma[0]}: the networks of a file get images of one kind."
            reader.problem(("datasets", key, "color"), message)
    if luma and reader.is_train and reader.method is not None and not reader.method.takes_luma:
        able = ", ".join(name for name in catalog.names("method") if catalog.get("method", name).takes_luma)
        message = f"y is one channel, and {reader.model_type} reads RGB. Methods that train on Y: {able}."
        reader.problem(("datasets", luma[0], "color"), message)


def _item_set(reader: Reader, data: dict[str, Any], path: KeyPath) -> ItemSetOptions | None:
    """A data set of a class from outside: our keys are checked, the rest is the class's."""
    without_gt = data["type"] == WITHOUT_GT and path[-1] != "train"  # needs no class: nothing is measured on it
    if not without_gt and lookup(reader, "dataset", data["type"], (*path, "type")) is None and reader.check:
        return None
    model = ItemTrainSetOptions if path[-1] == "train" else ItemSetOptions
    for key in data:
        if key in LOADER_KEYS and key not in keys_of(model):
            reader.ignore((*path, key), "mtkd draws the batches and needs no such setting")
    given: dict[str, Any] = {key: data[key] for key in data if key in keys_of(model)}
    rest = {key: value for key, value in data.items() if key not in given and key not in LOADER_KEYS}
    found = reader.section(model, given, path)
    return found and found.model_copy(update={"args": rest})


def _data_set(reader: Reader, model: type[DataSet], data: Any, path: KeyPath) -> DataSet | ItemSetOptions | None:
    if not isinstance(data, dict):
        return reader.section(model, data, path)
    if isinstance(data.get("type"), str) and data["type"] not in catalog.DATASETS:
        return _item_set(reader, data, path)
    given = {}
    data = _with_new_names(reader, data, path) if model is TrainSetOptions else data
    for key, value in data.items():
        if key == "io_backend":
            given[key] = _io_backend(reader, value, (*path, key))
        elif key == "gt_size" and model is TrainSetOptions and isinstance(value, dict):
            given[key] = _of_scale(reader, value, (*path, key))
        elif key == "color" and value not in (None, "rgb", "y"):
            reader.problem((*path, key), f"must be 'y' or 'rgb', found {format_value(value)}.")
        elif key in ("mean", "std") and value is not None:
            reader.problem((*path, key), f"not supported: {IGNORED_KEYS[key]}.")
        elif key == "num_worker_per_gpu" and model is TrainSetOptions:
            given[key] = value
            if data.get("cache") != "disk":
                reader.ignore_basicsr_key((*path, key))
        elif key in IGNORED_KEYS and key not in IGNORED_OUTSIDE_DATASETS:
            reader.ignore_basicsr_key((*path, key))
        elif model is EvalSetOptions and key not in keys_of(model) and key in keys_of(TrainSetOptions):
            reader.ignore((*path, key), "whole images are evaluated, one at a time")
        else:
            given[key] = value
    return reader.section(model, given, path)


def _with_new_names(reader: Reader, data: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """`data` with `cache` in place of `residence`, its former name, which a notice says."""
    if "residence" not in data:
        return data
    if "cache" in data:
        reader.problem((*path, "residence"), "the former name of `cache`, which is given too. Remove this line.")
        return {key: value for key, value in data.items() if key != "residence"}
    cache = _CACHE_OF_RESIDENCE.get(data["residence"]) if isinstance(data["residence"], str) else None
    if cache is None:
        message = f"must be 'auto', 'device', 'ram' or 'disk', found {format_value(data['residence'])}."
        reader.problem((*path, "residence"), f"{message} The key is called `cache` now.")
        return {key: value for key, value in data.items() if key != "residence"}
    reader.notices.append(f"{key_text((*path, 'residence'))} is called `cache` now; write `cache: {cache}`.")
    return {"cache" if key == "residence" else key: cache if key == "residence" else data[key] for key in data}


def _of_scale(reader: Reader, choices: dict[str, Any], path: KeyPath) -> Any:
    """What `{x2: ..., x3: ..., x4: ...}` says for the scale of the run."""
    for key in choices:
        if not (key.startswith("x") and key[1:].isascii() and key[1:].isdecimal()):
            reader.problem((*path, key), "is not a scale. Write one number per scale: {x2: 128, x3: 129, x4: 128}.")
    if reader.scale is None:
        return 1  # the missing or wrong scale is reported already
    if f"x{reader.scale}" not in choices:
        reader.problem(path, f"says nothing for x{reader.scale}; it has {', '.join(choices) or 'nothing'}.")
        return reader.scale
    return choices[f"x{reader.scale}"]


def _io_backend(reader: Reader, value: Any, path: KeyPath) -> dict[str, str] | None:
    """`{type: lmdb}`; None for files, or after reporting what is wrong."""
    if value is None:
        return None
    backend = value.get("type") if isinstance(value, dict) else value
    if backend in ("disk", "lmdb"):
        for key in value if isinstance(value, dict) else ():
            if key != "type":
                reader.unknown((*path, key), ["type"])
    if backend == "lmdb":
        return {"type": "lmdb"}
    if backend == "disk":
        reader.ignore_basicsr_key(path)
    elif backend == "memcached":
        reader.problem((*path, "type"), "memcached is not supported; give folders and `type: disk`, or `type: lmdb`.")
    else:
        reader.problem(path, f"must be {{type: disk}} or {{type: lmdb}}, found {format_value(value)}.")
    return None
