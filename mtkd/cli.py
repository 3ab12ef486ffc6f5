"""The command line: `mtkd COMMAND ...`, one file of `mtkd/commands/` a command.

Each command imports what it needs when it runs, so that `mtkd --help` answers at once. `boundary` turns errors into
messages and exit codes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mtkd.commands import (
    bench,
    boundary,
    cache,
    check,
    compare,
    config,
    data,
    demo,
    distill,
    export,
    init,
    push,
    teach,
    test,
    train,
    upscale,
    zoo,
)
from mtkd.commands import list as listing
from mtkd.commands.arguments import Parser, in_words
from mtkd.contracts import MtkdError, Stopped
from mtkd.runtime import given

COMMANDS = (
    upscale,
    distill,
    init,
    export,
    push,
    train,
    test,
    compare,
    check,
    config,
    teach,
    bench,
    demo,
    listing,
    zoo,
    data,
    cache,
)
"""The modules of the commands, in the order of the help; `add(subparsers)` of each adds the command of its name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: see `mtkd.commands.boundary`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("MTKD_DEBUG", "0") not in ("", "0") or "--debug" in arguments
    code = boundary.run(lambda: _run(arguments), arguments, debug=debug)
    if argv is None and code in (boundary.USER_ERROR, boundary.DEFECT):
        boundary.leave_others(code)
    return code


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each command sets `run`, (args) -> exit code."""
    from mtkd import __version__

    top = Parser(prog="mtkd", description="Knowledge distillation for image super-resolution.")
    top.add_argument("--version", action="version", version=f"mtkd {__version__}")
    top.add_argument(
        "--debug", dest="traceback", action="store_true", help="show the traceback of an error (also: MTKD_DEBUG=1)"
    )
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(subparsers)
    return top


def _run(arguments: Sequence[str]) -> int:
    args = parser().parse_args(arguments)
    if hasattr(args, "launcher"):
        given.check_environment()
    if hasattr(args, "force_yml"):
        args.force_yml = [*args.force_yml, *in_words(args)]
    with _no_exit("The command"):
        if imports := getattr(args, "imports", ()):
            from mtkd import catalog

            catalog.import_modules(imports)
        return args.run(args)


@contextmanager
def _no_exit(what: str) -> Iterator[None]:
    """Turn an exit by foreign code into an error: it would look like success. `Stopped` is ours."""
    try:
        yield
    except Stopped:
        raise
    except SystemExit as error:
        raise MtkdError(
            f"{what} was ended by code from outside, which called sys.exit({error.code!r}). Remove the call, or put it "
            "under `if __name__ == '__main__':`."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
