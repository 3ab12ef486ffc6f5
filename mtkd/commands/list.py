"""`mtkd list`: what exists, by name."""

from __future__ import annotations

import argparse

from mtkd.commands import arguments

_TEACHERS = {
    "none": "none",
    "image": "one image per lq; trains from a target_store",
    "network": "run on line, frozen",
}


def add(subparsers: arguments.SubParsers) -> None:
    """Add `list` to the sub-parsers of a command line."""
    listing = arguments.command(subparsers, "list", "list what exists", "mtkd list methods")
    listing.add_argument("what", choices=("archs", "methods", "losses", "metrics", "datasets"))
    listing.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run it; the exit code."""
    import inspect

    from mtkd import catalog, variants

    kind = {"archs": "arch", "methods": "method", "losses": "loss", "metrics": "metric", "datasets": "dataset"}[
        args.what
    ]
    for name in catalog.names(kind):  # pyright: ignore[reportArgumentType]
        found = catalog.get(kind, name)  # pyright: ignore[reportArgumentType]
        print(f"{name}: {(inspect.getdoc(found) or '').splitlines()[0]}")
        for variant in variants.of_arch(name) if kind == "arch" else ():
            told = ", ".join(f"{key}: {value}" for key, value in variants.VARIANTS[variant][1].items())
            print(f"    {variant}: {{{told}}}")
        if kind == "method":
            if found.paper:
                print(f"    from {found.paper}")
            print(f"    teachers: {_TEACHERS[found.teacher_use]}")
            for term, about in found.terms.items():
                weight = "off by default" if about.weight is None else f"weight {about.weight:g}"
                criterion = f", {about.loss}" if about.loss else ""
                print(f"    train.{term}_opt: {about.about} ({weight}{criterion})")
    return 0
