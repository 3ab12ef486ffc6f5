"""`mtkd config schema | show | diff`: what option files may say, what one says in full, how two differ."""

from __future__ import annotations

import argparse

from mtkd.commands import arguments


def add(subparsers: arguments.SubParsers) -> None:
    """Add `config` to the sub-parsers of a command line."""
    config = arguments.command(
        subparsers,
        "config",
        "what option files may say, what one says in full, and what differs between two",
        "mtkd config show X.yml --scale 3",
    )
    actions = config.add_subparsers(required=True, metavar="ACTION")
    schema = arguments.command(
        actions, "schema", "print the JSON schema for editors", "mtkd config schema > schema.json"
    )
    schema.set_defaults(run=_schema)
    show = arguments.command(
        actions,
        "show",
        "print an option file with its base, its scale and every default written out; the print loads back equal",
        "mtkd config show X.yml --scale 3",
    )
    show.add_argument("file", type=arguments.options, metavar="FILE", help="an option file, or recipe:NAME")
    arguments.changes(show)
    show.set_defaults(run=_show)
    diff = arguments.command(
        actions, "diff", "compare two option files, defaults included", "mtkd config diff A.yml B.yml"
    )
    diff.add_argument("first", type=arguments.options, metavar="A", help="an option file, or recipe:NAME")
    diff.add_argument("second", type=arguments.options, metavar="B", help="another one; exit code 1 if the two differ")
    arguments.changes(diff)
    diff.set_defaults(run=_diff)


def _schema(args: argparse.Namespace) -> int:
    import json

    from mtkd.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _show(args: argparse.Namespace) -> int:
    from mtkd.config import load_options, resolved_yaml

    options = load_options(args.file, force=args.force_yml)
    for notice in options.notices:
        print(f"# {notice}")
    print(resolved_yaml(options), end="")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from mtkd.config import load_options
    from mtkd.config.diff import diff

    lines = diff(*(load_options(file, force=args.force_yml) for file in (args.first, args.second)))
    print("\n".join(lines) if lines else "The two describe the same run.")
    return 1 if lines else 0
