"""Files from the web: resumed, retried, and accepted only when they are whole.

Written on urllib because pooch, which would fetch and check a file, starts over after every broken transfer and knows
one address per file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from mtkd.contracts import MtkdError
from mtkd.runtime import archives

logger = logging.getLogger("mtkd")

TIMEOUT = 30.0
"""Seconds without a single byte after which a connection counts as dead."""
ATTEMPTS = 3
"""Attempts in a row that may bring less than `PROGRESS` before an address is given up; a refused connection counts as
two."""
PROGRESS = 1 << 16
"""Bytes beyond all that had come before which make an attempt no failure."""
ATTEMPTS_IN_ALL = 100
"""Attempts at one address, whatever they bring."""
STALL = 60.0
"""Seconds in which a connection must bring `PROGRESS` bytes (about 1 kB/s), or it is broken off."""
PAUSE = 0.5
"""Seconds before the second attempt; doubled for each one after it."""
LARGEST_FILE = 4 << 30
"""Bytes; a transfer of unknown size, and a file in an archive, that is larger is refused: neither may fill the disk."""


class TransferError(Exception):
    """One address did not give the file; another may."""


def fetch(url: str, part: Path, *, label: str, resume_unmarked: bool, most: int = LARGEST_FILE) -> None:
    """Fetch `url`, of at most `most` bytes, into `part`, going on where an earlier transfer of it stopped.

    A file that has changed on the host meanwhile is fetched from its beginning: the host is asked by ETag or date.
    Where it gives neither, `resume_unmarked` says whether to resume nevertheless, which is safe only if a hash is
    checked afterwards.

    Raises:
        TransferError: the host refuses, stays silent or all but silent, sends a web page or more than `most`, or ends
            early every time.
    """
    failures, reached = 0, _size(part)
    for attempt in range(ATTEMPTS_IN_ALL):
        weight = 1
        try:
            _fetch_once(url, part, label=label, resume_unmarked=resume_unmarked, most=most)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise TransferError(f"the host answers {error.code} {error.reason}") from error
            problem: Exception = TransferError(f"the host answers {error.code} {error.reason}")
        except urllib.error.URLError as error:
            problem, weight = TransferError(f"no connection ({error.reason})"), 2
        except (OSError, http.client.HTTPException, _Incomplete) as error:
            if isinstance(error, OSError) and (error.filename is not None or error.errno in archives.DISK):
                raise
            problem = TransferError(f"the transfer broke off ({str(error) or type(error).__name__})")
        except ValueError as error:  # an invalid address in a redirection
            raise TransferError(f"the host redirects to something that is not an address ({error})") from error
        else:
            _marker(part).unlink(missing_ok=True)
            return
        # Progress is what exceeds all earlier attempts: after a restart, the same bytes again are none.
        failures = 0 if _size(part) >= reached + PROGRESS else failures + weight
        reached = max(reached, _size(part))
        if failures >= ATTEMPTS or attempt == ATTEMPTS_IN_ALL - 1:
            raise problem
        logger.info("%s: %s; trying again.", label, problem)
        time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Write the one file called `member`, in whatever folder of the zip or tar, to `target`.

    Nothing else is unpacked, and no name from the archive is ever used as a path.

    Raises:
        MtkdError: the archive is damaged, holds a path that leads outside, or has no such file.
    """
    with archives.opened(archive) as opened:
        found = [name for name in opened.names if PurePosixPath(name).name == member]
        if len(found) != 1:
            problem = "no file" if not found else f"{len(found)} files"
            held = ", ".join(PurePosixPath(name).name for name in opened.names[:10])
            raise MtkdError(f"{archive} has {problem} called {member}; it holds {held}.")
        if opened.size_of(found[0]) > min(LARGEST_FILE, archives.most_bytes(archive)):
            raise MtkdError(f"{archive} is refused: {member} claims {opened.size_of(found[0]):,} bytes.")
        with opened.open(found[0]) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)


class _Incomplete(Exception):
    """The connection closed before the announced end."""


def _fetch_once(url: str, part: Path, *, label: str, resume_unmarked: bool, most: int) -> None:
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
        # The part here is as long as the file, or longer. It cannot be resumed, so the next attempt starts over.
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
        total = start + int(length) if length and re.fullmatch(r"[0-9]{1,18}", length) else None
        if total is not None and total > most:
            _forget(part)
            raise TransferError(f"the host announces {total:,} bytes, and the file has at most {most:,}")
        _write_mark(part, url, response.headers)
        began, counted, got = time.monotonic(), 0, 0
        with open(part, "ab" if resumed else "wb") as file, _progress(label, start, total) as advance:
            # read1 returns what has arrived, so that a silent host costs one timeout and earlier bytes are kept.
            while block := response.read1(1 << 18):
                got += len(block)
                if start + got > most:
                    break
                file.write(block)
                advance(len(block))
                if time.monotonic() - began > STALL:
                    if got - counted < PROGRESS:
                        raise _Incomplete(f"{got - counted:,} bytes came in {STALL:g} s")
                    began, counted = time.monotonic(), got
    if start + got > most:
        _forget(part)
        raise TransferError(f"the host sends more than the {most:,} bytes that the file has at most")
    if total is not None and _size(part) != total:
        raise _Incomplete(f"{_size(part):,} of {total:,} bytes came")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _marker(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _starts_at(content_range: str) -> int | None:
    digits = content_range.removeprefix("bytes ").partition("-")[0]
    return int(digits) if re.fullmatch(r"[0-9]{1,18}", digits) else None


def _marker(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_mark(part: Path, url: str, headers: http.client.HTTPMessage) -> None:
    """Record what identifies this version of the file; a weak ETag does not identify bytes."""
    tag = headers.get("ETag", "")
    mark = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    _marker(part).write_text(json.dumps({"url": url, "mark": mark}), encoding="utf-8")


def _read_mark(part: Path, url: str) -> str:
    try:
        known = json.loads(_marker(part).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return ""
    mark = known.get("mark") if isinstance(known, dict) and known.get("url") == url else None
    # It becomes a header of the next request.
    return mark if isinstance(mark, str) and re.fullmatch(r"[ -~]{0,500}", mark) else ""


@contextlib.contextmanager
def _progress(label: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, one line in a log. Yields a function that takes the number of bytes that came."""
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
