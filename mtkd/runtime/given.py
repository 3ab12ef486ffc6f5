"""Checks of what comes from outside: paths, names, environment variables, errors of foreign code.

They run before use, so that a path that no file system takes gives one sentence instead of a traceback.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtkd.contracts import MtkdError

NAME_BYTES = 200
"""Longest name of a run or a data set: a file system takes 255 bytes, and logs and images add to a name."""

_PART_BYTES, _PATH_BYTES = 255, 4095
_NUMBERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT",
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE",
)  # fmt: skip
"""Environment variables of launchers that we, and the libraries that start processes, read as whole numbers."""


def path(text: str | os.PathLike[str]) -> Path:
    """The path that `text` names, `~` and `~user` expanded; nothing need be there.

    Raises:
        MtkdError: it is empty, names the home of nobody, holds a character that no path can, or is longer than file
            systems allow.
    """
    given = os.fspath(text)
    if not given:
        raise MtkdError("The path is empty; `.` is the folder you are in.")
    _check_characters(given, "The path")
    expanded = os.path.expanduser(given)
    first = given.split("/", 1)[0]
    # As in the shell, a file whose name begins with ~ is reached by ./~name.
    if first.startswith("~") and expanded == given:
        raise MtkdError(f"{given}: {first} is a home folder, but there is no user {first[1:]!r}.")
    raw = os.fsencode(expanded)
    if len(raw) > _PATH_BYTES or any(len(part) > _PART_BYTES for part in raw.split(b"/")):
        raise MtkdError(
            f"{expanded[:60]}... is too long for a path ({len(raw)} bytes): a name in it may have {_PART_BYTES} bytes, "
            f"all together {_PATH_BYTES}."
        )
    return Path(expanded)


def check_name(name: str) -> None:
    """Check that files and folders can be called `name`, with something added.

    Raises:
        MtkdError: it is empty, hidden, has a slash or an unprintable character, or is longer than `NAME_BYTES`.
    """
    if not name or name.startswith(".") or any(sign in name for sign in "/\\") or not name.isprintable():
        raise MtkdError(
            f"names files and folders, so it cannot be empty, start with a dot, hold a slash or an unprintable "
            f"character; found {name[:60]!r}."
        )
    if (length := len(name.encode("utf-8"))) > NAME_BYTES:
        raise MtkdError(f"names files and folders, so it may have {NAME_BYTES} bytes, and has {length}.")


def check_readable(file: Path) -> None:
    """Check that reading `file` can end: it is a file, a folder, or nothing at all, which the reader reports.

    Raises:
        MtkdError: it is a pipe, a socket or a device.
    """
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise MtkdError(f"{file} is {kinds.get(stat.S_IFMT(mode), 'a device')} and not a file. Give a file.")


def check_environment() -> None:
    """Check that the environment variables of launchers are numbers.

    Raises:
        MtkdError: one is not; the text names it.
    """
    for name in _NUMBERS:
        value = os.environ.get(name)
        if value and not (value.isascii() and value.isdigit() and len(value) < 10):
            raise MtkdError(
                f"The environment variable {name} must be a whole number, found {value[:60]!r}. Launchers set it; "
                f"`unset {name}` where none is used."
            )


@contextmanager
def errors_of(what: str) -> Iterator[None]:
    """Turn any exception of foreign code into an MtkdError that begins with `what`; lack of memory stays itself."""
    try:
        yield
    except MtkdError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split()).rstrip(".")
        text = text if len(text) <= 600 else text[:600] + "..."
        raise MtkdError(f"{what}: {type(error).__name__}{f': {text}' if text else ''}.") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of a device, was too small; torch and OpenCV show it only in their messages."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "insufficient memory")
    return isinstance(error, Exception) and not isinstance(error, OSError) and any(sign in text for sign in signs)


def is_lost_process(error: BaseException) -> bool:
    """Whether another process of the run was gone in a collective call; gloo shows it only in its messages."""
    if not isinstance(error, RuntimeError):
        return False
    kinds = ("DistBackendError", "DistNetworkError", "DistStoreError")
    return type(error).__name__ in kinds or "gloo/" in str(error) or "connectFullMesh" in str(error)


def _check_characters(text: str, what: str) -> None:
    if "\0" in text:
        raise MtkdError(f"{what} {text[:60]!r} holds a NUL character; no path can.")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise MtkdError(f"{what} {text[:60]!r} holds half a character (a lone surrogate); no path can.") from None
