"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mtkd.runtime.files import atomic, is_temporary, sha256


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_when_the_block_ends_in_a_folder_that_is_made(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new/folder/file.bin"
    with atomic(path, durable=durable) as temporary:
        assert temporary.parent == path.parent and is_temporary(temporary)
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), atomic(path) as temporary:
        temporary.write_bytes(b"ha")
        raise OSError("full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_umask_gives_the_rights_whoever_makes_the_file(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with atomic(tmp_path / "file") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["a" * 255, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 127])
def test_a_name_as_long_as_file_systems_take_is_written(tmp_path: Path, name: str) -> None:
    with atomic(tmp_path / name) as temporary:
        assert is_temporary(temporary)
        temporary.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as one, atomic(tmp_path / "file") as two:
        assert one != two
        one.write_bytes(b"one")
        two.write_bytes(b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    steps: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda _: steps.append("flushed"))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("named"), replace(*paths)))
    with atomic(tmp_path / "a", durable=durable) as temporary:
        temporary.write_bytes(b"a")
    assert steps == (["flushed", "named"] if durable else ["named"])
