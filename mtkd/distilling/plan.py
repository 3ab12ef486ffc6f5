"""The first steps of a distillation: all is looked at and tried, the photographs are divided, teachers timed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtkd import build
from mtkd.config import AnswersOptions, Options, make_options
from mtkd.contracts import MtkdError
from mtkd.data.kept import answers_to
from mtkd.distilling.option_file import plain_options
from mtkd.distilling.parts import Parts, divide, limit, write_parts
from mtkd.distilling.photos import Photos, find_photos
from mtkd.distilling.request import Request
from mtkd.distilling.student import CROP_LQ, Student, find_student, iterations_in, seconds_of_a_step
from mtkd.distilling.teachers import Teacher, find_teachers, seconds_per_pixel
from mtkd.runtime.device import choose_device
from mtkd.runtime.progress import Log
from mtkd.targets.store_check import free_bytes, size_text


@dataclass(frozen=True)
class Looked:
    """What was found before anything is written.

    Attributes:
        seconds: that the teachers will take for the targets, about.
    """

    teachers: list[Teacher]
    student: Student
    parts: Parts
    device: torch.device
    seconds: float


def device_of(request: Request) -> torch.device:
    """Where it runs.

    Raises:
        MtkdError: CUDA is asked for, and there is none.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise MtkdError("--device cuda: torch sees no CUDA device here. Leave it out: the CPU does it too.")
    return choose_device(0 if request.device == "cpu" else "auto")


def look(request: Request, out: Path, log: Log, *, cut: bool = True) -> Looked:
    """Look at the photographs, load and try teachers and student, and divide the photographs; write nothing.

    Args:
        out: left out where photographs are searched.
        cut: time the teachers, and cut photographs that would take them longer than the training, or are few.

    Raises:
        MtkdError: something is missing, does not fit, or cannot be used.
    """
    device = device_of(request)
    without = [out, *([Path(request.validation)] if isinstance(request.validation, str) else [])]
    photos = find_photos(Path(request.photos), without=without)
    validation = find_photos(Path(request.validation)) if isinstance(request.validation, str) else request.validation
    if isinstance(validation, Photos):
        _keep_apart(photos, validation)
    teachers = find_teachers(request.teachers, request.scale)
    student = find_student(request.student, request.scale, from_scratch=request.from_scratch)
    cut = cut and all(teacher.net is not None for teacher in teachers)
    parts = divide(
        photos,
        scale=request.scale,
        crop_lq=CROP_LQ.get(device.type, 24),
        validation=validation,
        unlabelled=request.unlabelled,
        cut=cut,
    )
    each = seconds_per_pixel(teachers, device)
    if cut and request.minutes is not None and not request.whole:
        limit(parts, request.minutes, each)
    others = validation.remarks() if isinstance(validation, Photos) else []
    notices = [teacher.notice for teacher in teachers if teacher.notice]
    for remark in [*photos.remarks(), *others, *notices, *parts.remarks]:
        log(f"  {remark}")
    parts.remarks.clear()
    need, free = parts.nbytes(), free_bytes(out / "targets")
    if need > free:
        raise MtkdError(
            f"{out} needs {size_text(need)}, and its disk has {size_text(free)} free. Make room, name a folder on "
            "another disk with --out, or give fewer photographs."
        )
    return Looked(teachers, student, parts, device, parts.lq_pixels * each)


def _keep_apart(photos: Photos, validation: Photos) -> None:
    """Leave out of `photos` the files that are measured on."""
    measured = {os.path.realpath(validation.root / photo.name) for photo in validation.good}
    for photo in [photo for photo in photos.good if os.path.realpath(photos.root / photo.name) in measured]:
        photos.leave_out(photo.name, "that are measured on, --validation")
    if not photos.good:
        raise MtkdError(
            f"All photographs of {photos.root} are in --validation {validation.root} too, and none is left to train on."
        )


def write_plan(request: Request, looked: Looked, folder: Path, log: Log, **names: Any) -> dict[str, Any]:
    """Write lists or copies of the photographs into `folder`, and return the option file, one iteration long.

    Args:
        names: `root`, `store`, `name` of `plain_options`, and `prefix` of `write_parts`.

    Raises:
        MtkdError: the disk refuses, no photograph can be decoded, or a teacher's kept answers do not fit.
    """
    places = write_parts(looked.parts, folder, names.pop("prefix", ""))
    for remark in looked.parts.remarks:
        log(f"  {remark}")
    for name in ("train", "validation"):
        if not getattr(looked.parts, name):
            raise MtkdError(f"No photograph is left for the {name} part: none of it can be decoded.")
    plain = plain_options(request, looked.parts, places, looked.student, looked.teachers, **names)
    options = make_options(plain, file="the option file of mtkd distill")
    images = build.training_files(options)
    for teacher, section in options.teachers.items():
        if isinstance(section, AnswersOptions):
            try:
                build.training_answers(options, section, images)
            except MtkdError as error:
                raise MtkdError(f"--teacher {section.images} (as {teacher}): {error}") from error
    return plain


def length_of(request: Request, plain: dict[str, Any], log: Log) -> int:
    """Iterations of the training: those that are asked for, or as many as fit into its minutes here."""
    if request.iterations is not None:
        return request.iterations
    assert request.minutes is not None
    seconds = seconds_of_a_step(make_options(plain), device_of(request))
    iterations = iterations_in(request.minutes, seconds)
    log(f"  a step takes {1000 * seconds:.3g} ms: {iterations:,d} iterations in {request.minutes:g} minutes")
    return iterations


def answering(options: Options) -> Sequence[str]:
    """The teachers that can be measured on the validation part: those of kept answers may have none to it."""
    images = build.build_image_set(options.datasets.evaluation["val"], options.scale)
    found = []
    for name, section in options.teachers.items():
        if isinstance(section, AnswersOptions):
            try:
                answers_to(section.images, ("val", "validation"), images, flat=True)
            except MtkdError:
                continue
        found.append(name)
    return found
