"""`mtkd zoo ...`: the published weights from the command line."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from mtkd.commands.boundary import USER_ERROR
from mtkd.contracts import MtkdError
from mtkd.runtime import given


def add(subparsers: Any) -> None:
    """Add `zoo` and its commands to the sub-parsers of a command line; each sets `args.run`, (args) -> exit status."""
    zoo = subparsers.add_parser(
        "zoo",
        help="published weights: list, fetch, check, convert",
        description="Published weights by name: list, fetch, check, convert.",
        epilog="example:\n  mtkd zoo list --arch RCAN\n  mtkd zoo download rcan_x4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = zoo.add_subparsers(dest="zoo_command", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--weights-dir",
        type=given.path,
        metavar="DIR",
        help="folder of the weights (else $MTKD_HOME/weights, else the cache folder)",
    )

    listing = commands.add_parser("list", parents=[common], help="all names with data, scores and hash")
    listing.add_argument("--arch", help="only this network, e.g. RCAN")
    listing.add_argument("--scale", type=int, help="only this scale")
    listing.set_defaults(run=_list)

    info = commands.add_parser("info", parents=[common], help="one entry in full")
    info.add_argument("name", metavar="NAME")
    info.set_defaults(run=_info)

    fetch = commands.add_parser("download", parents=[common], help="fetch, check and convert")
    fetch.add_argument("names", nargs="*", metavar="NAME")
    fetch.add_argument("--all", action="store_true", help="every entry")
    fetch.set_defaults(run=_download)

    verify = commands.add_parser(
        "verify", parents=[common], help="hash converted files again (all that are there, or NAME...)"
    )
    verify.add_argument("names", nargs="*", metavar="NAME")
    verify.set_defaults(run=_verify)

    bring = commands.add_parser("import", parents=[common], help="take a file or archive that was fetched by hand")
    bring.add_argument("name", metavar="NAME")
    bring.add_argument("file", type=given.path, metavar="FILE")
    bring.set_defaults(run=_import)

    where = commands.add_parser("where", parents=[common], help="the folder of the weights, or the file of NAME")
    where.add_argument("name", nargs="?", metavar="NAME")
    where.set_defaults(run=_where)

    convert = commands.add_parser(
        "convert", help="write a checkpoint in another naming or as a file that describes itself"
    )
    convert.add_argument("source", type=given.path, metavar="IN")
    convert.add_argument("target", type=given.path, metavar="OUT")
    convert.add_argument("--to", required=True, choices=("basicsr", "official", "safetensors"))
    convert.add_argument("--like", metavar="NAME", help="the network is that of this zoo entry")
    convert.add_argument(
        "--arch", metavar="TYPE", help="the network, by its name in the catalog or package.module:Class"
    )
    convert.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="an argument of the network; may be repeated"
    )
    convert.add_argument("--key", default="auto", help="entry of IN that holds the weights, e.g. params_ema")
    convert.set_defaults(run=_convert)


def _list(args: argparse.Namespace) -> int:
    from mtkd.zoo import ENTRIES, converted_path, docs

    chosen = [
        item
        for item in ENTRIES.values()
        if (args.arch is None or item.arch.rpartition(":")[2].lower() == args.arch.lower())
        and (args.scale is None or item.scale == args.scale)
    ]
    if not chosen:
        networks = dict.fromkeys(item.arch.rpartition(":")[2] for item in ENTRIES.values())
        raise MtkdError(f"No weights of that kind. There are {', '.join(networks)}, at x2, x3 and x4.")
    rows = [("name", "network", "scale", "data", "params", "Set5 PSNR-Y", "hash", "here")]
    rows += [
        (
            item.name,
            item.arch.rpartition(":")[2],
            f"x{item.scale}" if item.scale else "-",
            item.data,
            docs.count_text(item),
            docs.score_text(item, docs.Y, "Set5"),
            docs.hash_text(item),
            "yes" if converted_path(item, args.weights_dir).is_file() else "no",
        )
        for item in chosen
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _info(args: argparse.Namespace) -> int:
    from mtkd.zoo import converted_path, docs, entry

    item = entry(args.name)
    path = converted_path(item, args.weights_dir)
    arguments = ", ".join(f"{name}={value}" for name, value in item.args.items())
    lines = [
        ("name", item.name),
        ("network", f"{item.arch}({arguments})"),
        ("scale", f"x{item.scale}" if item.scale else "-"),
        ("trained on", item.data),
        ("parameters", f"{item.params:,}"),
        ("size", docs.size_text(item)),
        ("licence", item.licence),
        ("paper", item.paper),
        *(("published", f"{docs.scores_text(p.scores)} ({p.protocol}; {p.by})") for p in item.published),
        *(("source", docs.source_text(source)) for source in item.sources),
        *((("note", item.note),) if item.note else ()),
        ("file", f"{path}{'' if path.is_file() else ' (not there yet)'}"),
    ]
    for name, text in lines:
        print(f"{name:<11} {text}")
    return 0


def _download(args: argparse.Namespace) -> int:
    from mtkd.zoo import ENTRIES, ensure, entry

    if bool(args.names) == args.all:
        raise MtkdError("No weights are named. Use `mtkd zoo download NAME...`, or --all.")
    items = list(ENTRIES.values()) if args.all else [entry(name) for name in args.names]
    failed = []
    for item in items:
        try:
            print(f"{item.name}: {ensure(item, weights_dir=args.weights_dir)}")
        except MtkdError as error:
            if len(items) == 1:
                raise
            failed.append(item.name)
            print(f"{item.name}: FAILED. {error}")
    if failed:
        raise MtkdError(
            f"{len(failed)} of {len(items)} could not be fetched: {', '.join(failed)}. The reasons are above."
        )
    return 0


def _verify(args: argparse.Namespace) -> int:
    from mtkd.zoo import home, verify

    reports = verify(args.names, weights_dir=args.weights_dir)
    if not reports:
        print(f"No converted weights in {home(args.weights_dir)}.")
    for report in reports:
        print(f"{report.name}: {'ok' if report.ok else 'BAD'}. {report.text}")
    return 0 if all(report.ok for report in reports) else USER_ERROR


def _import(args: argparse.Namespace) -> int:
    from mtkd.zoo import entry, import_file

    print(import_file(entry(args.name), args.file, weights_dir=args.weights_dir))
    return 0


def _where(args: argparse.Namespace) -> int:
    from mtkd.zoo import converted_path, entry, home

    print(converted_path(entry(args.name), args.weights_dir) if args.name else home(args.weights_dir))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from mtkd.zoo import convert

    arguments = {}
    for text in args.arg:
        name, equals, value = text.partition("=")
        if not equals:
            raise MtkdError(f"--arg must be NAME=VALUE, found {text!r}.")
        arguments[name] = _value(value)
    key = None if args.key == "~" else args.key
    done = convert(args.source, args.target, to=args.to, like=args.like, arch=args.arch, args=arguments, key=key)
    described = ", ".join(f"{name}={value}" for name, value in done.arch["args"].items())
    print(f"{done.path}: {done.arch['type']}({described})")
    if done.assumed:
        taken = ", ".join(f"{name}={value}" for name, value in done.assumed.items())
        print(f"Assumed, because the file does not show it: {taken}. If other values were used, give --arg NAME=VALUE.")
    return 0


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # of deep nesting
        return text
