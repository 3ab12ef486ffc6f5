"""What somebody asks `mtkd distill` or `mtkd init` for, checked as far as words alone can be."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.runtime import given
from mtkd.variants import variant

MINUTES = 10.0
"""Of training, where nobody says how long."""
LARGEST_SCALE = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """One distillation, as asked for. Paths are absolute, so that the same words mean the same anywhere.

    Attributes:
        photos: a folder, or one image.
        teachers: `zoo:NAME`, a weights file, the folder of a run, or a folder of its images of the
            photographs' smaller copies (of the photographs, where `unlabelled`).
        student: a name of `mtkd.variants`.
        scale: of all networks.
        minutes: of training; None where `iterations` says how long.
        iterations: of training; None where `minutes` says.
        validation: a folder, how many of the photographs, or None for a part that suits their number.
        unlabelled: the photographs are what the student will be given, and not what it shall make.
        from_scratch: do not begin with a student that comes with mtkd.
        whole: teachers run over whole photographs, however long that takes.
        seed: of weights and batches.
        device: "cpu", "cuda", or None for what is there.
    """

    photos: str
    teachers: tuple[str, ...]
    student: str = "tiny"
    scale: int = 4
    minutes: float | None = MINUTES
    iterations: int | None = None
    validation: str | int | None = None
    unlabelled: bool = False
    from_scratch: bool = False
    whole: bool = False
    seed: int = 10
    device: str | None = None

    def facts(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "teachers": list(self.teachers)}

    def words(self, out: Path | None = None) -> str:
        """The command line that asks for this."""
        words = ["mtkd", "distill", self.photos]
        for teacher in self.teachers:
            words += ["--teacher", teacher]
        words += ["--student", self.student, "--scale", str(self.scale)]
        words += ["--iterations", str(self.iterations)] if self.iterations else ["--minutes", f"{self.minutes:g}"]
        words += [] if self.validation is None else ["--validation", str(self.validation)]
        words += [f"--{flag}" for flag in ("unlabelled", "from_scratch", "whole") if getattr(self, flag)]
        words += [] if self.seed == Request.seed else ["--seed", str(self.seed)]
        words += [] if self.device is None else ["--device", self.device]
        return shlex.join([*words, *([] if out is None else ["--out", str(out)])])

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What is not as in the `facts` of another request: "--scale was 2, and is 4"."""
        now = self.facts()
        names = {"photos": "the photographs", "teachers": "--teacher"}
        return [
            f"{names.get(key, f'--{key}')}: {_shown(before.get(key))} before, {_shown(value)} now"
            for key, value in now.items()
            if before.get(key) != value
        ]


def request(
    photos: str | os.PathLike[str],
    teachers: Sequence[str | os.PathLike[str]],
    *,
    student: str = "tiny",
    scale: int = 4,
    minutes: float | None = None,
    iterations: int | None = None,
    validation: str | os.PathLike[str] | int | None = None,
    unlabelled: bool = False,
    from_scratch: bool = False,
    whole: bool = False,
    seed: int = Request.seed,
    device: str | None = None,
) -> Request:
    """The request that these words make; `minutes` is 10 where neither it nor `iterations` is given.

    Raises:
        MtkdError: something named is not there, or a value cannot be.
    """
    place = given.path(photos)
    if not place.exists():
        raise MtkdError(f"There are no photographs {place}. Name a folder of images, or one image.")
    if not teachers:
        raise MtkdError(
            "No teacher is given. Name a strong network of the scale: `--teacher FILE` (.pth, .safetensors), "
            "`--teacher zoo:NAME` (`mtkd zoo list`), or a folder of what it made of smaller copies of the "
            "photographs (`mtkd data lr`)."
        )
    variant(student)
    if not 2 <= scale <= LARGEST_SCALE:
        raise MtkdError(f"--scale is {scale}, and must be a whole number from 2 to {LARGEST_SCALE}.")
    if minutes is not None and iterations is not None:
        raise MtkdError("--minutes and --iterations both say how long to train. Give one of them.")
    if minutes is not None and not (math.isfinite(minutes) and 0 < minutes < 1e6):
        raise MtkdError(f"--minutes is {minutes}, and must be above 0; a half is 0.5.")
    if iterations is not None and not 0 < iterations < 10**9:
        raise MtkdError(f"--iterations is {iterations}, and must be a whole number above 0.")
    if device not in (None, "cpu", "cuda"):
        raise MtkdError(
            f"--device is {device}, and must be cpu or cuda. Of several GPUs take one by its number: "
            "CUDA_VISIBLE_DEVICES=1 mtkd distill ..."
        )
    if not 0 <= seed < 2**63:
        raise MtkdError(f"--seed is {seed}, and must be a whole number of 0 or more.")
    return Request(
        photos=os.path.abspath(place),
        teachers=_distinct([_teacher(os.fspath(one)) for one in teachers]),
        student=student,
        scale=scale,
        minutes=None if iterations is not None else MINUTES if minutes is None else float(minutes),
        iterations=iterations,
        validation=_validation(validation),
        unlabelled=unlabelled,
        from_scratch=from_scratch,
        whole=whole,
        seed=seed,
        device=device,
    )


def _teacher(text: str) -> str:
    if text.startswith("zoo:"):
        return text
    path = given.path(text)
    if path.exists():
        return os.path.abspath(path)
    if text in zoo.ENTRIES:
        return f"zoo:{text}"
    raise MtkdError(
        f"--teacher {text}: there is no such file or folder, and no weights of that name in the zoo (`mtkd zoo list`)."
    )


def _distinct(teachers: list[str]) -> tuple[str, ...]:
    for number, spec in enumerate(teachers):
        if spec in teachers[:number]:
            raise MtkdError(f"--teacher {spec} is given twice. Give it once.")
    return tuple(teachers)


def _validation(value: str | os.PathLike[str] | int | None) -> str | int | None:
    if value is None:
        return None
    text = str(value) if isinstance(value, int) else os.fspath(value)
    if text.lstrip("-").isdecimal() and not os.path.isdir(text):
        number = int(text)
        if not 0 < number < 10**6:
            raise MtkdError(f"--validation is {number}, and must be 1 or more photographs, or a folder of them.")
        return number
    path = given.path(text)
    if not path.is_dir():
        raise MtkdError(f"--validation {path}: there is no such folder. Give a folder of images, or how many to use.")
    return os.path.abspath(path)


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "nothing"
    return "yes" if value is True else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
