"""The folder of a distillation: what it was asked for, how far it is, and that nobody else is at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mtkd.contracts import MtkdError
from mtkd.data.images import try_writing, write_bytes
from mtkd.distilling.option_file import RUN
from mtkd.distilling.request import Request
from mtkd.runtime.run_folder import LATEST, RunFolder

_LOCK = ".lock"
_PARTS = ("train", "validation")


class Work:
    """The folder OUT. Everything in it is found again by a command that is given once more.

    `distill.json` is written first, with what was asked for; then it gets the plan. Later steps are judged by their
    own files, each of which appears whole or not at all.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.record = out / "distill.json"
        self.options = out / "distill.yml"
        self.store = out / "targets.safetensors"
        self.run = RunFolder(out / RUN)
        self.results = out / "results"
        self.page = out / "report.html"
        self.network = out / "student.safetensors"
        self.onnx = out / "student.onnx"

    @property
    def weights(self) -> Path:
        """Of the finished run."""
        return self.run.model(LATEST)

    @property
    def exported(self) -> bool:
        """Whether the network is that of the finished run."""
        return self.weights.is_file() and _newer(self.network, self.weights)

    @property
    def measured(self) -> Path | None:
        """The newest finished results of the network; None where there are none."""
        found = [path for path in self.results.glob(f"{RUN}*/metrics.json") if _newer(path, self.network)]
        newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
        return None if newest is None else newest.parent

    def plan(self) -> dict[str, Any] | None:
        """The plan, as a plain option mapping; None where none was made yet."""
        return self._read().get("plan")

    def keep_plan(self, plan: dict[str, Any]) -> None:
        """Write the plan down."""
        self._write({**self._read(), "plan": plan})

    @contextmanager
    def claimed(self, request: Request) -> Iterator[None]:
        """Make the folder for `request`, or take up what it has begun, and keep others away from it meanwhile.

        Where the block fails before there is a plan, all is gone again, so that a corrected command finds it free.

        Raises:
            MtkdError: the folder holds something else, another process works in it, or nothing can be written.
        """
        self.check(request)
        made = [path for path in (self.out, *self.out.parents) if not path.exists()]
        try_writing(self.out)
        lock = FileLock(self.out / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise MtkdError(
                f"Another `mtkd distill` works in {self.out}. Wait for its end, or take another --out."
            ) from error
        except (OSError, NotImplementedError):
            pass  # a network file system without locks: the user must not start it twice
        try:
            self.check(request)
            for path in self.out.glob(".*.tmp"):
                path.unlink(missing_ok=True)
            if self.plan() is None:
                self._write({"asked": request.facts()})
            yield
        except BaseException:
            with suppress(OSError, MtkdError):
                if self.plan() is None:
                    self._forget(made)
            raise
        finally:
            lock.release()

    def _forget(self, made: list[Path]) -> None:
        """Remove what was begun, and the folders that were made for it."""
        for part in _PARTS:
            (self.out / f"{part}.txt").unlink(missing_ok=True)
        shutil.rmtree(self.out / "photos", ignore_errors=True)
        for path in (self.record, self.out / _LOCK):
            path.unlink(missing_ok=True)
        for path in made:  # the deepest first
            path.rmdir()

    def check(self, request: Request) -> None:
        """Check that the folder is free for `request`, or its own.

        Raises:
            MtkdError: it is not.
        """
        if self.out.exists() and not self.out.is_dir():
            raise MtkdError(f"--out {self.out} is a file, and must be a folder.")
        record = self._read()
        if "plan" not in record:
            # A start that was killed before it had a plan binds nobody.
            begun = {self.record.name, "photos", *(f"{part}.txt" for part in _PARTS)} if record else set()
            inside = sorted(path.name for path in self.out.iterdir()) if self.out.is_dir() else []
            foreign = [name for name in inside if name not in begun and name != _LOCK and not _is_passing(name)]
            if foreign:
                raise MtkdError(
                    f"--out {self.out} holds something else already ({', '.join(foreign[:3])}), and nothing is "
                    "overwritten. Name a new folder."
                )
            return
        if changed := request.differences(record.get("asked", {})):
            raise MtkdError(
                f"{self.out} holds the work of another command, and nothing is overwritten ({'; '.join(changed)}). "
                "Name another folder with --out; or give the command as before, and change its distill.yml as you like."
            )

    def _read(self) -> dict[str, Any]:
        if not self.record.is_file():
            return {}
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MtkdError(f"{self.record} cannot be read: {error}. Move {self.out} away, and begin anew.") from error
        return found if isinstance(found, dict) else {}

    def _write(self, content: dict[str, Any]) -> None:
        write_bytes(self.record, (json.dumps(content, indent=2) + "\n").encode())


def _newer(path: Path, other: Path) -> bool:
    """Both are files, and `path` is no older."""
    return path.is_file() and other.is_file() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _is_passing(name: str) -> bool:
    """Whether a file of that name is the unfinished one of a writer, or a trial."""
    return name.startswith(".") and (name.endswith(".tmp") or name.startswith(".trial."))
