"""`mtkd train`: train the student, or the fusion network, of an option file."""

from __future__ import annotations

import argparse

from mtkd.commands import arguments


def add(subparsers: arguments.SubParsers) -> None:
    """Add `train` to the sub-parsers of a command line."""
    train = arguments.command(
        subparsers,
        "train",
        "train the student of an option file",
        "mtkd train -opt options/train/MTKD/stage2.yml --scale 4 --auto_resume\n"
        "  mtkd train -opt recipe:MTKD/stage2 --scale 4   # from any folder: one of `mtkd list recipes`",
    )
    arguments.option_file(train)
    train.add_argument("--auto_resume", action="store_true", help="continue from the run's newest training state")
    train.add_argument(
        "--debug", action="store_true", help="validate and save every 8 iterations, print every one, show tracebacks"
    )
    train.add_argument(
        "--no_page", action="store_true", help="write no report.html into the run folder: curves, scores, a few images"
    )
    arguments.launcher(train)
    train.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the training of the option file.

    Raises:
        MtkdError: the options cannot be trained, or the run cannot be made.
        Stopped: a signal ended the run; everything is saved.
    """
    from mtkd.config import load_options

    options = load_options(args.opt, force=args.force_yml, debug=args.debug, kind="train")
    from mtkd.training.loop import train

    train(
        options,
        auto_resume=args.auto_resume,
        launcher=args.launcher,
        option_text=args.opt.read_text(encoding="utf-8"),
        command=arguments.command_line(),
        page=not args.no_page,
    )
    return 0
