"""`mtkd check`: validate option files without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mtkd.commands import arguments
from mtkd.commands.boundary import USER_ERROR
from mtkd.contracts import MtkdError

_PROBLEMS_SHOWN = 50


def add(subparsers: arguments.SubParsers) -> None:
    """Add `check` to the sub-parsers of a command line."""
    check = arguments.command(
        subparsers,
        "check",
        "validate option files without training",
        "mtkd check options/ my_run.yml --data",
    )
    check.add_argument(
        "files", nargs="+", type=arguments.options, metavar="FILE", help="option files, folders of them, recipe:NAME"
    )
    check.add_argument("--data", action="store_true", help="also check weights, data folders, pairs and image sizes")
    arguments.changes(check)
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print `ok` or `FAIL`, the problems and the notices for each file; USER_ERROR when any has a problem.

    Raises:
        MtkdError: a folder holds no option files.
    """
    from mtkd.config import OptionError, load_options
    from mtkd.config.layers import runs_among
    from mtkd.config.untested import is_for_upscale, why_untested

    files: list[Path] = []
    for place in args.files:
        found = sorted([*place.rglob("*.yml"), *place.rglob("*.yaml")]) if place.is_dir() else [place]
        if not found:
            raise MtkdError(f"{place} holds no option files (*.yml).")
        files += found if len(found) == 1 else runs_among(found)
    broken = 0
    for file in files:
        problems: list[Any] = []
        remark, notices = "", []
        try:
            options = load_options(file, force=args.force_yml)
            notices = options.notices
            if is_for_upscale(options):
                remark = f" (not for `mtkd test`: {why_untested(options)})"
            elif not args.data and (why := why_untested(options)) is not None:
                problems = [options.problem(("val", "metrics"), why)]
            if args.data:
                from mtkd.training.check import check_data

                problems = check_data(options)
        except OptionError as error:
            problems = error.problems
        except MtkdError as error:
            problems = [error]
        if problems:
            broken += 1
            print(f"FAIL {file}")
            for problem in problems[:_PROBLEMS_SHOWN]:
                print(f"  {problem}")
            if len(problems) > _PROBLEMS_SHOWN:
                print(f"  and {len(problems) - _PROBLEMS_SHOWN:,} more problems")
        else:
            print(f"ok   {file}{remark}")
        for notice in notices:
            print(f"  note: {notice}")
    print(f"{len(files) - broken} of {len(files)} option files are valid.")
    return USER_ERROR if broken else 0
