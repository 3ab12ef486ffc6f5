"""`mtkd upscale`: a network over images of yours."""

from __future__ import annotations

import argparse
import time

from mtkd.commands import arguments
from mtkd.runtime import given


def add(subparsers: arguments.SubParsers) -> None:
    """Add `upscale` to the sub-parsers of a command line."""
    upscale = arguments.command(
        subparsers,
        "upscale",
        "upscale an image or a folder of images",
        "mtkd upscale photos/ upscaled/ --weights experiments/MTKD_edsr_m_x4/models/net_g_latest.pth",
    )
    upscale.add_argument("input", type=given.path, metavar="IN", help="an image, or a folder of images")
    upscale.add_argument("output", type=given.path, metavar="OUT", help="the image to write, or the folder to fill")
    source = upscale.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=arguments.weights, help="a checkpoint written by mtkd, or zoo:NAME")
    source.add_argument(
        "-opt",
        type=arguments.options,
        metavar="FILE",
        help="a test option file: its network_g and path.pretrain_network_g",
    )
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
    arguments.changes(upscale)
    upscale.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upscale the image or the folder and say how fast; 0 when it is done.

    Raises:
        MtkdError: weights, option file or images cannot be used.
    """
    from mtkd.inference.upscale import upscale

    if args.opt:
        from mtkd.build import output_network
        from mtkd.config import load_options
        from mtkd.runtime.device import set_backends

        options = load_options(args.opt, force=args.force_yml, kind="test")
        set_backends(tf32=options.tf32, deterministic=options.deterministic, sizes_vary=True)
        net = output_network(options)
    else:
        from mtkd import zoo
        from mtkd.runtime.device import set_backends

        set_backends(sizes_vary=True)
        net = zoo.build(args.weights)
    began = time.perf_counter()
    count = upscale(
        net,
        args.input,
        args.output,
        tile_size=args.tile,
        tile_pad=args.tile_pad,
        x8=args.x8,
        precision=args.precision,
        compile=args.compile,
        device=args.device,
        overwrite=args.overwrite,
        skip_existing=args.skip_existing,
    )
    seconds = time.perf_counter() - began
    print(
        f"{count} {'image' if count == 1 else 'images'} upscaled x{net.scale} into {args.output} in {seconds:.1f} s "
        f"({count / seconds:.2f} images/s)"
    )
    return 0
