"""Reads `network_g`, `teachers` and `fusion`; a network is built once for trial."""

from __future__ import annotations

import os
from typing import Any, Literal

from torch import nn

from mtkd import catalog, zoo
from mtkd.config import trial
from mtkd.config.problems import KeyPath, format_value, key_text
from mtkd.config.read.arguments import check_arguments, lookup, parameters_of, typed
from mtkd.config.read.reader import Reader
from mtkd.config.schema import (
    NO_NETWORK,
    AnswersOptions,
    DatasetsOptions,
    FusionOptions,
    NetworkOptions,
    TeacherOptions,
)
from mtkd.contracts import MtkdError
from mtkd.runtime.given import check_readable
from mtkd.runtime.given import path as given_path
from mtkd.variants import variant


def read_tested(reader: Reader, data: Any, weights: Any) -> NetworkOptions:
    """`network_g`; `NO_NETWORK` in a test file that has teachers and gives neither it nor its `weights`."""
    if data is None and weights is None and not reader.is_train and reader.num_teachers:
        return NO_NETWORK
    return read_network(reader, data, ("network_g",), num_teachers=reader.num_teachers)


def read_network(
    reader: Reader, data: Any, path: KeyPath, *, num_teachers: int | None = None, scale: int | None = None
) -> NetworkOptions:
    """A network by the name of a variant, or written out; what the run decides (its scale, ...) is filled in.

    `num_teachers` is what an argument of that name has to be, None where no teachers are fused; `scale` takes the place
    of the run's.
    """
    if isinstance(data, str):
        try:
            data = variant(data)
        except MtkdError as error:
            reader.problem(path, str(error))
            return NO_NETWORK
    if (found := typed(reader, data, path)) is None:
        return NO_NETWORK
    name, args = found
    arch = lookup(reader, "arch", name, (*path, "type"))
    if arch is None:
        return NetworkOptions(type=name, args=args)
    if reader.is_train and path == ("network_g",) and hasattr(arch, "adopt"):
        message = (
            f"the network of a {name} is known only from its weights, so it cannot be trained. Name another network."
        )
        reader.problem((*path, "type"), message)
    parameters = parameters_of(arch)
    whose_scale = "the teacher's scale" if scale else "the run's scale"
    larger = ", or say `scale` beside `pretrain` where the network enlarges by more" if path[0] == "teachers" else ""
    for key, value, whose in (
        ("upscale", scale or reader.scale, whose_scale),
        ("scale", scale or reader.scale, whose_scale),
        ("num_teachers", num_teachers, "the number of teachers"),
    ):
        if key not in parameters or not value:
            continue
        if key in args and args[key] != value:
            reader.problem(
                (*path, key),
                f"is {args[key]!r}, and {whose} is {value}. Change one, or leave this out: it is filled in{larger}.",
            )
        args[key] = value
    before = len(reader.problems)
    args = check_arguments(reader, arch, args, path, f"a key of {name}")
    if len(reader.problems) == before and (why := trial.network(name, args)) is not None:
        reader.problem(path, why)
    return NetworkOptions(type=name, args=args)


def check_luma(reader: Reader, network: NetworkOptions, datasets: DatasetsOptions) -> None:
    """Report networks and teachers that cannot work on Y where the data sets have `color: y`."""
    sets = [datasets.train, *datasets.evaluation.values()]
    if network.is_none or not reader.check or all(getattr(given, "color", None) != "y" for given in sets):
        return
    arch = lookup(reader, "arch", network.type, ("network_g", "type"))
    if arch is not None and (channels := catalog.image_channels(arch, network.args)) != 1:
        names = [name for name in ("num_in_ch", "num_out_ch", "in_chans") if name in parameters_of(arch)]
        how = f"Set {' and '.join(names)} to 1" if names else "Take a network of one channel"
        message = f"takes images of {channels} channels, and `color: y` gives Y alone. {how}, or remove `color`."
        reader.problem(("network_g",), message)
    kept = {} if reader.is_train else reader.mapping(reader.data.get("teachers"), ("teachers",))
    for name, value in kept.items():
        if isinstance(value, dict) and value.get("images") is not None:
            reader.problem(("teachers", name, "images"), "answers RGB images, and `color: y` measures Y alone.")


def read_teachers(reader: Reader, data: Any) -> dict[str, TeacherOptions | AnswersOptions]:
    """`teachers` in the order of the file, without those that could not be read."""
    teachers: dict[str, TeacherOptions | AnswersOptions] = {}
    for name, value in reader.mapping(data, ("teachers",)).items():
        path = ("teachers", name)
        if "." in name or hasattr(nn.ModuleDict(), name) or not name:
            why = "it is empty, has a dot, or means something to torch"
            reader.problem(path, f"cannot be a teacher's name: {why}. Use letters, digits and _.")
        if isinstance(value, str):
            value = {"pretrain": value}
        if isinstance(value, dict) and value.get("images") is not None:
            if answers := _read_answers(reader, value, path):
                teachers[name] = answers
            continue
        if isinstance(value, dict):
            value = {key: part for key, part in value.items() if key != "images"}
            value["network"] = _network_of_weights(reader, value, path, scale=_scale_of(reader, value, path))
        if teacher := reader.section(TeacherOptions, value, path):
            teachers[name] = teacher
    return teachers


def _scale_of(reader: Reader, data: dict[str, Any], path: KeyPath) -> int | None:
    """`scale` of a teacher; None where it gives none, or one that the section reports."""
    scale = data.get("scale")
    if not isinstance(scale, int) or isinstance(scale, bool):
        return None
    if reader.scale and scale < reader.scale:
        reader.problem(
            (*path, "scale"),
            f"is {scale}, and the run's scale is {reader.scale}: images of a smaller scale cannot be made larger. Take "
            f"a teacher for x{reader.scale} or more.",
        )
        return None
    return scale


def _read_answers(reader: Reader, data: dict[str, Any], path: KeyPath) -> AnswersOptions | None:
    """A teacher that is kept answers; None after reporting what is wrong."""
    before, images, place = len(reader.problems), data["images"], (*path, "images")
    for key in data:
        if key == "param_key" or (key in ("network", "pretrain") and data[key] is not None):
            message = "given beside `images`, and kept answers need no network. Remove one of them."
            reader.problem((*path, key), message)
        elif key not in ("images", "network", "pretrain"):
            reader.unknown((*path, key), ["images"])
    if not isinstance(images, dict):
        found = reader.file_path(images, place)
        return AnswersOptions(images=found) if found and len(reader.problems) == before else None
    names = {str(section.get("name")) for section in reader.sets.values() if isinstance(section, dict)}
    for key, value in images.items():
        if value is None or reader.file_path(value, (*place, key)) is None:
            reader.problem((*place, key), "must be a folder or store of answers to this data set.")
        elif key not in reader.sets and key not in names:
            reader.notices.append(f"{key_text((*place, key))} has no effect: no data set of this file has that name.")
    if not images:
        reader.problem(place, "names no answers. Give a folder, a store, or one for each data set: `train: FOLDER`.")
    if len(reader.problems) > before:
        return None
    return AnswersOptions(images={key: os.path.expanduser(value) for key, value in images.items()})


def read_fusion(reader: Reader, data: Any) -> Literal["mean"] | FusionOptions | None:
    """`fusion`; None when absent, or after reporting what is wrong."""
    if data is None or data == "mean":
        return data
    if isinstance(data, str) and not _is_no_file(data):
        data = {"pretrain": data}
    if not isinstance(data, dict):
        reader.problem(
            ("fusion",),
            f"must be `mean` or weights, a file or {{network: ..., pretrain: ...}}, found {format_value(data)}.",
        )
        return None
    network = _network_of_weights(reader, data, ("fusion",), num_teachers=reader.num_teachers)
    return reader.section(FusionOptions, {**data, "network": network}, ("fusion",))


def _network_of_weights(
    reader: Reader,
    data: dict[str, Any],
    path: KeyPath,
    *,
    num_teachers: int | None = None,
    scale: int | None = None,
) -> NetworkOptions | None:
    """`network`, or that of `pretrain`; None where the weights are not there yet, or after reporting why."""
    if data.get("network") is not None:
        return read_network(reader, data["network"], (*path, "network"), num_teachers=num_teachers, scale=scale)
    source = data.get("pretrain")
    if not isinstance(source, str) or not reader.check:
        return None
    try:
        place = given_path(source)
        check_readable(place)
    except MtkdError:
        return None  # the section reports what is wrong with it
    if not source.startswith("zoo:") and not os.path.exists(place):
        return None  # `mtkd check --data` and the run report it
    try:
        found = zoo.describe(
            source if source.startswith("zoo:") else str(place), key=data.get("param_key", "auto") or "auto"
        )
    except MtkdError as error:
        reader.problem((*path, "pretrain"), str(error))
        return None
    if found.assumed:
        assumed = ", ".join(f"{key} {value}" for key, value in found.assumed.items())
        reader.notices.append(
            f"{key_text(path)}: by its tensors {source} is {found.type}; assumed, as no tensor shows it: {assumed}."
        )
    network = {"type": found.type, **found.args}
    return read_network(reader, network, (*path, "network"), num_teachers=num_teachers, scale=scale)


def _is_no_file(text: str) -> bool:
    """Whether `text` is rather a misspelt word than the path of weights that are not there yet."""
    return text.isidentifier() and not os.path.exists(text)
