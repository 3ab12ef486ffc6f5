"""A process for one case: `mtkd.cli.main` in a forked child that is watched and bounded.

The parent has imported torch and everything else once (`warm`), so a case costs a fork and not an interpreter. The
child has a folder of its own as working directory and home, a bound on its address space and on the size of files, a
clock, and audit hooks that see every program it starts, keep it from any network but this machine's, count file events
and can end it with SIGKILL at one of them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.cases import Case, Outcome

SECONDS = 20.0
"""A case that takes longer hangs. All are small enough to end in a few seconds on one slow core."""
MEMORY = 3 << 30
"""Bytes of address space that a case may take beyond what the warm parent has."""
LARGEST_FILE = 256 << 20

BEFORE: dict[str, Callable[[Mapping[str, Any]], None]] = {}
"""Functions of the facts of a case, run in its process before its first command."""
CHECKS: dict[str, Callable[[int, tuple[str, ...], Mapping[str, Any]], str]] = {}
"""Oracles: (exit code so far, arguments, facts of the case) -> what is wrong, or nothing. They are commands of a case
whose name begins with @, and run in its process, because decoders may die of what they are given.
"""

_STARTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile"}
_OWN_PROGRAMS = {"git", "lscpu", "uname", "ldconfig"}
"""What the package and torch ask the system by themselves."""
_FILE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


@dataclass(frozen=True)
class Kill:
    """When a process sends itself `signal`: at its `event`-th file event, or at each whose path has `path` in it."""

    event: int = 0
    path: str = ""
    signal: int = signal.SIGKILL


def warm() -> None:
    """Import once what cases need, so that forked children find it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    import lightning_fabric  # noqa: F401
    import PIL.Image
    import safetensors.torch  # noqa: F401

    import mtkd.cli
    import mtkd.data.sampling
    import mtkd.data.training
    import mtkd.inference.compare
    import mtkd.inference.evaluate
    import mtkd.inference.run_test
    import mtkd.inference.upscale  # noqa: F401
    from mtkd import catalog

    for kind, table in catalog.TABLES.items():
        for name in table:
            if name != "calculate_lpips":
                catalog.get(kind, name)
    PIL.Image.init()
    gc.collect()
    gc.freeze()


def run(case: Case, ground: Path, folder: Path, *, kill: Kill | None = None, seconds: float = SECONDS) -> Outcome:
    """Run `case` in `folder`, which is filled first."""
    lay_out(case, ground, folder)
    child = start(case.commands, folder, before=case.before, facts=case.facts, kill=kill, seconds=seconds)
    return child.wait()


def lay_out(case: Case, ground: Path, folder: Path) -> None:
    """Write the files of a case into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for to, origin in case.trees:
        source, target = ground / origin, folder / to
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copyfile(source, target)
    for name, content in case.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


@dataclass
class Child:
    """A running case."""

    pid: int
    folder: Path
    began: float
    seconds: float
    notes: Path

    def wait(self, *, until: float | None = None) -> Outcome:
        """Wait for its end, at most its seconds; `until`: end it with SIGKILL after so many instead."""
        limit = self.seconds if until is None else until
        descriptor = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, self.began + limit - time.monotonic()))
        finally:
            os.close(descriptor)
        if not ready:
            self.kill()
        _, status, _ = os.wait4(self.pid, 0)
        # What it started itself has no owner any more.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._outcome(status, hung=not ready and until is None)

    def kill(self) -> None:
        """SIGKILL to it and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _outcome(self, status: int, *, hung: bool) -> Outcome:
        codes = [int(line) for line in _read(self.notes / "codes").split()]
        started = _read(self.notes / "started").splitlines()
        started += sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("PWNED*"))
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if not number and not codes and not hung:
            codes = [99]
        return Outcome(
            folder=self.folder,
            codes=tuple(codes),
            signal=number,
            hung=hung,
            started=tuple(started),
            stdout=_read(self.notes / "stdout"),
            stderr=_with_log(_read(self.notes / "stderr"), self.folder),
            wrong=_read(self.notes / "wrong"),
            seconds=time.monotonic() - self.began,
        )

    @property
    def events(self) -> int:
        """File events of the process, once it has ended by itself."""
        return int(_read(self.notes / "events") or 0)


def start(
    commands: tuple[tuple[str, ...], ...],
    folder: Path,
    *,
    before: str = "",
    facts: Mapping[str, Any] | None = None,
    kill: Kill | None = None,
    seconds: float = SECONDS,
    environment: Mapping[str, str] | None = None,
    name: str = "said",
    largest: int = LARGEST_FILE,
) -> Child:
    """Fork a child that runs `commands` in `folder`; what it says lies in `folder.NAME` beside it.

    Args:
        largest: bytes that a file may have; the child meets beyond them what it meets on a full disk.
    """
    notes = folder.with_name(f"{folder.name}.{name}")
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            _enter(folder, notes, seconds, environment or {}, largest)
            _watch(folder, notes, kill)
            status = _main(commands, notes, before, facts or {})
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    return Child(pid, folder, began, seconds, notes)


def _enter(folder: Path, notes: Path, seconds: float, environment: Mapping[str, str], largest: int) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(notes / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(folder)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        os.environ.pop(name, None)
    os.environ.update(
        # git finds no repository and answers at once.
        {"HOME": str(folder), "MTKD_HOME": str(folder / "home"), "GIT_DIR": "/dev/null", "COLUMNS": "120"}
    )
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    import torch

    # After a fork the first call makes torch's pool of threads anew, and two threads that are the first fail.
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    # Says where it hangs, before it is ended.
    faulthandler.dump_traceback_later(max(0.5, seconds - 1.0), exit=False)


def _watch(folder: Path, notes: Path, kill: Kill | None) -> None:
    inside = str(folder) + os.sep
    started = os.open(notes / "started", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    count = 0

    def path_of(value: Any) -> str:
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        return os.path.abspath(value) if isinstance(value, str | os.PathLike) else ""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in _STARTS:
            text = repr(args[0] if event == "os.system" else args[:2])
            program = os.path.basename(str(args[1][0] if event == "subprocess.Popen" and args[1] else args[0]))
            if program not in _OWN_PROGRAMS:
                os.write(started, f"{event} {text[:300]}".replace("\n", " ").encode(errors="replace") + b"\n")
            return
        elif event in ("socket.connect", "socket.getaddrinfo"):
            place = args[1] if event == "socket.connect" else args[0]
            host = place[0] if isinstance(place, tuple) and place else place
            if event == "socket.connect" and isinstance(place, str | bytes):
                return  # a socket of this machine's own
            if host not in ("127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost", None):
                raise OSError(101, "Network is unreachable")
            return
        elif event not in _FILE_EVENTS:
            return
        path = path_of(args[0])
        if not path.startswith(inside):
            return
        count += 1
        if kill and (count == kill.event or (kill.path and kill.path in path)):
            os.kill(os.getpid(), kill.signal)

    sys.addaudithook(hook)
    _COUNTS.append(lambda: count)


_COUNTS: list[Callable[[], int]] = []


def _main(commands: tuple[tuple[str, ...], ...], notes: Path, before: str, facts: Mapping[str, Any]) -> int:
    from mtkd.cli import main

    if before:
        BEFORE[before](facts)
    code = 0
    for command in commands:
        if command[0].startswith("@"):
            try:
                said = CHECKS[command[0]](code, command[1:], facts)
            except Exception as error:
                # What a command accepted its oracle must be able to read.
                said = f"{command[0]} cannot tell: {type(error).__name__}: {error}"
            if said:
                (notes / "wrong").write_text(said, encoding="utf-8", errors="replace")
            continue
        if code:
            continue
        sys.argv = ["mtkd", *command]
        try:
            code = main(list(command))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        except BaseException:
            sys.stdout.flush()
            traceback.print_exc()
            code = 99
        code = int(code or 0) & 0xFF
        with open(notes / "codes", "a") as file:
            file.write(f"{code}\n")
    with open(notes / "events", "w") as file:
        file.write(str(_COUNTS[-1]()))
    return code


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _with_log(stderr: str, folder: Path) -> str:
    """What was said, and behind it the file with a traceback that it names."""
    named = re.search(r"Its traceback is in (.+?); please report it", stderr)
    return f"{stderr}{_read(folder / named[1])}" if named else stderr


@contextlib.contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """A fresh folder under `root`, removed afterwards together with what was said about it."""
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        for path in (folder, *root.glob(f"{name}.*")):
            _remove(path)


def _remove(path: Path) -> None:
    def again(_function: Any, failed: str, _info: Any) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(failed), 0o700)
            os.chmod(failed, 0o700)
            os.unlink(failed)

    shutil.rmtree(path, onerror=again)
