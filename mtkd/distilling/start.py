"""`mtkd init`: the option file of a distillation alone, from flags or from answers to a few questions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mtkd.config import load_options
from mtkd.contracts import MtkdError
from mtkd.data.images import write_bytes
from mtkd.distilling.option_file import option_text, with_length
from mtkd.distilling.plan import length_of, look, write_plan
from mtkd.distilling.request import Request
from mtkd.runtime import given
from mtkd.runtime.progress import Log
from mtkd.variants import variant

Ask = Callable[[str], str]


def write_file(asked: Request, file: Path, command: str, *, log: Log = print) -> None:
    """Write the option file of `asked`, and beside it the lists of the photographs that it names.

    Raises:
        MtkdError: the file is there already, or something that is asked for cannot be used; nothing is written then.
    """
    check_file(file)
    file = Path(os.path.abspath(file))
    looked = look(asked, file, log, cut=False)
    places = {"prefix": f"{file.stem}_", "name": file.stem, "store": file.with_name(f"{file.stem}_targets.safetensors")}
    plain = write_plan(asked, looked, file.parent, log, **places)
    plain = with_length(plain, length_of(asked, plain, log))
    write_bytes(file, option_text(plain, command).encode())
    load_options(file, kind="train")
    typed = os.path.relpath(file)
    log(
        f"Written: {typed}, and {file.stem}_train.txt and {file.stem}_validation.txt beside it, which name "
        f"{len(looked.parts.train)} photographs to train on and {len(looked.parts.validation)} to measure on.\n"
        f"Next: mtkd check {typed}; mtkd teach -opt {typed}; mtkd train -opt {typed}"
    )


def check_file(file: Path) -> None:
    """Check that an option file can be written there.

    Raises:
        MtkdError: something is there, or it is no name of an option file.
    """
    if file.suffix.lower() not in (".yml", ".yaml"):
        raise MtkdError(f"{file} is no name of an option file; they end in .yml.")
    given.check_name(file.stem)
    if file.exists():
        raise MtkdError(f"{file} is there already, and nothing is overwritten. Name another: `mtkd init mine.yml`.")


def questions(ask: Ask, log: Log = print) -> dict[str, object]:
    """What the flags would say, asked for one after the other; an empty answer takes the default.

    An answer that cannot be is asked for again.

    Args:
        ask: shows a question and returns the answer, as `input`.
    """
    log("A few questions; Enter takes what stands in brackets. Ctrl-C ends it, and nothing is written.")
    found: dict[str, object] = {"photos": _until(ask, log, "Folder of photographs", "", _existing)}
    teachers = [_until(ask, log, "Teacher: weights file, zoo:NAME, or a folder of its images", "", _teacher)]
    while more := _until(ask, log, "Another teacher, for the mean of several", "none", _teacher):
        teachers.append(more)
    found["teacher"] = teachers
    found["scale"] = int(_until(ask, log, "Scale", "4", _number))
    found["student"] = _until(ask, log, "Student, one of `mtkd list archs`", "tiny", _student)
    found["minutes"] = float(_until(ask, log, "Minutes of training", "10", _minutes))
    return found


def _until(ask: Ask, log: Log, question: str, default: str, check: Callable[[str], str]) -> str:
    while True:
        answer = ask(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
        try:
            return check(answer)
        except MtkdError as error:
            log(f"  {error}")


def _existing(text: str) -> str:
    path = given.path(text)
    if not path.exists():
        raise MtkdError(f"There is nothing at {path}.")
    return str(path)


def _teacher(text: str) -> str:
    if text == "none":
        return ""
    return text if text.startswith("zoo:") else _existing(text)


def _number(text: str) -> str:
    if not (text.isascii() and text.isdecimal() and 2 <= int(text[:4]) <= 8):
        raise MtkdError("It is a whole number from 2 to 8.")
    return text


def _minutes(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise MtkdError("It is a number above 0.")
    return text


def _student(text: str) -> str:
    variant(text)
    return text
