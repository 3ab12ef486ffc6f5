"""Files and folders that an option file names, looked for on the disk."""

from __future__ import annotations

import os

from mtkd.config import AnswersOptions, EvalSetOptions, FusionOptions, Options, Problem, TrainSetOptions
from mtkd.config.problems import KeyPath


def check_paths(options: Options) -> list[Problem]:
    """A problem for each file or folder that `options` names and that is not there. `zoo:` names are not looked up."""
    wanted: list[tuple[KeyPath, str | None, bool]] = []
    sets = {"train": options.datasets.train, **options.datasets.evaluation}
    for key, data in sets.items():
        if isinstance(data, TrainSetOptions | EvalSetOptions):
            wanted.append((("datasets", key, "dataroot_gt"), data.dataroot_gt, True))
            wanted.append((("datasets", key, "dataroot_lq"), data.dataroot_lq, True))
            wanted.append((("datasets", key, "meta_info_file"), data.meta_info_file, False))
    kept: list[tuple[KeyPath, str]] = []
    for name, teacher in options.teachers.items():
        if isinstance(teacher, AnswersOptions):
            place = ("teachers", name, "images")
            images = {place: teacher.images} if isinstance(teacher.images, str) else teacher.images
            kept += [(key if isinstance(key, tuple) else (*place, key), path) for key, path in images.items()]
        else:
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
            problems.append(options.problem(path, f"there is no {kind} {value!r}{start}."))
    for path, value in kept:
        if not os.path.exists(value):
            start = "" if os.path.isabs(value) else f" (relative to {os.getcwd()})"
            problems.append(options.problem(path, f"there is no folder or store {value!r}{start}."))
    if options.target_store is not None and not os.path.exists(options.target_store):
        message = f"there is no store {options.target_store!r}; `mtkd teach` makes it."
        problems.append(options.problem(("target_store",), message))
    return problems
