"""What becomes of exceptions on the command line: one paragraph and an exit code, and never a lost traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from mtkd import cli, config
from mtkd.commands import boundary
from mtkd.contracts import MtkdError, Stopped
from mtkd.training import loop

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MTKD_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


def raising(error: BaseException) -> NoReturn:
    raise error


def hidden(error: BaseException, cause: BaseException) -> BaseException:
    error.__context__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MtkdError("The weights are missing."), "The weights are missing."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file or directory."),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "File name too long."),
        (FULL, "No space left on device. Make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), "/etc/x: Permission denied. Choose a folder"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "not enough memory"),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"), "not UTF-8 text"),
        (ValueError("embedded null byte"), "NUL character"),
        (RuntimeError("Could not determine home directory."), "write the whole path"),
        (hidden(RuntimeError("PytorchStreamWriter failed writing file data/0"), FULL), "No space left on device"),
    ],
)
def test_what_a_user_can_mend_is_one_paragraph_and_2(
    error: BaseException, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert boundary.run(lambda: raising(error), ["train"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mtkd: ") and said.count("\n") == 1 and words in said
    assert not (tmp_path / "home").exists()


def test_a_defect_is_one_paragraph_that_names_a_file_with_the_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert boundary.run(lambda: raising(KeyError("lost")), ["train", "-opt", "my file.yml"]) == 1
    said = capsys.readouterr().err
    (file,) = (tmp_path / "home" / "logs").iterdir()
    assert said.startswith("mtkd: ") and said.count("\n") == 1
    assert "KeyError: 'lost'" in said and str(file) in said and "--debug" in said
    record = file.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in record and "raise error" in record
    assert "mtkd train -opt 'my file.yml'" in record and str(tmp_path) in record


@pytest.mark.parametrize("home", ["/proc/nothing", "~nosuchuser/x"])
def test_the_record_is_written_elsewhere_where_the_home_cannot_be(
    home: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTKD_HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert boundary.run(lambda: raising(KeyError("lost")), []) == 1
    (file,) = tmp_path.glob("error_*.log")
    assert str(file) in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing")
    assert boundary.run(lambda: raising(KeyError("lost")), []) == 1
    assert "KeyError: 'lost'" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["--debug before", "--debug after", "environment"])
def test_debug_shows_the_traceback(
    way: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.train, "run", lambda args: raising(KeyError("lost")))
    command = ["train", "-opt", "x.yml"]
    if way == "environment":
        monkeypatch.setenv("MTKD_DEBUG", "1")
    else:
        command = ["--debug", *command] if way == "--debug before" else [*command, "--debug"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said and not (tmp_path / "home").exists()
    monkeypatch.setenv("MTKD_DEBUG", "0")
    assert cli.main(["train", "-opt", "x.yml"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_is_130_wherever_it_comes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "parser", lambda: raising(KeyboardInterrupt()))
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "mtkd: interrupted.\n"


def test_a_stop_of_ours_keeps_its_code_and_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of commands that know nothing of it: an exit by foreign code is an error, this one is none."""

    def stop(options: object, **_: object) -> None:
        raise Stopped(signal.SIGTERM, "stopped; all is in OUT.")

    monkeypatch.setattr(loop, "train", stop)
    monkeypatch.setattr(config, "load_options", lambda *_, **__: None)
    assert cli.main(["train", "-opt", __file__]) == 143
    assert capsys.readouterr().err == "mtkd: stopped; all is in OUT.\n"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """`command` in bash, where `mtkd` is this one."""
    function = f'mtkd() {{ "{sys.executable}" -m mtkd "$@"; }}; '
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        ["bash", "-c", function + command], capture_output=True, text=True, timeout=60, env=environment
    )


def test_output_that_nobody_reads_is_141_and_silent() -> None:
    run = shell("(sleep 0.3; mtkd zoo --help) | true; echo ${PIPESTATUS[0]}")
    assert (run.stdout, run.stderr) == ("141\n", "")


def test_output_onto_a_full_disk_is_2() -> None:
    run = shell("mtkd --version > /dev/full; echo $?")
    assert run.stdout == "2\n"
    assert run.stderr == "mtkd: No space left on device. Make room on that disk, or choose another one.\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:7"),
        RuntimeError("Gloo connectFullMesh failed with timeout"),
    ],
)
def test_a_process_that_lost_another_of_its_run_is_no_defect(error) -> None:
    assert str(boundary.explanation(error)).startswith("Another process of this run has ended")
    assert boundary.explanation(RuntimeError("closed")) is None


ONE_OF_SEVERAL = """
import atexit, os, sys, types
from mtkd.cli import main
several = types.SimpleNamespace(
    is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: int(os.environ["PROCESSES"])
)
sys.modules["torch.distributed"] = several
atexit.register(print, "the end waited")
sys.exit(main())
"""


@pytest.mark.parametrize(("processes", "said"), [(1, "the end waited\n"), (2, "")])
def test_a_process_of_several_ends_at_once_with_its_error(processes: int, said: str) -> None:
    """NCCL's own end, which waits for the others, is behind `atexit`."""
    command = [sys.executable, "-c", ONE_OF_SEVERAL, "compare", "absent", "absent_too"]
    environment = {**os.environ, "PROCESSES": str(processes)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (2, said), done.stderr
