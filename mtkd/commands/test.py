"""`mtkd test`: measure networks on test sets, by name or from an option file."""

from __future__ import annotations

import argparse

from mtkd.commands import arguments
from mtkd.contracts import MtkdError
from mtkd.runtime import given

_ROWS = ("bicubic", "teachers")


def add(subparsers: arguments.SubParsers) -> None:
    """Add `test` to the sub-parsers of a command line."""
    test = arguments.command(
        subparsers,
        "test",
        "measure networks on test sets: table, per-image CSV, JSON, a page to look at",
        """mtkd test experiments/MTKD_edsr_m_x4                   # a run: its network, its metrics, on Set5, Set14, ...
  mtkd test experiments/MTKD_edsr_m_x4 --with bicubic,teachers --data photos/
  mtkd test experiments/A experiments/B net.pth zoo:edsr_m_x4     # side by side in one table
  mtkd test -opt options/benchmark.yml --scale 4         # what an option file says: its network, and its teachers
  mtkd test -opt ensemble.yml --cost                     # with latency and peak memory on this machine

In a run folder net_g_latest.pth is measured, else its newest checkpoint, with the average (EMA) where there is one; the
table says which. A weights file must say which network it holds: mtkd's do, and `mtkd zoo convert --to safetensors`
makes one of others. Their metrics are those of the run's validation, else PSNR and SSIM on Y with crop_border = scale.
Without --data their sets are those of options/benchmark.yml that are here: of your file, else of the one that comes
with mtkd. An option file gives networks, metrics and sets itself. Its teachers, their mean and the fused image have
rows too, which `--without teachers` leaves out; it may have teachers alone. Results go to results/NAME, NAME being the
network's or comparison_xSCALE; older results are never overwritten. Its report.html shows the networks side by side,
image by image, those that are named compared with the first of them.""",
    )
    test.add_argument(
        "networks", nargs="*", metavar="NETWORK", help="a run folder, a weights file, or zoo:NAME; all of one scale"
    )
    test.add_argument(
        "-opt", type=arguments.options, metavar="FILE", help="instead: a test option file (YAML, BasicSR's grammar)"
    )
    test.add_argument(
        "--data",
        nargs="+",
        default=(),
        type=given.path,
        metavar="FOLDER",
        help="folders of gt images, each a test set; lq is made by MATLAB's bicubic, or lies in FOLDER/lq beside "
        "FOLDER/gt, under the same names",
    )
    test.add_argument(
        "--with",
        dest="beside",
        default="",
        metavar="ROWS",
        help="more rows, with a comma between: bicubic, and teachers (those of the runs, their mean, the fused image)",
    )
    test.add_argument(
        "--without",
        dest="left_out",
        choices=("teachers",),
        metavar="ROWS",
        help="teachers: measure network_g of an option file alone; teachers cost time",
    )
    test.add_argument(
        "--cost",
        action="store_true",
        help="also latency (median of 3 to 100 runs) and peak memory for one image of 1280x720 on this device",
    )
    test.add_argument(
        "--which",
        choices=("latest", "best"),
        default="latest",
        help="weights of run folders: the last ones (default), or net_g_best.pth, chosen by the run's validation",
    )
    arguments.tiles(test, "run in tiles of N lq pixels, which may change numbers (default: whole)")
    test.add_argument(
        "--no_page", action="store_true", help="write no report.html: the scores and some pictures to look at"
    )
    test.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU when there is one)")
    arguments.changes(test)
    arguments.launcher(test)
    test.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print the table, write it to `results/`; 0 at once for ranks above 0 of a launcher.

    Raises:
        MtkdError: nothing is named, or too much, or it cannot be measured.
    """
    from mtkd.config import load_options
    from mtkd.runtime.launch import environment_rank

    if environment_rank() > 0 and args.launcher != "none":
        # Testing takes one process, also where it is started with the launcher of the training.
        return 0
    beside = [word.strip() for word in args.beside.split(",") if word.strip()]
    if unknown := [word for word in beside if word not in _ROWS]:
        raise MtkdError(
            f"--with {unknown[0]}: unknown rows. Use {' or '.join(_ROWS)}, or both: `--with {','.join(_ROWS)}`."
        )
    if args.left_out in beside:
        raise MtkdError(f"--with {args.left_out} and --without {args.left_out} contradict each other. Leave out one.")
    if args.opt is None:
        if not args.networks:
            raise MtkdError(
                "No network is given. Name run folders, weights files or zoo:NAME, before --data and its "
                "folders: `mtkd test experiments/NAME`; or an option file: `mtkd test -opt FILE`."
            )
        if args.force_yml:
            raise MtkdError("--force_yml, --scale and --student change an option file, `-opt FILE`, and none is given.")
        from mtkd.inference.compare import compare

        compare(
            args.networks,
            data=args.data,
            bicubic="bicubic" in beside,
            teachers="teachers" in beside,
            cost=args.cost,
            tile_size=args.tile,
            tile_pad=args.tile_pad,
            device=args.device,
            command=arguments.command_line(),
            page=not args.no_page,
            which=args.which,
        )
        return 0
    if args.networks or args.data:
        raise MtkdError(
            "-opt FILE gives the network and the images already. Leave out the networks and --data, or leave out -opt."
        )
    if args.which != "latest":
        raise MtkdError("--which best is for run folders. In an option file name RUN/models/net_g_best.pth.")
    options = load_options(args.opt, force=args.force_yml, kind="test")
    from mtkd.inference.run_test import in_tiles, run_test
    from mtkd.runtime.device import named_device

    if args.tile is not None:
        options = in_tiles(options, args.tile, args.tile_pad)
    run_test(
        options,
        bicubic="bicubic" in beside,
        teachers=args.left_out != "teachers",
        cost=args.cost,
        device=named_device(args.device) if args.device else None,
        command=arguments.command_line(),
        page=not args.no_page,
    )
    return 0
