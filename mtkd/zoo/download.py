"""Files from the web: resumed, retried, and never taken for whole when they are not.

Written on urllib because pooch, which would fetch and check a file, starts over after every broken transfer and knows
one address per file.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from mtkd.contracts import MtkdError

logger = logging.getLogger("mtkd")

TIMEOUT = 30.0
"""Seconds without a single byte after which a connection counts as dead."""
ATTEMPTS = 3
"""Attempts in a row that may bring nothing before an address is given up; a refused connection counts as two."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
PAUSE = 0.5
"""Seconds before the second attempt; doubled for each one after it."""
LARGEST_MEMBER = 4 << 30
"""Bytes; a file in an archive that claims more is refused, so that an archive cannot fill the disk."""


class TransferError(Exception):
    """One address did not give the file; another may."""


def fetch(url: str, part: Path, *, label: str, resume_unmarked: bool) -> None:
    """Fetch `url` into `part`, going on where an earlier transfer of the same address stopped.

    A file that has changed on the host meanwhile is fetched from its beginning: the host is asked by ETag or date.
    Where it gives neither, `resume_unmarked` says whether to go on all the same, which is safe only if a hash is
    checked afterwards.

    Raises:
        TransferError: the host refuses, stays silent, sends a web page, or ends early every time.
    """
    failures = 0
    while True:
        before, weight = _size(part), 1
        try:
            _fetch_once(url, part, label=label, resume_unmarked=resume_unmarked)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise TransferError(f"the host answers {error.code} {error.reason}") from error
            problem: Exception = TransferError(f"the host answers {error.code} {error.reason}")
        except urllib.error.URLError as error:
            problem, weight = TransferError(f"no connection ({error.reason})"), 2
        except (OSError, http.client.HTTPException, _Incomplete) as error:
            if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK):
                raise
            problem = TransferError(f"the transfer broke off ({str(error) or type(error).__name__})")
        else:
            _marker(part).unlink(missing_ok=True)
            return
        failures = 0 if _size(part) > before else failures + weight
        if failures >= ATTEMPTS:
            raise problem
        logger.info("%s: %s; trying again.", label, problem)
        time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Write the one file called `member`, in whatever folder of the zip or tar, to `target`.

    Nothing else is unpacked, and no name from the archive is ever used as a path.

    Raises:
        MtkdError: the archive is damaged, holds a path that leads outside, or has no such file.
    """
    try:
        with _opened(archive) as (names, size_of, opened):
            outside = [name for name in names if _escapes(name)]
            if outside:
                raise MtkdError(f"{archive} is refused: its entry {outside[0]!r} would be written outside its folder.")
            found = [name for name in names if PurePosixPath(name).name == member]
            if len(found) != 1:
                problem = "no file" if not found else f"{len(found)} files"
                held = ", ".join(PurePosixPath(name).name for name in names[:10])
                raise MtkdError(f"{archive} has {problem} called {member}; it holds {held}.")
            if size_of(found[0]) > LARGEST_MEMBER:
                raise MtkdError(f"{archive} is refused: {member} claims {size_of(found[0]):,} bytes.")
            with opened(found[0]) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise MtkdError(f"{archive} is damaged or truncated ({error}). Fetch it again.") from error


class _Incomplete(Exception):
    """The connection closed before the announced end."""


def _fetch_once(url: str, part: Path, *, label: str, resume_unmarked: bool) -> None:
    headers = {"User-Agent": "mtkd", "Accept-Encoding": "identity"}
    have = _size(part)
    mark = _read_mark(part, url)
    if have and (mark or resume_unmarked):
        headers["Range"] = f"bytes={have}-"
        if mark:
            headers["If-Range"] = mark
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # What lies here is as long as the file, or longer: nothing to go on from, so the next attempt starts over.
        part.unlink(missing_ok=True)
        raise _Incomplete("the host has nothing to add to the part that was here") from error
    with response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise TransferError("the host sends a web page instead of the file")
        resumed = response.status == 206 and _starts_at(response.headers.get("Content-Range", "")) == have
        if response.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise _Incomplete("the host sends another range than the one asked for")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _write_mark(part, url, response.headers)
        with open(part, "ab" if resumed else "wb") as file, _progress(label, start, total) as advance:
            # read1 hands over what has come, so that a silent host costs one timeout and what came before is kept.
            while block := response.read1(1 << 18):
                file.write(block)
                advance(len(block))
    if total is not None and _size(part) != total:
        raise _Incomplete(f"{_size(part):,} of {total:,} bytes came")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _starts_at(content_range: str) -> int | None:
    digits = content_range.removeprefix("bytes ").partition("-")[0]
    return int(digits) if digits.isdigit() else None


def _marker(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_mark(part: Path, url: str, headers: http.client.HTTPMessage) -> None:
    """Remember what identifies this version of the file; a weak ETag does not identify bytes."""
    tag = headers.get("ETag", "")
    mark = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    _marker(part).write_text(json.dumps({"url": url, "mark": mark}), encoding="utf-8")


def _read_mark(part: Path, url: str) -> str:
    try:
        known = json.loads(_marker(part).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return ""
    return known["mark"] if known.get("url") == url else ""


@contextlib.contextmanager
def _progress(label: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, one line in a log. Yields a function that is told how many bytes came."""
    if not sys.stderr.isatty():
        size = f"{total / 1e6:.1f} MB" if total else "size unknown"
        logger.info("Downloading %s (%s%s).", label, size, f", from byte {start:,}" if start else "")
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=start)
        yield lambda count: progress.advance(task, count)


def _escapes(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else False


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[str], Callable, Callable]]:
    """Names of the regular files, a function to their size, a function that opens one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            names = [info.filename for info in opened.infolist() if not info.is_dir()]
            yield names, lambda name: opened.getinfo(name).file_size, opened.open
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            # Links and devices are left out: only the bytes of regular files are ever read.
            names = [info.name for info in tar.getmembers() if info.isfile()]
            yield names, lambda name: tar.getmember(name).size, tar.extractfile
    else:
        raise MtkdError(f"{archive} is neither a zip nor a tar archive, or is truncated. Fetch it again.")
