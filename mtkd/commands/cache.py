"""`mtkd cache`: what lies in the cache folder, and room made in it."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtkd.commands import arguments
from mtkd.contracts import MtkdError

if TYPE_CHECKING:
    from mtkd.runtime.cached import Cached

KINDS = {
    "images": "training images and answers of teachers, decoded once",
    "weights": "published weights, fetched and converted (`mtkd zoo`)",
    "downloads": "archives of weights, transfers that broke off, files with a wrong hash",
    "logs": "reports of unexpected errors",
}


def add(subparsers: arguments.SubParsers) -> None:
    """Add `cache` to the sub-parsers of a command line."""
    about = "\n".join(f"  {kind:<10} {text}" for kind, text in KINDS.items())
    cache = arguments.command(
        subparsers,
        "cache",
        "list what lies in the cache folder, and clear it",
        f"""mtkd cache                                  # what is there: size, age, what it belongs to
  mtkd cache clear images --older_than 30     # decoded images that no run has used for 30 days
  mtkd cache clear --all --yes                # everything, without a question

The folder is $MTKD_HOME, else that of the platform. Kinds:
{about}

All of it is made or fetched again when it is needed; runs, checkpoints and target stores lie elsewhere and are never
touched, nor are files in the folder that are not mtkd's. What a process of this machine makes or uses is left alone,
and said; of other machines that share the folder only those that make or fetch something are known.""",
    )
    cache.set_defaults(run=run, what="list", kinds=(), older_than=None)
    commands = cache.add_subparsers(metavar="list | clear")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (default: every kind)")
    common.add_argument("--older_than", type=days, metavar="DAYS", help="only what was not used for so many days")
    listing = commands.add_parser("list", parents=[common], help="what is there (this is the default)")
    listing.set_defaults(what="list")
    clear = commands.add_parser("clear", parents=[common], help="remove it, after a question")
    clear.add_argument("--all", action="store_true", help="every kind, whatever its age")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    clear.set_defaults(what="clear")


def days(text: str) -> float:
    """A number of days, at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 100_000:
        raise argparse.ArgumentTypeError(f"must be a number of days, found {text[:60]!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """List or clear; what is in use is left alone, and said.

    Raises:
        MtkdError: a kind is unknown, or nothing says what to clear; nothing is removed then. Or the disk refused.
    """
    for kind in args.kinds:
        if kind not in KINDS:
            raise MtkdError(f"{kind} is no kind of cache. They are {', '.join(KINDS)}.")
    if args.what == "clear" and args.all and (args.kinds or args.older_than is not None):
        raise MtkdError("--all clears everything. Leave out --all, or the kinds and --older_than.")
    if args.what == "clear" and not (args.all or args.kinds or args.older_than is not None):
        raise MtkdError("Say what to clear: a kind (`mtkd cache clear images`), --older_than DAYS, or --all.")
    from mtkd.zoo import home

    root = home().parent
    found = [entry for entry in everything(root) if not args.kinds or entry.kind in args.kinds]
    if args.older_than is not None:
        found = [entry for entry in found if time.time() - entry.used >= 86400 * args.older_than]
    if args.what == "list":
        print(table(root, found))
        return 0
    if not found:
        print(f"Nothing to clear in {root}.")
        return 0
    return _clear(root, found, sure=args.yes)


def everything(root: Path) -> list[Cached]:
    """All that is ours in the cache folder `root`, the largest of each kind first."""
    from mtkd.data import cache as images
    from mtkd.runtime.cached import Cached
    from mtkd.zoo import cached_files

    found = [*images.entries(root / "datasets"), *cached_files.entries(root / "weights")]
    for path in sorted((root / "logs").glob("error_*.log")):
        found.append(Cached("logs", path.name, "an unexpected error", path, path.stat().st_mtime))
    return sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), -entry.nbytes))


def table(root: Path, found: Sequence[Cached]) -> str:
    """A line for each entry, and the sums."""
    from mtkd.runtime.cached import age
    from mtkd.targets.store_check import size_text

    if not found:
        return f"Nothing of that in {root}."
    rows = [("kind", "size", "unused", "name", "what")]
    rows += [(e.kind, size_text(e.nbytes), age(e.used), e.name, e.about) for e in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sums = {kind: sum(e.nbytes for e in found if e.kind == kind) for kind in KINDS}
    parts = ", ".join(f"{kind} {size_text(nbytes)}" for kind, nbytes in sums.items() if nbytes)
    return "\n".join([*lines, f"{size_text(sum(sums.values()))} in {root}: {parts}"])


def _clear(root: Path, found: Sequence[Cached], *, sure: bool) -> int:
    from mtkd.runtime.cached import remove
    from mtkd.targets.store_check import size_text

    about = f"{len(found)} {'entry' if len(found) == 1 else 'entries'}, {size_text(sum(e.nbytes for e in found))}"
    if not sure:
        if not sys.stdin.isatty():
            raise MtkdError(f"{about} in {root} would be removed. Nobody can be asked here: add --yes.")
        print(table(root, found))
        try:
            answer = input(f"Remove {about}? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return 0
    freed, removed, failures = 0, 0, []
    for entry in found:
        nbytes = entry.nbytes
        try:
            why = remove(entry)
        except OSError as error:
            failures.append(f"{entry.path}: {error.strerror or error}.")
            continue
        if why:
            print(f"{entry.name} is left alone: {why}.")
        else:
            freed, removed = freed + nbytes, removed + 1
    print(f"{removed} of {len(found)} removed, {size_text(freed)}.")
    if failures:
        raise MtkdError(f"{len(failures)} could not be removed. {failures[0]} Who owns the folder can do it.")
    return 0
