"""Archives from outside give the bytes of their regular files, and nothing without end."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from mtkd.contracts import MtkdError
from mtkd.runtime import archives

FILES = {"a/1.png": random.Random(0).randbytes(5000), "b.txt": b"text", "a/2.png": b""}


def packed(path: Path, mode: str) -> Path:
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.mkdir("a") if hasattr(archive, "mkdir") else None
            for name, data in FILES.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, mode) as archive:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["zip", "w:", "w:gz", "w:bz2", "w:xz"])
def test_files_are_read_whatever_the_kind_and_the_name_of_the_archive(tmp_path: Path, mode: str) -> None:
    archive = packed(tmp_path / "download", mode)
    assert sorted(archives.names(archive)) == sorted(FILES)
    read = dict(archives.read(archive, lambda name: name.endswith(".png"), largest=5000))
    assert read == {name: data for name, data in FILES.items() if name.endswith(".png")}
    with pytest.raises(MtkdError, match=r"a/1\.png claims 5,000 bytes; 4,999 are allowed"):
        list(archives.read(archive, lambda name: True, largest=4999))


@pytest.mark.parametrize("mode", ["zip", "w:gz"])
def test_more_entries_than_allowed_are_refused(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_ENTRIES", 2)
    with pytest.raises(MtkdError, match="more than 2 entries"):
        archives.names(packed(tmp_path / "download", mode))


def test_a_file_that_stands_before_a_link_of_its_name_is_the_one_that_is_read(tmp_path: Path) -> None:
    archive = packed(tmp_path / "download", "w:")
    with tarfile.open(archive, "a") as opened:
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a/1.png"
        opened.addfile(link)
    assert dict(archives.read(archive, lambda name: name == "b.txt", largest=9999)) == {"b.txt": b"text"}


def test_an_encrypted_zip_is_said_to_be_one(tmp_path: Path) -> None:
    archive = packed(tmp_path / "download", "zip")
    data = bytearray(archive.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := data.find(mark, start)) >= 0:
            data[start + at] |= 1
            start += 4
    archive.write_bytes(data)
    with pytest.raises(MtkdError, match="encrypted"):
        list(archives.read(archive, lambda name: True, largest=9999))
