"""Paths, names, the environment and foreign code are judged before anything is done with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtkd.contracts import MtkdError
from mtkd.runtime import given


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("~nosuchuser/x", "no user 'nosuchuser'"),
        ("x" * 256, "too long"),
        ("a/" + "é" * 128, "256 bytes|258 bytes"),
        ("ab/" * 1500, "too long"),
        ("a\0b", "NUL"),
        ("a\ud800b", "half a character"),
    ],
)
def test_a_path_that_no_file_system_takes(text: str, words: str) -> None:
    with pytest.raises(MtkdError, match=words):
        given.path(text)


def test_a_path_is_expanded_and_need_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert given.path("~/x") == Path("/home/me/x")
    assert given.path("no/such~name") == Path("no/such~name")
    assert given.path(os.fsdecode(b"latin-\xe9")).name == "latin-\udce9", "bytes of another encoding are a name too"
    assert given.path("x" * 255).name == "x" * 255


@pytest.mark.parametrize("name", ["", ".x", "..", "a/b", "a\\b", "a\nb", "a\0", "a\x1b[0m", "x" * 201, "é" * 101])
def test_a_name_that_makes_no_file(name: str) -> None:
    with pytest.raises(MtkdError, match="names files and folders"):
        given.check_name(name)


@pytest.mark.parametrize("name", ["x" * 200, "日本", "-rf", "a b (1)", "a..b"])
def test_other_names_do(name: str, tmp_path: Path) -> None:
    given.check_name(name)
    (tmp_path / f"train_{name}_20200101_000000.log").touch()


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yml")
    with pytest.raises(MtkdError, match="is a pipe"):
        given.check_readable(tmp_path / "pipe.yml")
    with pytest.raises(MtkdError, match="is a device"):
        given.check_readable(Path("/dev/zero"))
    for fine in (tmp_path, tmp_path / "nothing", Path(__file__)):
        given.check_readable(fine)


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 5000, "²"])
def test_a_launchers_number_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", value)
    with pytest.raises(MtkdError, match="variable RANK must be a whole number"):
        given.check_environment()
    monkeypatch.setenv("RANK", "3")
    given.check_environment()


def test_errors_of_foreign_code_name_it_and_lack_of_memory_stays_itself() -> None:
    for error in (KeyError("x"), SystemExit(0), ValueError("two\n lines.")):
        with (
            pytest.raises(MtkdError, match=f"^my:Net failed: {type(error).__name__}: "),
            given.errors_of("my:Net failed"),
        ):
            raise error
    with pytest.raises(MtkdError, match="^as it is$"), given.errors_of("my:Net failed"):
        raise MtkdError("as it is")
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")):
        with pytest.raises(type(error)), given.errors_of("my:Net failed"):
            raise error
