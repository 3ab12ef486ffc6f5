"""What is known of a job: in `OUT/jobs/NAME.json` what was begun, with which hash, and whether it is done; by
`OUT/jobs/NAME.lock` whether a process is at it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mtkd.runtime.files import atomic
from mtkd.runtime.strict_json import dumps

if TYPE_CHECKING:
    from mtkd.bench.jobs import Job


@dataclass(frozen=True)
class Record:
    """What is known of a job that was begun.

    Attributes:
        digest: of what was begun.
        done: it is there.
        error: why it failed, "" where it did not.
        seconds: how long it took, over all attempts.
    """

    digest: str
    done: bool = False
    error: str = ""
    seconds: float = 0.0


def record_path(out: Path, job: Job) -> Path:
    """Where the record of `job` lies."""
    return out / "jobs" / f"{job.file_name}.json"


def read_record(out: Path, job: Job) -> Record | None:
    """The record of `job`; None where nothing was begun, or the file is none."""
    try:
        found = json.loads(record_path(out, job).read_text(encoding="utf-8"))
        return Record(**found)
    except (OSError, ValueError, TypeError):
        return None


def write_record(out: Path, job: Job, record: Record) -> None:
    """Write it, whole or not at all."""
    with atomic(record_path(out, job), durable=True) as temporary:
        temporary.write_text(dumps(record.__dict__, indent=1) + "\n", encoding="utf-8")


def lock_of(out: Path, job: Job) -> FileLock:
    """What the process that makes `job` holds; not held yet."""
    path = out / "jobs" / f"{job.file_name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=0)


def is_held(out: Path, job: Job) -> bool:
    """Whether a process is at `job` now, perhaps on another machine."""
    try:
        with lock_of(out, job):
            return False
    except Timeout:
        return True
