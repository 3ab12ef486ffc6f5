"""`mtkd demo`: the whole of MTKD in minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from mtkd.commands import arguments
from mtkd.runtime import given


def add(subparsers: arguments.SubParsers) -> None:
    """Add `demo` to the sub-parsers of a command line."""
    demo = arguments.command(
        subparsers,
        "demo",
        "distil a student from three small teachers on real photographs, in minutes on a CPU",
        "mtkd demo --out demo_results",
    )
    demo.add_argument(
        "--out",
        type=given.path,
        default=Path("experiments/demo"),
        help="folder for its results (default: experiments/demo)",
    )
    demo.add_argument("--quick", action="store_true", help="a few iterations each: shows the path, not the quality")
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 when its table is written.

    Raises:
        MtkdError: scikit-image, whose photographs it trains on, is missing.
    """
    from mtkd.demo import demo

    demo(args.out, quick=args.quick)
    return 0
