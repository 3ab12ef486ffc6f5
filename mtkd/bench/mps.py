"""NVIDIA's multi-process service: the processes of one GPU compute beside each other, instead of taking turns."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtkd.contracts import MtkdError

_PROGRAM = "nvidia-cuda-mps-control"
_PLACES = ("/usr/bin", "/usr/local/nvidia/bin")
"""Where the driver puts it, besides PATH."""
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_DEVICES = "CUDA_VISIBLE_DEVICES"
_PATIENCE = 20.0


def program() -> str | None:
    """Path of the service's control program; None where there is none."""
    return shutil.which(_PROGRAM, path=os.pathsep.join([os.environ.get("PATH", ""), *_PLACES]))


@contextmanager
def sharing() -> Iterator[None]:
    """Within the block, processes that are started share their GPUs through a service of their own, which ends with it.

    Without the service the GPU gives each process a slice of time in turn, and a small network fills none of them. It
    changes no setting of the GPU. Where the environment names a service already, that one is used. Numbers in
    CUDA_VISIBLE_DEVICES are those of the service within the block.

    Raises:
        MtkdError: the driver has none here, or it does not start.
    """
    if os.environ.get(_PIPES):
        yield
        return
    control = program()
    if control is None:
        raise MtkdError(f"--mps needs {_PROGRAM}, which NVIDIA's driver for Linux brings; it is not in PATH.")
    # Sockets lie in it, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mtkd_mps_", dir="/tmp", ignore_cleanup_errors=True) as folder:
        names = {_PIPES: f"{folder}/pipe", _LOGS: f"{folder}/log"}
        for name in names.values():
            Path(name).mkdir()
        places = os.pathsep.join([str(Path(control).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, **names, "PATH": places}
        said = Path(folder) / "said"
        _call([control, "-d"], environment, said)
        before = os.environ.get(_DEVICES)
        os.environ |= names
        if before is not None:
            os.environ[_DEVICES] = _renumbered(before)
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]
            if before is not None:
                os.environ[_DEVICES] = before
            # What the jobs made must not be lost to a service that does not end.
            with suppress(MtkdError):
                _call([control], environment, said, "quit\n")


def _renumbered(devices: str) -> str:
    """What processes of a service that was started with `devices` visible call them: it counts from 0."""
    names = [name.strip() for name in devices.split(",") if name.strip()]
    return ",".join(map(str, range(len(names)))) if all(name.isdecimal() for name in names) else devices


def _call(command: list[str], environment: dict[str, str], said: Path, given: str = "") -> None:
    try:
        # Into a file: a daemon that keeps a pipe open would be waited for.
        with said.open("wb") as output:
            done = subprocess.run(
                command,
                env=environment,
                input=given.encode(),
                stdout=output,
                stderr=output,
                timeout=_PATIENCE,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MtkdError(f"{_PROGRAM} does not answer: {error}. Leave --mps out.") from error
    if done.returncode:
        why = said.read_text(errors="replace").strip() or f"exit code {done.returncode}"
        raise MtkdError(f"{_PROGRAM} failed: {why}. Leave --mps out.")
