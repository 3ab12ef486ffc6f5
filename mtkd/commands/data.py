"""`mtkd data ...`: image sets and folders of images, laid out, checked and made ready."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkd.commands import arguments
from mtkd.contracts import MtkdError
from mtkd.runtime import given

if TYPE_CHECKING:
    from mtkd.data.laid import State

_EXAMPLE = """example:
  mtkd data list
  mtkd data lay Set5 Set14 BSD100 Urban100 --from benchmark.tar --scale 2 3 4
  mtkd data lay DIV2K --from DIV2K_train_HR.zip DIV2K_valid_HR.zip --scale 4
  mtkd data check DIV2K
  mtkd data lr my/HR my/LR_bicubic --scale 4

Images that lie elsewhere need none of this: option files name any folder (dataroot_gt)."""
_MOST_WORKERS = 256


def add(subparsers: Any) -> None:
    """Add `data` and its commands to the sub-parsers of a command line; each sets `args.run`, (args) -> exit code."""
    data = subparsers.add_parser(
        "data",
        help="image sets: list, lay out, check, make lq images",
        description="Image sets and folders of images: list, lay out, check, make lq images.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = data.add_subparsers(metavar="COMMAND", required=True)

    listing = arguments.command(
        commands, "list", "the known sets: what is here, terms, who publishes them", "mtkd data list"
    )
    _root(listing, "--in")
    listing.set_defaults(run=_list)

    lay = arguments.command(
        commands,
        "lay",
        "lay out known sets where the recipes look, from archives and folders of any layout",
        "mtkd data lay Set5 BSD100 --from benchmark.tar BSR_bsds500.tgz --scale 2 4",
    )
    lay.add_argument("names", nargs="+", metavar="NAME", help="sets, see `mtkd data list`")
    lay.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        required=True,
        type=given.path,
        metavar="PATH",
        help="archives (zip, tar, tgz) and folders, searched with their sub-folders",
    )
    _root(lay, "--to")
    how = lay.add_mutually_exclusive_group()
    how.add_argument("--link", action="store_true", help="make symbolic links to the files of folders")
    how.add_argument("--copy", action="store_true", help="copy files (the default)")
    lay.add_argument(
        "--scale",
        type=arguments.scale,
        nargs="*",
        default=(2, 3, 4),
        metavar="N",
        help="make lq images of these scales (default: 2 3 4; none after --scale: make none)",
    )
    _workers(lay)
    lay.set_defaults(run=_lay)

    check = arguments.command(
        commands,
        "check",
        "check known sets against their manifests, or any pairs with --lq",
        "mtkd data check Set5 --bicubic\n"
        "  mtkd data check my/HR --lq my/LR/X4 --scale 4 --filename_tmpl '{}x4' --gt_size 192",
    )
    check.add_argument("gt", nargs="+", metavar="NAME", help="sets; with --lq, one folder of gt images")
    _root(check, "--in")
    check.add_argument("--lq", type=given.path, metavar="FOLDER", help="folder of lq images")
    check.add_argument("--scale", type=arguments.scale, nargs="+", metavar="N")
    check.add_argument(
        "--filename_tmpl", dest="template", default="{}", help="lq name without suffix, such as '{}x4' (with --lq)"
    )
    check.add_argument("--meta_info_file", type=given.path, help="file that chooses the images (with --lq)")
    check.add_argument(
        "--gt_size", type=arguments.pixels, help="training crop that every gt must be able to give (with --lq)"
    )
    check.add_argument("--bicubic", action="store_true", help="lq must be MATLAB's bicubic of gt, bit for bit")
    _workers(check)
    check.set_defaults(run=_check)

    lr = arguments.command(
        commands,
        "lr",
        "make lq folders with MATLAB's bicubic",
        "mtkd data lr datasets/Urban100/HR datasets/Urban100/LR_bicubic --scale 2 3 4",
    )
    lr.add_argument("folder", type=given.path, help="HR images")
    lr.add_argument("out", type=given.path, help="receives X2/, X3/, ...")
    lr.add_argument("--scale", type=arguments.scale, nargs="+", required=True, metavar="N")
    lr.add_argument(
        "--filename_tmpl", dest="template", default="{}x{scale}", help="lq name without suffix (default: %(default)s)"
    )
    _workers(lr)
    lr.set_defaults(run=_lr)

    meta = arguments.command(
        commands,
        "meta",
        "write a meta_info file, which chooses and orders images",
        "mtkd data meta datasets/DIV2K/DIV2K_train_HR datasets/DIV2K/meta_info.txt --min_size 192",
    )
    meta.add_argument("folder", type=given.path)
    meta.add_argument("out", type=given.path)
    meta.add_argument("--min_size", type=arguments.pixels, default=1, help="leave out images with a shorter side")
    meta.set_defaults(run=_meta)

    sub = arguments.command(
        commands,
        "sub",
        "cut images into squares (mtkd itself does not need them)",
        "mtkd data sub datasets/DIV2K/DIV2K_train_HR datasets/DIV2K/DIV2K_train_HR_sub --size 480 --step 240",
    )
    sub.add_argument("folder", type=given.path)
    sub.add_argument("out", type=given.path)
    sub.add_argument("--size", type=_above_0, default=480)
    sub.add_argument("--step", type=_above_0, default=240)
    sub.add_argument("--strip", default="", help="ending removed from names, such as x4")
    _workers(sub)
    sub.set_defaults(run=_sub)

    manifest = arguments.command(
        commands,
        "manifest",
        "print the manifest of a folder: name, width, height, SHA-256 of the pixels",
        "mtkd data manifest datasets/Set5/HR --cut 2 3 4 > Set5.csv",
    )
    manifest.add_argument("folder", type=given.path)
    manifest.add_argument(
        "--filename_tmpl", dest="template", default="{}", help="name in the manifest, such as 'kodim{}'"
    )
    manifest.add_argument(
        "--cut", type=arguments.scale, nargs="+", default=(), metavar="N", help="add images cut to multiples of N"
    )
    _workers(manifest)
    manifest.set_defaults(run=_manifest)


def _root(command: argparse.ArgumentParser, flag: str) -> None:
    command.add_argument(
        flag,
        dest="root",
        type=given.path,
        default=Path("datasets"),
        metavar="FOLDER",
        help="where the sets lie (default: datasets)",
    )


def _workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers", type=_threads, default=os.cpu_count() or 1, metavar="N", help="threads (default: all CPUs)"
    )


def _above_0(text: str) -> int:
    if (number := arguments.pixels(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, found {number}")
    return number


def _threads(text: str) -> int:
    if (number := _above_0(text)) > _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"must be {_MOST_WORKERS} or less, found {number}")
    return number


def _list(args: argparse.Namespace) -> int:
    from mtkd.data.known import SETS
    from mtkd.data.laid import inspect

    for known in SETS.values():
        print(f"{known.name}: {known.use}")
        print(f"    terms: {known.terms}. From: {known.source}")
        for part in known.parts:
            state = inspect(known, part, args.root, pixels=False)
            print("    " + "; ".join(_described(state)))
    print("Names and sizes were looked at; `mtkd data check NAME` compares the pixels.")
    return 0


def _described(state: State) -> Iterator[str]:
    if not state.hr.exists():
        yield f"{state.hr}: not here ({state.manifest.count} images)"
        return
    here = "complete" if state.complete else state.said_missing() if state.lacking else "all are here"
    yield f"{state.hr}: {here}"
    if state.wrong:
        yield f"{len(state.wrong)} wrong: {state.wrong[0]}"
    if state.strangers:
        yield f"{len(state.strangers)} that are not of the set, such as {state.strangers[0].name}"
    for scale in range(2, 9):
        folder = state.part.lq_folder(state.folder, scale)
        if folder.is_dir():
            lacking = sum(not file.exists() for _, file in state.lq_files(scale))
            yield f"lq x{scale}" + (f" lacks {lacking}" if lacking else "")


def _lay(args: argparse.Namespace) -> int:
    from mtkd.data.known import known_set
    from mtkd.data.laying import lay

    sets = {known_set(name).name: known_set(name) for name in args.names}
    sources = list(dict.fromkeys(args.sources))
    scales = sorted(set(args.scale))
    lay(list(sets.values()), sources, args.root, scales=scales, link=args.link, workers=args.workers)
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.lq is not None:
        return _check_pairs(args)
    from mtkd.data.known import known_set
    from mtkd.data.laid import verify

    given_too = [flag for flag in ("meta_info_file", "gt_size") if getattr(args, flag) is not None]
    if given_too or args.template != "{}":
        raise MtkdError(
            f"--{(given_too or ['filename_tmpl'])[0]} is for pairs of any folder: give --lq and --scale too."
        )
    sets = [known_set(name) for name in args.gt]
    for known in sets:
        for line in verify(known, args.root, scales=args.scale, bicubic=args.bicubic, workers=args.workers):
            print(line)
    return 0


def _check_pairs(args: argparse.Namespace) -> int:
    from mtkd.data.paired import PairedImages
    from mtkd.data.preparing import check_pairs

    if len(args.gt) != 1 or len(args.scale or ()) != 1:
        raise MtkdError("With --lq, give one folder of gt images and one --scale.")
    pairs = PairedImages(
        dataroot_gt=given.path(args.gt[0]),
        dataroot_lq=args.lq,
        scale=args.scale[0],
        filename_tmpl=args.template,
        meta_info_file=args.meta_info_file,
        min_gt_size=args.gt_size,
    )
    print(check_pairs(pairs, args.bicubic, args.workers))
    return 0


def _lr(args: argparse.Namespace) -> int:
    from mtkd.data.preparing import make_lr

    print(make_lr(args.folder, args.out, args.scale, args.template, args.workers))
    return 0


def _meta(args: argparse.Namespace) -> int:
    from mtkd.data.preparing import write_meta

    print(write_meta(args.folder, args.out, args.min_size))
    return 0


def _sub(args: argparse.Namespace) -> int:
    from mtkd.data.preparing import cut_sub_images

    print(cut_sub_images(args.folder, args.out, args.size, args.step, args.strip, args.workers))
    return 0


def _manifest(args: argparse.Namespace) -> int:
    from mtkd.data.manifests import make

    print(make(args.folder, filename_tmpl=args.template, cuts=args.cut, workers=args.workers), end="")
    return 0
