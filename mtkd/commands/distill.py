"""`mtkd distill`: own photographs and a strong network in, an own student out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mtkd.commands import arguments
from mtkd.runtime import given

if TYPE_CHECKING:
    from mtkd.distilling.request import Request


def add(subparsers: arguments.SubParsers) -> None:
    """Add `distill` to the sub-parsers of a command line."""
    distill = arguments.command(
        subparsers,
        "distill",
        "make an own small network of own photographs and a strong network, in one go",
        """mtkd distill photos/ --teacher CRAFT_x4.pth --scale 4               # ten minutes of training
  mtkd distill photos/ --teacher CRAFT_x4.pth --scale 4 --dry_run     # what it would do; writes nothing
  mtkd distill photos/ --teacher zoo:rcan_x4 --teacher zoo:edsr_l_x4 --scale 4 --minutes 60 --out mine
  mtkd distill photos/ --teacher answers/ --scale 2 --validation others/

It checks everything, sets some photographs aside to measure on, runs the teachers once, trains the student on the mean
of their images, measures it beside bicubic and the teachers, and writes the network, a page and an option file into
OUT. Stopped or killed, it goes on when the same command is given again. photos/ may have sub-folders, any sizes and
formats; what cannot be used is left out and named. A teacher is a weights file, zoo:NAME (`mtkd zoo list`), the folder
of a run, or a folder of what it made of smaller copies of the photographs (`mtkd data lr`; with --unlabelled, of the
photographs), under their names. A GPU is used where there is one.""",
    )
    distill.add_argument("photos", type=given.path, metavar="PHOTOS", help="a folder of photographs, or one")
    flags(distill)
    distill.add_argument(
        "--out", type=given.path, metavar="DIR", help="what it makes (default: distilled/PHOTOS_STUDENT_xSCALE)"
    )
    distill.add_argument(
        "--whole", action="store_true", help="run the teachers over whole photographs, however long it takes"
    )
    distill.add_argument(
        "--dry_run", action="store_true", help="check everything, and print times and disk space; write nothing"
    )
    distill.set_defaults(run=run)


def flags(command: argparse.ArgumentParser) -> None:
    """Add what `distill` and `init` share."""
    command.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="FILE",
        help="a strong network: weights, zoo:NAME, or a folder of its images; several times for the mean of several",
    )
    command.add_argument("--student", default="tiny", metavar="NAME", help="one of `mtkd list archs` (default: tiny)")
    command.add_argument("--scale", type=arguments.scale, default=4, metavar="N", help="enlarge by N (default: 4)")
    command.add_argument("--minutes", type=float, metavar="N", help="of training (default: 10)")
    command.add_argument("--iterations", type=int, metavar="N", help="of training, instead of --minutes")
    command.add_argument(
        "--validation",
        metavar="FOLDER|N",
        help="measure on the photographs in FOLDER, or on N of PHOTOS (default: a tenth, at most 10)",
    )
    command.add_argument(
        "--unlabelled",
        action="store_true",
        help="PHOTOS are as small as what the student will be given; default: as large as what it shall make",
    )
    command.add_argument(
        "--from_scratch", action="store_true", help="do not begin with the student that comes with mtkd"
    )
    command.add_argument("--seed", type=int, default=10, metavar="N", help="of weights and batches (default: 10)")
    command.add_argument("--device", metavar="NAME", help="cpu or cuda (default: the GPU when there is one)")


def asked(args: argparse.Namespace) -> Request:
    """What the flags ask for.

    Raises:
        MtkdError: something named is not there, or a value cannot be.
    """
    from mtkd.distilling.request import request

    return request(
        args.photos,
        args.teacher,
        student=args.student,
        scale=args.scale,
        minutes=args.minutes,
        iterations=args.iterations,
        validation=args.validation,
        unlabelled=args.unlabelled,
        from_scratch=args.from_scratch,
        whole=getattr(args, "whole", False),
        seed=args.seed,
        device=args.device,
    )


def run(args: argparse.Namespace) -> int:
    """Make the student, or go on with it; 128 + signal when a signal stopped it.

    Raises:
        MtkdError: something cannot be used; nothing is lost.
    """
    wanted = asked(args)
    from mtkd.distilling import run as steps
    from mtkd.training.loop import Stopped

    out: Path = args.out or steps.default_out(wanted)
    if args.dry_run:
        steps.dry_run(wanted, out)
        return 0
    try:
        steps.run(wanted, out, command=arguments.command_line())
    except Stopped as stopped:
        print("Stopped; nothing is lost. Give the same command again to go on.")
        assert isinstance(stopped.code, int)  # typed as anything that sys.exit takes
        return stopped.code
    return 0
