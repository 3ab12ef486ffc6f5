"""Files as their publishers offer them: found, transferred, and held against their hash."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mtkd.contracts import MtkdError
from mtkd.runtime.files import sha256 as sha256_of
from mtkd.zoo import containers, download
from mtkd.zoo.table import Entry, Source

logger = logging.getLogger("mtkd")

Check = Literal["full hash", "hash prefix", "pinned"]
"""How the original is identified: by its published sha256, its published first digits, or the hash at first use."""


def local(source: Source, folder: Path) -> Path | None:
    """The file where a user or an earlier transfer put it, None where it is not there."""
    places = (folder / source.file, folder / "downloads" / source.file)
    return next((place for place in places if place.is_file()), None)


def fetch(item: Entry, source: Source, folder: Path) -> Path:
    """The file of `source`, transferred; what an earlier transfer left is gone on with.

    Raises:
        TransferError: it could not be had.
    """
    target = folder / "downloads" / source.file
    address = hashlib.sha256(source.url.encode()).hexdigest()[:8]
    part = target.with_name(f"{source.file}.{address}.part")
    resumed = part.exists()
    label = f"{item.name} ({source.file})"
    most = _most_bytes(source)
    download.fetch(source.url, part, label=label, resume_unmarked=source.sha256 is not None, most=most)
    if resumed and source.sha256 and not sha256_of(part).startswith(source.sha256):
        logger.info("%s: the two halves of a resumed transfer do not belong together; fetching it whole.", label)
        part.unlink()
        download.fetch(source.url, part, label=label, resume_unmarked=False, most=most)
    os.replace(part, target)
    return target


def _most_bytes(source: Source) -> int:
    """More than the file can have, so that no host fills the disk before the hash is looked at."""
    if source.size is not None:
        return 2 * source.size + (1 << 20)
    return download.LARGEST_FILE if source.about is None else int(4e6 * source.about) + (1 << 20)


def check(item: Entry, source: Source, sha256: str, record: Mapping[str, Any], folder: Path) -> Check:
    """How far `sha256` is what `source` should have; `record` is what was noted when it first came, {} before.

    Raises:
        MtkdError: it is not what was published, or not what came the first time.
    """
    if source.sha256 is not None:
        if not sha256.startswith(source.sha256):
            raise MtkdError(
                f"{source.file} for {item.name} is not the published file: its sha256 is {sha256}, expected is "
                f"{_hash_text(source)} (from {source.sha256_from})."
            )
        return "full hash" if len(source.sha256) == 64 else "hash prefix"
    known = record.get("source", {})
    if known.get("file") == source.file and known.get("sha256") != sha256:
        raise MtkdError(
            f"{source.file} for {item.name} is not the file that was used before: its sha256 is {sha256}, pinned is "
            f"{known['sha256']}. If the change is known to be right, delete {folder / item.name}.json."
        )
    return "pinned"


def _hash_text(source: Source) -> str:
    if source.sha256 is None:
        return "unknown"
    return source.sha256 if len(source.sha256) == 64 else f"{source.sha256}..."


def source_of(item: Entry, file: Path, sha256: str) -> Source:
    """The source that a file fetched by hand comes from: by its hash, else by its name, else one without a hash."""
    by_hash = [source for source in item.sources if source.sha256 and sha256.startswith(source.sha256)]
    by_name = [source for source in item.sources if file.name == source.file]
    unknown = [source for source in item.sources if source.sha256 is None]
    for candidates in (by_hash, by_name):
        if candidates:
            return candidates[0]
    if unknown:
        # Pin its own name: it may be none of the listed files.
        return Source("imported by hand", file.name, member=_member_in(item, file))
    return item.sources[0]


def _member_in(item: Entry, file: Path) -> str | None:
    if not containers.is_archive(file):
        return None
    return next((source.member for source in item.sources if source.member), None)


@contextlib.contextmanager
def checkpoint_of(file: Path, source: Source, folder: Path) -> Iterator[Path]:
    """The checkpoint itself: `file`, or the member of it when it is an archive."""
    if source.member is None:
        yield file
        return
    (folder / "downloads").mkdir(parents=True, exist_ok=True)
    unpacked = folder / "downloads" / f".{os.getpid()}.{source.member}"
    try:
        download.extract_member(file, source.member, unpacked)
        yield unpacked
    finally:
        unpacked.unlink(missing_ok=True)


def set_aside(file: Path, sha256: str) -> Path:
    """Rename a file whose hash is wrong, so that it is not taken again, and return where it is."""
    aside = file.with_name(f"{file.name}.bad-{sha256[:8]}")
    os.replace(file, aside)
    return aside


def not_obtained(item: Entry, folder: Path, reasons: list[str]) -> str:
    """The message when no source served: one reason for each, and what to fetch by hand."""
    tried = "\n".join(
        f"  {source.url}\n    file {source.file}{f' (holds {source.member})' if source.member else ''}, "
        f"sha256 {_hash_text(source)}\n    {reason}"
        for source, reason in zip(item.sources, reasons, strict=True)
    )
    return (
        f"The weights {item.name} could not be fetched. On a machine with a network, or in a browser, fetch any "
        f"of\n{tried}\n"
        f"and put it, under that name, into {folder}, or run `mtkd zoo import {item.name} FILE`."
    )
