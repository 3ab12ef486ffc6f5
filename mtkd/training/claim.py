"""One run at a time owns a run folder: it is made first, locked while the run trains, and removed if none began."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from mtkd.contracts import MtkdError
from mtkd.runtime.run_folder import BEST, LOCK, RunFolder
from mtkd.training.log import logged_step

PATIENCE = 10.0
"""Seconds that a resuming process waits for the one before it: it may be writing its last checkpoint, and workers of a
killed one notice its end after five."""

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class Claim:
    """The right of this process to write into a run folder; make it with `claim`, on rank 0 alone."""

    def __init__(self, folder: RunFolder, name: str, lock: FileLock | None, made: list[Path]) -> None:
        self.folder, self._name, self._lock, self._made = folder, name, lock, made

    def release(self) -> None:
        """Release the folder. A run that has trained nothing removes all that it made, so that a corrected start is not
        refused.
        """
        lock, self._lock = self._lock, None
        try:
            self._remove_leftovers()
        except OSError:
            pass  # a later start accepts what is left, see `RunFolder.starts_leftovers`
        finally:
            if lock is not None:
                lock.release()

    def _remove_leftovers(self) -> None:
        leftovers = self.folder.starts_leftovers(self._name)
        if leftovers is None or not self.folder.root.exists():
            return
        for path in leftovers:
            path.unlink(missing_ok=True)
        for path in (self.folder.models, self.folder.states, self.folder.visualization):
            if path.is_dir():
                path.rmdir()
        # The deepest first. Folders that existed before stay.
        for path in self._made:
            path.rmdir()


def claim(folder: RunFolder, name: str, *, resuming: bool) -> Claim:
    """Make the folder of the run `name` and lock it, for a new run or (`resuming`) for one that may go on in it.

    Unfinished files of processes that were killed are removed.

    Raises:
        MtkdError: another process trains there, a new run finds an older one, or the folder cannot be written.
    """
    if not resuming:
        _refuse_older(folder, name)
    made: list[Path] = []
    lock = FileLock(folder.root / LOCK)
    locked: FileLock | None = lock
    try:
        made = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
        folder.root.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE if resuming else 0)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # A network file system without locks: the user must not start a run twice.
            locked = None
        mine = Claim(folder, name, locked, made)
        try:
            if not resuming:
                _refuse_older(folder, name)
            (folder.root / LOCK).write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
            for place in (folder.root, folder.models, folder.states, folder.validation):
                for path in place.glob(".*.tmp"):
                    path.unlink()
        except BaseException:
            mine.release()
            raise
    except Timeout as error:
        raise MtkdError(
            f"Another run trains in {folder.root}{_holder(folder.root / LOCK)}; two would overwrite each other's "
            "files. Wait for its end, or give this run another `name`."
        ) from error
    except OSError as error:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise MtkdError(
            f"The run folder {folder.root} cannot be written: {error.strerror or error}. Set another folder with "
            "path.experiments_root, or make room there."
        ) from error
    return mine


def refuse_to_begin_anew(folder: RunFolder, every: int) -> None:
    """Refuse to train from iteration 0 in a folder that holds the work of a run and no state to go on from.

    A start that was killed before its first checkpoint leaves the losses up to there at most, and perhaps weights
    without their state; these iterations are trained again.

    Args:
        every: iterations between checkpoints.

    Raises:
        MtkdError: it holds more than that.
    """
    weights, logged = folder.saved_weights(), logged_step(folder.metrics)
    first = weights[0] if weights else every
    others = [path.name for path in folder.models.glob("*.pth") if path.name not in _names(folder, weights)]
    if 0 < logged <= first and folder.model(BEST).name in others:
        # Of a validation before the first checkpoint, which the log tells of.
        others.remove(folder.model(BEST).name)
    if len(weights) <= 1 and not others and not folder.saved_states() and logged <= first:
        return
    held = [f"the weights {', '.join([*_names(folder, weights)[:3], *others[:1]])}"] if weights or others else []
    held += [f"training states ({len(folder.saved_states())})"] if folder.saved_states() else []
    held += [f"losses up to iteration {logged:,d}"] if logged else []
    raise MtkdError(
        f"{folder.root} holds {', '.join(held)}, and no training state with its weights to go on from; --auto_resume "
        "would begin anew and overwrite them. Put the missing files back, give this run another `name` (with "
        "path.pretrain_network_g it starts from these weights), or move the folder away."
    )


def _names(folder: RunFolder, steps: list[int]) -> list[str]:
    return [folder.model(step).name for step in steps]


def _refuse_older(folder: RunFolder, name: str) -> None:
    if folder.starts_leftovers(name) is None:
        raise MtkdError(
            f"{folder.root} already holds a run, which a new run never moves or overwrites. Continue it with "
            "--auto_resume, give this run another `name`, or move the folder away."
        )


def _holder(lock: Path) -> str:
    try:
        text = lock.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" ({text})" if text else ""
