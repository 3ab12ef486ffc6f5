"""What the commands share of their arguments: option files, changes to them, tiles, launchers, numbers."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mtkd.contracts import MtkdError
from mtkd.runtime import given, shipped
from mtkd.variants import variant

_SCALE_HELP = "the scale, also where the file says {scale}; as --force_yml scale=N"

SubParsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Parser(argparse.ArgumentParser):
    """A parser whose commands refuse what they do not know themselves, with their own usage and the nearest option."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, and nothing is left over."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
            options = {option.lstrip("-"): option for option in self._option_string_actions}
            near = difflib.get_close_matches(flag.lstrip("-"), options, n=1, cutoff=0.7)
            hint = f" Did you mean {options[near[0]]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
        return found, unknown


def command(subparsers: SubParsers, name: str, about: str, example: str) -> argparse.ArgumentParser:
    """The parser of command `name`, whose help is the sentence `about` and an example."""
    return subparsers.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def option_file(command: argparse.ArgumentParser) -> None:
    """Add `-opt FILE`, required, and what changes it."""
    command.add_argument(
        "-opt",
        required=True,
        type=options,
        metavar="FILE",
        help="option file (YAML, BasicSR's grammar), or recipe:NAME, one of `mtkd list recipes`",
    )
    changes(command)


def changes(command: argparse.ArgumentParser, *, scale_help: str = _SCALE_HELP) -> None:
    """Add `--force_yml`, `--scale`, `--student` and `--import`."""
    command.add_argument(
        "--force_yml",
        nargs="+",
        default=(),
        metavar="a:b=c",
        help="change values of the option file, e.g. train:optim_g:lr=1e-4 scale=2",
    )
    command.add_argument("--scale", type=scale, metavar="N", help=scale_help)
    command.add_argument(
        "--student",
        type=student,
        metavar="NAME",
        help="the network, also where the file says {network_g} or {teacher}; as --force_yml network_g=NAME",
    )
    command.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        default=(),
        metavar="MODULE",
        help="modules of your own to import first, which register archs, losses or metrics in BasicSR's registries",
    )


def tiles(command: argparse.ArgumentParser, about: str) -> None:
    """Add `--tile` and `--tile_pad`."""
    command.add_argument("--tile", type=pixels, metavar="N", help=about)
    command.add_argument(
        "--tile_pad", type=pixels, default=32, metavar="N", help="lq pixels of context around each tile (default: 32)"
    )


def launcher(command: argparse.ArgumentParser) -> None:
    """Add `--launcher` and `--local_rank`."""
    command.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="how the processes were started; pytorch: `torchrun --nproc_per_node N -m mtkd ... --launcher pytorch`",
    )
    command.add_argument("--local_rank", "--local-rank", type=int, default=0, help="accepted for old launchers, unused")


def options(text: str) -> Path:
    """The path of an option file, or of the recipe that `recipe:NAME` means.

    Raises:
        MtkdError: no path can be so, or no recipe has the name.
    """
    return shipped.recipe(text.removeprefix(shipped.RECIPE)) if text.startswith(shipped.RECIPE) else given.path(text)


def typed(options: Path) -> str:
    """What to type for this option file: `recipe:NAME` where it is one of ours."""
    name = shipped.recipe_name(options)
    return str(options) if name is None else f"{shipped.RECIPE}{name}"


def weights(text: str) -> str:
    """What `mtkd.load` takes: a path, or a name with its prefix."""
    return text if text.startswith(("zoo:", "hf:")) else str(given.path(text))


def scale(text: str) -> int:
    """A scale: a whole number above 0 of at most three digits."""
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number such as 2, 3 or 4, found {text[:60]!r}")
    return int(text)


def student(text: str) -> str:
    """A network of known size by its name."""
    try:
        variant(text)
    except MtkdError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def in_words(args: argparse.Namespace) -> list[str]:
    """`--scale` and `--student` as items of `--force_yml`; they come after those that were given."""
    named = {"scale": args.scale, "network_g": args.student}
    return [f"{key}={value}" for key, value in named.items() if value is not None]


def pixels(text: str) -> int:
    """A number of pixels; who uses it says which numbers it takes."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number of pixels, found {text[:60]!r}") from None
    if abs(number) > 1_000_000:
        raise argparse.ArgumentTypeError("no image is as large as that")
    return number


def command_line() -> str:
    """What was typed, for the record of results."""
    return "mtkd " + shlex.join(sys.argv[1:])
