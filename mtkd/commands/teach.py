"""`mtkd teach`: run the teachers once over the training images, into a target store."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mtkd.commands import arguments
from mtkd.contracts import MtkdError


def add(subparsers: arguments.SubParsers) -> None:
    """Add `teach` to the sub-parsers of a command line."""
    teach = arguments.command(
        subparsers,
        "teach",
        "run the teachers once over the training images, into the option file's target_store",
        """mtkd teach -opt X.yml --dry_run                # how much disk and time it takes; writes nothing
  mtkd teach -opt X.yml                          # everything here; after an interruption it goes on
  mtkd train -opt X.yml                          # the student, at the price of training it alone

X.yml names the store (target_store: targets_x4); else add --force_yml target_store=targets_x4. Split over jobs, on any
machines that see the same images and weights:
  mtkd teach -opt X.yml --shard 1/16             # ... to 16/16, in any order or all at once
  mtkd teach -opt X.yml --merge                  # bring targets_x4.shard-* together first; runs no network
Split over the GPUs of one machine:
  torchrun --nproc_per_node 8 -m mtkd teach -opt X.yml --launcher pytorch
  mtkd teach -opt X.yml --merge
Combine answers that are there already, stores or folders of images named as the training images; runs no network:
  mtkd teach -opt X.yml --from hat/train swinir_store --out mean_x4           # their mean
  mtkd teach -opt X.yml --from A B --mix 2 1 --gt 0.2 --out blend_x4          # 0.8 (2 A + B) / 3 + 0.2 gt""",
    )
    arguments.option_file(teach)
    teach.add_argument(
        "--dry_run",
        action="store_true",
        help="print the time and disk space it takes, timed on one crop; write nothing",
    )
    teach.add_argument("--shard", metavar="K/N", help="process shard K of N, written to its own file")
    teach.add_argument("--merge", action="store_true", help="join the finished shards into one store")
    teach.add_argument("--x8", action="store_true", help="average over the eight flips and rotations (8 x slower)")
    arguments.tiles(teach, "run in tiles of N lq pixels (default: whole, or what fits into memory)")
    teach.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="autocast of the teachers (default: the option file's)"
    )
    teach.add_argument(
        "--dtype",
        choices=("uint8", "float16"),
        default="uint8",
        help="float16 keeps what 8 bits round away, unclamped, in twice the space (default: uint8)",
    )
    teach.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        metavar="ANSWERS",
        help="combine these stores or folders of answers to the training images of FILE, whose teachers are not read",
    )
    teach.add_argument(
        "--mix", nargs="+", type=float, metavar="W", help="how much each of --from counts (default: all alike)"
    )
    teach.add_argument("--gt", type=float, metavar="SHARE", help="blend the ground truth in, from 0 to below 1")
    teach.add_argument("--out", type=Path, metavar="PATH", help="the store (default: the option file's target_store)")
    teach.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU when there is one)")
    arguments.launcher(teach)
    teach.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the target store, one shard of it, or the store of its shards; 0 when it is done.

    Raises:
        MtkdError: the options name no store, or contradict each other, or the teachers cannot run.
    """
    from mtkd.config import load_options

    if args.sources:
        return _combine(args)
    for option in ("mix", "gt", "out"):
        if getattr(args, option) is not None:
            raise MtkdError(f"--{option} belongs to --from, which combines answers that are there already.")
    options = load_options(args.opt, force=args.force_yml, kind="train")
    if not options.target_store:
        raise MtkdError(f"{args.opt} names no target_store; add the key, or --force_yml target_store=FILE.")
    from mtkd.runtime.launch import started_by_torchrun
    from mtkd.targets import make as teach
    from mtkd.targets import shards
    from mtkd.targets.merge import merge

    path = Path(options.target_store)
    file = shlex.join(
        ["-opt", arguments.typed(args.opt), *(("--force_yml", *args.force_yml) if args.force_yml else ())]
    )
    if args.merge:
        if args.shard or args.dry_run or args.launcher != "none":
            raise MtkdError("--merge joins finished shards; leave out --shard, --dry_run and --launcher.")
        merge(options, path)
        print(f"Targets are in {path}. Train with `mtkd train {file}`.")
        return 0
    shard, device = shards.Shard.parse(args.shard) if args.shard else shards.WHOLE, args.device
    if args.launcher != "none":
        if args.shard or args.device:
            raise MtkdError("With --launcher each process takes its rank's shard and device; leave out those options.")
        shard, device = shards.launched(args.launcher, options)
    elif started_by_torchrun():
        raise MtkdError(
            "torchrun started several processes, but --launcher pytorch is missing: each would write the "
            "same store. Add it."
        )
    recipe = teach.Recipe(
        x8=args.x8, tile_size=args.tile, tile_pad=args.tile_pad, precision=args.precision, dtype=args.dtype
    )
    if args.dry_run:
        teach.dry_run(options, path, recipe, shard=shard, device=device)
        return 0
    store = teach.teach(options, path, recipe, shard=shard, device=device)
    if shard.count > 1:
        print(f"Shard {shard} is in {store.path}. When all are there: `mtkd teach {file} --merge`.")
    else:
        print(f"Targets are in {store.path}. Train with `mtkd train {file}`.")
    return 0


def _combine(args: argparse.Namespace) -> int:
    """`--from`: one store of several that are there."""
    from mtkd.config import load_options
    from mtkd.targets.combine import combine

    used = ("shard", "merge", "dry_run", "x8", "tile", "precision", "device")
    useless = [f"--{option}" for option in used if getattr(args, option)]
    useless += ["--launcher"] if args.launcher != "none" else []
    if useless:
        raise MtkdError(f"--from runs no network, so that {', '.join(useless)} would do nothing. Leave it out.")
    # Unchecked: the teachers of the file, or that it has none, mean nothing here.
    options = load_options(args.opt, force=args.force_yml, check=False, kind="train")
    path = args.out or options.target_store
    if path is None:
        raise MtkdError(f"Name the store: --out PATH, or target_store in {args.opt}.")
    store = combine(options, path, args.sources, weights=args.mix, gt=args.gt or 0.0, dtype=args.dtype)
    print(f"Targets are in {store.path}. Train with an option file that has `target_store: {path}` and no `teachers`.")
    return 0
