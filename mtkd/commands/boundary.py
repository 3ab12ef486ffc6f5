"""The boundary of the command line: what an exception becomes on the screen, and which exit code it has.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an unexpected error; its traceback is in the file named. `config diff`: the two differ. `bench`: a cell failed |
| 2 | something the user can mend: a command line, an option file, a path, the disk, memory |
| 130, 143 | stopped by Ctrl-C, by SIGTERM |
| 141 | the reader of the output ended first, as `head` does |
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from mtkd.contracts import MtkdError, Stopped
from mtkd.runtime import given

USER_ERROR, DEFECT = 2, 1

_ADVICE = {
    errno.ENOSPC: "Make room on that disk, or choose another one.",
    errno.EDQUOT: "Make room in your quota, or choose another disk.",
    errno.EROFS: "Choose a folder on a disk that can be written.",
    errno.EACCES: "Choose a folder you may use, or get the permission.",
    errno.EPERM: "Choose a folder you may use, or get the permission.",
    errno.EMFILE: "Raise the number of open files, `ulimit -n`.",
}


def run(work: Callable[[], int], arguments: Sequence[str], *, debug: bool = False) -> int:
    """The exit code of `work()`, whatever it raises; an error is printed to stderr.

    Args:
        arguments: the command line, for the record of a defect.
        debug: print the traceback, and write no file with it.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding lacks is shown escaped rather than ending the command.
        with contextlib.suppress(ValueError, OSError):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = work()
        except Stopped as stopped:
            if stopped.kept:
                print(f"mtkd: {stopped.kept}", file=sys.stderr)
            return stopped.code
        except SystemExit:  # argparse has printed its help, or what is wrong with the command line
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("mtkd: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _forget_output()
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            # It may be the output's own disk that is full; what is still buffered would fail again at the end.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            _forget_output_if_broken()
        if debug:
            traceback.print_exc()
        text = explanation(error)
        if text is not None:
            print(f"mtkd: {text}", file=sys.stderr)
            return USER_ERROR
        print(f"mtkd: {_defect(error, arguments, debug)}", file=sys.stderr)
        return DEFECT


def leave_others(code: int) -> None:
    """End this process at once where it is one of several of a run; return where it is alone.

    An ordinary end would wait in NCCL's own for the others, and they wait for this one in a collective: for half an
    hour, in which the launcher sees no failure.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if distributed.get_world_size() > 1:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        os._exit(code)


def explanation(error: BaseException) -> str | None:
    """The message for a user who can mend the cause of `error`; None when it is a defect of mtkd.

    Files, disks, memory, names and processes are the user's. All else that is no MtkdError should not have happened.
    """
    if isinstance(error, MtkdError):
        return str(error)
    if given.is_out_of_memory(error):
        what = " ".join(str(error).split())[:200]
        return (
            f"There is not enough memory{f' ({what})' if what else ''}. Take smaller batches, crops (gt_size) or tiles "
            "(--tile, val.tile), or a machine with more."
        )
    if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
        where = "".join(f"{_shown(name)}: " for name in (error.filename, error.filename2) if name is not None)
        advice = _ADVICE.get(error.errno or 0, "")
        return f"{where}{error.strerror or error}.{f' {advice}' if advice else ''}"
    text = str(error)
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"A name or path is not UTF-8 text: {error.object[:100]!r}. Rename the file, or correct the text."
    if isinstance(error, ValueError) and text.startswith("embedded null"):
        return "A name or path holds a NUL character, which no file system takes."
    if isinstance(error, RuntimeError) and "home directory" in text:
        return f"{text} A path begins with ~ and the name of no user; write the whole path."
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError) and "PytorchStreamWriter" in text:
        return explanation(error.__context__)  # torch hides the error of the disk
    if given.is_lost_process(error):
        return (
            "Another process of this run has ended or cannot be reached, and this one cannot go on without it; the "
            f"error of the other gives the reason. ({' '.join(text.split())[:300]})"
        )
    return None


def _shown(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)


def _defect(error: BaseException, arguments: Sequence[str], debug: bool) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    text = f"unexpected error, {what if len(what) <= 300 else what[:300] + '...'}."
    if debug:
        return f"{text} Please report it with the traceback above."
    file = record(error, arguments)
    if file is None:
        return f"{text} Please report it with its traceback, which `mtkd --debug ...` shows."
    return f"{text} Its traceback is in {file}; please report it with that file. `mtkd --debug ...` shows it here."


def record(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write the traceback of `error`, the command and the versions into a file; None where none can be written.

    It lies in `logs` of MTKD_HOME, else of the cache folder, else in the folder of temporary files.
    """
    from mtkd import __version__

    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} mtkd {__version__}, Python {platform.python_version()}, torch "
        f"{getattr(sys.modules.get('torch'), '__version__', 'not imported')}, {platform.platform()}",
        f"mtkd {shlex.join(arguments)}",
        f"in {_working_folder()}",
        "",
        *(line.rstrip("\n") for line in traceback.format_exception(error)),
    ]
    text = "\n".join(lines) + "\n"
    for folder in (_logs, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(Exception):
            place = folder()
            place.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=time.strftime("error_%Y%m%d_%H%M%S_"), suffix=".log", dir=place)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return Path(name)
    return None


def _logs() -> Path:
    if home := os.environ.get("MTKD_HOME"):
        return given.path(home) / "logs"
    import pooch

    return Path(pooch.os_cache("mtkd")) / "logs"


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "a folder that is gone"


def _forget_output_if_broken() -> None:
    try:
        sys.stdout.flush()
    except Exception:
        _forget_output()


def _forget_output() -> None:
    """Send what is still to be printed nowhere: Python would complain about it when it ends."""
    with contextlib.suppress(Exception):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
