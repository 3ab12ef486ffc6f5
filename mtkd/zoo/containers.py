"""The kind of a file, by its first bytes, and whether its checksums are right.

Nothing is unpacked, so neither zeros nor a zip bomb cost time or memory.
"""

from __future__ import annotations

import errno
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtkd.contracts import MtkdError

ZIP = b"PK\x03\x04"
"""First bytes of a zip, which is what `torch.save` writes."""

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}

_ARCHIVE = "It is an archive of several files: unpack it, or use `mtkd zoo import NAME FILE`."

_SCRIPT = (
    "It is a TorchScript program, which holds code, and not a file of weights. Load it with torch.jit.load and save "
    "its state dict, torch.save({'params': module.state_dict()}, ...)."
)


def has_checksums(path: Path) -> bool:
    """Whether the file begins as those do that `torch.save` writes since 1.6, which hold a CRC of each of their parts.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(4).startswith(ZIP)


def verify(path: Path) -> str | None:
    """What is damaged in a file that `torch.save` wrote, or None when every checksum in it is right.

    torch writes a CRC of each member and does not check it on reading. The check takes about a second per GB. Files
    without checksums (safetensors, torch's format before 1.6) count as whole.

    Raises:
        OSError: the file cannot be read.
    """
    if not has_checksums(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if packed := next((member for member in archive.infolist() if member.compress_type), None):
                # torch.save never packs: checking it could unpack without end.
                return f"{_shown(packed.filename)}, which is packed"
            member = archive.testzip()
    except Exception as error:  # a broken archive may raise any exception
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # an offset in the table may be negative
            raise
        return "its table of contents"
    return None if member is None else _shown(member)


def _shown(member: str) -> str:
    return " ".join(member.split())[:100]


def is_archive(path: Path) -> bool:
    """Whether `path` is a zip or tar of several files, rather than a checkpoint (which torch writes as a zip too)."""
    return what_it_is(path) == _ARCHIVE


def is_safetensors(path: Path) -> bool:
    """Whether the file is read as safetensors, by its first bytes, else by its name."""
    head = head_of(path)[:10]
    # Eight bytes of header length, then a JSON object: pickles and zips never look like that.
    if len(head) == 10 and head[8:] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not head.startswith(ZIP) and (head[:1] != b"\x80" or head[8:9] == b"{")


def what_it_is(path: Path) -> str:
    """A sentence on files that are not checkpoints, by their first bytes; empty for what may be one."""
    head = head_of(path)
    if not head:
        return "It is empty."
    if not any(head):
        return "It begins with zeros: it was never written to its end, as after a crash or a full disk. Fetch it again."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "It is a web page: the host asked for a click or refused, and the answer was saved. Fetch it in a browser."
        )
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer: run `git lfs pull` where it came from."
    if any(head.startswith(magic) for magic in _PACKED):
        return _ARCHIVE
    if head[257:262] == b"ustar":
        return _what_the_tar_is(path)
    if head.startswith(ZIP):
        return _what_the_zip_is(path)
    if head[:1] != b"\x80" and not _begins_like_safetensors(head):
        return (
            "It cannot be read as one: it is truncated, damaged, or something else, for it begins with "
            f"{head[:8].hex(' ')}, as neither torch's files nor safetensors do. Fetch it again."
        )
    return ""


def _begins_like_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"


def _what_the_zip_is(path: Path) -> str:
    with damage_named(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] for name in names}
    if "data.pkl" in inner or "data.pkl" in names:
        return _SCRIPT if "constants.pkl" in inner else ""
    return _ARCHIVE


def _what_the_tar_is(path: Path) -> str:
    with damage_named(path), tarfile.open(path, "r:") as archive:
        names = set(archive.getnames())
    if {"storages", "tensors", "pickle"} <= names:
        return "It is in the tar format of torch 0.1, which is not read. Load it with torch and save its state dict."
    return _ARCHIVE


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn any exception of the reader of a broken archive into one paragraph."""
    try:
        yield
    except MtkdError:
        raise
    except Exception as error:  # noqa: BLE001  broken archives raise whatever the bytes happen to trigger
        raise MtkdError(
            f"{path} cannot be read as a checkpoint: its table of contents is truncated or damaged "
            f"({one_line(error)}). Fetch it again."
        ) from error


def one_line(error: BaseException) -> str:
    """Kind and text of `error` in one line, at most 200 characters of text, without a full stop."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200] if text else 'no message'}".rstrip(".")


def head_of(path: Path) -> bytes:
    """The first 512 bytes, which is where every format says what it is."""
    with open(path, "rb") as file:
        return file.read(512)
