"""`mtkd list`: what exists, by name. It imports no class: descriptions are read from their source, in no time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mtkd.commands import arguments

if TYPE_CHECKING:
    from mtkd.catalog import Kind

_KINDS: dict[str, Kind] = {
    "archs": "arch",
    "methods": "method",
    "losses": "loss",
    "metrics": "metric",
    "datasets": "dataset",
}
WHAT = (*_KINDS, "recipes")
_TEACHERS = {
    "none": "none",
    "image": "one image per lq; trains from a target_store",
    "network": "run on line, frozen",
}


def add(subparsers: arguments.SubParsers) -> None:
    """Add `list` to the sub-parsers of a command line."""
    listing = arguments.command(subparsers, "list", "list what exists", "mtkd list methods")
    listing.add_argument("what", nargs="?", choices=WHAT)
    listing.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the names of one kind, each with what it is, or the kinds; the exit code."""
    if args.what is None:
        print("\n".join(f"mtkd list {what}" for what in WHAT))
        return 0
    for line in _recipes() if args.what == "recipes" else _of_catalog(_KINDS[args.what]):
        print(line)
    return 0


def _of_catalog(kind: Kind) -> Iterator[str]:
    from mtkd import catalog, variants
    from mtkd.commands import source

    for name, path in catalog.TABLES[kind].items():
        found = source.named(path)
        yield f"{name}: {found.summary()}"
        for variant in variants.of_arch(name) if kind == "arch" else ():
            arguments_text = ", ".join(f"{key}: {value}" for key, value in variants.VARIANTS[variant][1].items())
            yield f"    {variant}: {{{arguments_text}}}"
        if kind == "method":
            if paper := found.attribute("paper"):
                yield f"    from {paper}"
            yield f"    teachers: {_TEACHERS[found.attribute('teacher_use')]}"
            for term, about in found.attribute("terms").items():
                weight = "off by default" if about["weight"] is None else f"weight {about['weight']:g}"
                criterion = f", {about['loss']}" if about["loss"] else ""
                yield f"    train.{term}_opt: {about['about']} ({weight}{criterion})"


def _recipes() -> Iterator[str]:
    from mtkd.runtime import shipped

    for name, path in shipped.recipes().items():
        yield f"{name}: {shipped.summary(path)}"
