"""`mtkd init`: the option file of `mtkd distill` alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtkd.commands import arguments
from mtkd.commands.distill import asked, flags
from mtkd.contracts import MtkdError
from mtkd.runtime import given


def add(subparsers: arguments.SubParsers) -> None:
    """Add `init` to the sub-parsers of a command line."""
    init = arguments.command(
        subparsers,
        "init",
        "write an option file for own photographs and a strong network, to go on from by hand",
        """mtkd init                                                        # asks a few questions, on a terminal
  mtkd init mine.yml --photos photos/ --teacher CRAFT_x4.pth --scale 4 --iterations 20000
  mtkd check mine.yml && mtkd teach -opt mine.yml && mtkd train -opt mine.yml

The file is that of `mtkd distill` with the same flags, with a comment on each part; everything that it names is tried
before. Two lists beside it say which photographs are trained on and which are measured on. Nothing is overwritten.""",
    )
    init.add_argument(
        "file",
        nargs="?",
        type=given.path,
        default=Path("distill.yml"),
        metavar="FILE.yml",
        help="the option file to write, whose name is that of the run (default: distill.yml)",
    )
    init.add_argument("--photos", type=given.path, metavar="PHOTOS", help="a folder of photographs, or one")
    flags(init)
    init.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file; 0.

    Raises:
        MtkdError: it cannot be written, or something that it would name cannot be used.
    """
    from mtkd.distilling import start

    start.check_file(args.file)
    if args.photos is None and not args.teacher:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise MtkdError(
                "Questions need a terminal. Give flags: `mtkd init FILE.yml --photos FOLDER --teacher FILE --scale 4`."
            )
        try:
            for name, value in start.questions(input).items():
                setattr(args, name, value)
        except EOFError:
            raise MtkdError("The answers ended before the questions; nothing is written.") from None
    elif args.photos is None:
        raise MtkdError("--photos is missing: the folder of photographs.")
    start.write_file(asked(args), args.file, arguments.command_line())
    return 0
