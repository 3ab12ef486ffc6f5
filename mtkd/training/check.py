"""`mtkd check --data`: every problem of files and of this machine that would stop a run, found without starting one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mtkd import build, catalog, zoo
from mtkd.build import open_items
from mtkd.config import AnswersOptions, ItemSetOptions, Options, Problem
from mtkd.config.problems import key_text
from mtkd.config.untested import is_for_upscale, why_untested
from mtkd.contracts import MtkdError
from mtkd.data.kept import answers_to
from mtkd.data.unlabelled import images_of_section
from mtkd.methods.base import Method
from mtkd.runtime.run_folder import RunFolder
from mtkd.training import preflight
from mtkd.training.paths import check_paths


def check_data(options: Options) -> list[Problem]:
    """Problems of this machine, missing files and folders, and unpaired, unreadable and wrongly sized images.

    Only image headers are read; of a data set from outside, the first item. Nothing is fetched: a `zoo:` name must
    exist in the zoo, and its file need not be here.
    """
    problems = [*check_machine(options), *check_folders(options), *check_paths(options), *_check_zoo_names(options)]
    without_gt = options.sets_without_gt
    if (why := why_untested(options)) is not None and not is_for_upscale(options):
        key = ("datasets", next(iter(without_gt))) if without_gt else ("val", "metrics")
        problems.append(options.problem(key, why.replace("val.metrics is missing", "missing")))
    for key, section in without_gt.items() if not options.is_train else ():
        try:
            images_of_section(section.args, scale=options.scale)
        except MtkdError as error:
            problems.append(options.problem(("datasets", key), str(error)))
    if not options.is_train:
        # Read by nothing but `mtkd upscale`, and there by itself.
        measured = {key: one for key, one in options.datasets.evaluation.items() if key not in without_gt}
        datasets = options.datasets.model_copy(update={"evaluation": measured})
        options = options.model_copy(update={"datasets": datasets})
    missing = {problem.key.rpartition(".")[0] for problem in problems}
    for key, given in {"train": options.datasets.train, **options.datasets.evaluation}.items():
        where = f"datasets.{key}"
        if given is None or where in missing:
            continue
        try:
            if isinstance(given, ItemSetOptions):
                open_items(given, options.scale, phase=key.split("_")[0])
            else:
                images_of_section(given.model_dump(), scale=options.scale)
        except MtkdError as error:
            problems.append(options.problem(("datasets", key), str(error)))
    problems += _check_answers(options, {problem.key for problem in problems})
    said = {problem.message for problem in problems}
    # A data set whose folder is missing is reported once, at the key of the folder.
    absent = {key for key in missing if key.startswith("datasets.")}
    tried = (problem for problem in preflight.try_parts(options) if problem.key not in absent)
    return [*problems, *(problem for problem in tried if problem.message not in said)]


def _check_answers(options: Options, reported: set[str]) -> list[Problem]:
    """A problem for each data set to which a teacher's kept answers, where the run needs them, are missing or do not
    fit.
    """
    cls, problems = catalog.get("method", options.model_type), []
    sets: dict[str, Any] = {}
    with suppress(MtkdError):  # reported already
        if options.is_train and not options.target_store:
            sets["train"] = build.training_files(options)
    # `mtkd test` measures the teachers of a file too.
    if cls.predictor is not Method.predictor or not options.is_train:
        for key, given in options.datasets.evaluation.items():
            with suppress(MtkdError):
                sets[key] = build.build_image_set(given, options.scale, phase=key.split("_")[0])
    for name, teacher in options.teachers.items():
        place = ("teachers", name, "images")
        if not isinstance(teacher, AnswersOptions) or any(key.startswith(key_text(place)) for key in reported):
            continue
        for key, images in sets.items():
            try:
                if key == "train":
                    build.training_answers(options, teacher, images)
                else:
                    alone = len(sets) == 1 and not options.is_train
                    answers_to(teacher.images, build.names_of_set(options, key), images, flat=alone)
            except MtkdError as error:
                problems.append(options.problem(place, f"{key}: {error}"))
    return problems


def check_machine(options: Options) -> list[Problem]:
    """A problem where training needs devices that this machine does not show; testing takes what is there."""
    if not options.is_train:
        return []
    shown, problems = torch.cuda.device_count(), []
    if options.num_gpu != "auto" and int(options.num_gpu) > shown:
        message = (
            f"is {options.num_gpu}, and this machine shows {shown} CUDA devices. `auto` takes what is there, 0 the CPU."
        )
        problems.append(options.problem(("num_gpu",), message))
    if options.precision == "fp16" and (not shown or options.num_gpu == 0):
        message = "fp16 needs a CUDA device; on the CPU use bf16 or fp32."
        problems.append(options.problem(("precision",), message))
    return problems


def check_folders(options: Options) -> list[Problem]:
    """A problem where the folder of the run holds another one, or no folder can be made."""
    key = "experiments_root" if options.is_train else "results_root"
    root = Path(getattr(options.path, key))
    problems = []
    folder = RunFolder(root / options.name)
    if options.is_train and options.path.resume_state is None and folder.starts_leftovers(options.name) is None:
        message = f"{folder.root} holds a run, which is never overwritten. Go on with --auto_resume, or change `name`."
        problems.append(options.problem(("name",), message))
    there = next(place for place in (root, *root.absolute().parents) if place.exists())
    if not there.is_dir():
        problems.append(options.problem(("path", key), f"{there} is a file, and must be a folder."))
    elif not os.access(there, os.W_OK | os.X_OK):
        problems.append(options.problem(("path", key), f"nothing can be written into {there}."))
    return problems


def _check_zoo_names(options: Options) -> list[Problem]:
    problems = []
    for path, value in _texts(options.model_dump(), ()):
        if value.startswith("zoo:"):
            try:
                zoo.entry(value)
            except MtkdError as error:
                problems.append(options.problem(path, str(error)))
    return problems


def _texts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from _texts(part, (*path, key))
