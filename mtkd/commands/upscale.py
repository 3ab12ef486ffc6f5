"""`mtkd upscale`: a network over images of yours."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING

from mtkd.commands import arguments
from mtkd.contracts import MtkdError
from mtkd.runtime import given

if TYPE_CHECKING:
    from torch import nn

    from mtkd.config import Options

_STREAM = "-"
_SHIPPED = "tiny_x"
_USUAL_SCALE = 4


def add(subparsers: arguments.SubParsers) -> None:
    """Add `upscale` to the sub-parsers of a command line."""
    upscale = arguments.command(
        subparsers,
        "upscale",
        "upscale images: files, folders, patterns",
        "mtkd upscale photo.jpg large.png\n"
        "  mtkd upscale photos/ large/ --scale 2 --format jpg --quality 90\n"
        "  mtkd upscale 'photos/**/*.webp' large/ --weights zoo:edsr_l_x4 --skip_existing\n"
        "  mtkd upscale - - --format png < photo.jpg > large.png",
    )
    upscale.add_argument(
        "input", nargs="+", type=_input, metavar="IN", help="images, folders with the folders in them, patterns, or -"
    )
    upscale.add_argument("output", type=_output, metavar="OUT", help="the image to write, the folder to fill, or -")
    source = upscale.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=arguments.weights,
        metavar="NAME",
        help="a weights file, x.onnx, a run folder, zoo:NAME, hf:USER/NAME (default: tiny_xN for --scale N, which "
        "comes with mtkd)",
    )
    source.add_argument(
        "-opt",
        type=arguments.options,
        metavar="FILE",
        help="a test option file: its network_g and path.pretrain_network_g",
    )
    upscale.add_argument(
        "--format",
        choices=("png", "webp", "jpg", "same"),
        help="format of the images written (default: OUT's suffix; png in a folder)",
    )
    upscale.add_argument(
        "--quality", type=int, metavar="N", help="of jpg and webp, 1 to 100 (default: 95; webp without loss)"
    )
    upscale.add_argument("--no_recursive", action="store_true", help="leave out the folders in a folder")
    arguments.tiles(upscale, "run in tiles of N lq pixels (default: as large as memory allows)")
    upscale.add_argument("--x8", action="store_true", help="average over the eight flips and rotations (8 x slower)")
    upscale.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="autocast of the network (default: fp32)"
    )
    upscale.add_argument("--compile", action="store_true", help="torch.compile the network; on a CPU it may be slower")
    upscale.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU when there is one)")
    existing = upscale.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace images that exist in OUT")
    existing.add_argument(
        "--skip_existing", action="store_true", help="leave images that exist in OUT: goes on where a run was stopped"
    )
    arguments.changes(upscale, scale_help=f"what to enlarge by (default: {_USUAL_SCALE}, or what --weights does)")
    upscale.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upscale the images and say how fast; 0 when it is done.

    Raises:
        MtkdError: weights, option file or images cannot be used.
    """
    out = sys.stdout
    to_stdout = args.output == _STREAM
    if to_stdout and out.isatty():
        raise MtkdError("Standard output is the terminal. Redirect it: mtkd upscale photo.jpg - > large.png")
    # What is said must not get into the image.
    with redirect_stdout(sys.stderr) if to_stdout else nullcontext():
        from mtkd.inference.photos import plan
        from mtkd.inference.upscale import upscale_planned

        options = _options(args)
        _silence_opencv()
        planned = plan(
            args.input,
            args.output,
            format=args.format,
            quality=args.quality,
            recursive=not args.no_recursive,
            overwrite=args.overwrite,
            skip_existing=args.skip_existing,
            stdin=_read_stdin,
        )
        if not planned.jobs:
            print("Nothing is left to do.")
            return 0
        net = _network(args, options)
        began = time.perf_counter()
        count = upscale_planned(
            net,
            planned,
            tile_size=args.tile,
            tile_pad=args.tile_pad,
            x8=args.x8,
            precision=args.precision,
            compile=args.compile,
            device=args.device,
            stdout=out.buffer if to_stdout else None,
        )
        seconds = time.perf_counter() - began
        what = f"{count} {'image' if count == 1 else 'images'} upscaled x{net.scale} into {planned.into}"
        print(f"{what} in {seconds:.1f} s ({count / seconds:.2f} images/s)")
    return 0


def _options(args: argparse.Namespace) -> Options | None:
    if not args.opt:
        if [item for item in args.force_yml if args.scale is None or item != f"scale={args.scale}"]:
            raise MtkdError(
                "--force_yml and --student change an option file, `-opt FILE`, and none is given. `--weights NAME` "
                "names the network."
            )
        return None
    from mtkd.config import load_options

    return load_options(args.opt, force=args.force_yml, kind="test")


def _network(args: argparse.Namespace, options: Options | None) -> nn.Module:
    from mtkd.runtime.device import set_backends

    if options is not None:
        from mtkd.build import output_network
        from mtkd.inference.luma import as_rgb

        set_backends(tf32=options.tf32, deterministic=options.deterministic, sizes_vary=True)
        return as_rgb(output_network(options))
    from mtkd import zoo
    from mtkd.inference.load import load_network

    set_backends(sizes_vary=True)
    if args.weights is not None:
        return load_network(args.weights, scale=args.scale)
    name = f"{_SHIPPED}{args.scale or _USUAL_SCALE}"
    if name not in zoo.ENTRIES:
        known = sorted(entry.removeprefix(_SHIPPED) for entry in zoo.ENTRIES if entry.startswith(_SHIPPED))
        raise MtkdError(
            f"No network for --scale {args.scale} comes with mtkd; those for {', '.join(known)} do. Name one with "
            "--weights FILE, or zoo:NAME (`mtkd zoo list`)."
        )
    return load_network(name)


def _silence_opencv() -> None:
    """Its lines about damaged files: ours name the file, and come in one list."""
    import cv2

    with suppress(AttributeError):  # its place depends on the version
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        raise MtkdError("Standard input is the terminal. Pipe an image into it: mtkd upscale - out.png < photo.jpg")
    return sys.stdin.buffer.read()


def _input(text: str) -> str:
    return text if text == _STREAM else str(given.path(text))


def _output(text: str) -> str:
    # A slash at the end says that it is a folder.
    return text if text == _STREAM else str(given.path(text)) + ("/" if text.endswith("/") else "")
