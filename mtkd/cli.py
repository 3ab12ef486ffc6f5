"""The command line: `mtkd train | test | check | config | upscale | teach | demo | list | zoo`.

Each command imports what it needs when it runs, so that `mtkd --help` answers at once. `boundary` says what becomes of
errors, and what exit codes mean.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtkd.commands import boundary
from mtkd.contracts import MtkdError
from mtkd.runtime import given


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: see `mtkd.commands.boundary`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("MTKD_DEBUG", "0") not in ("", "0") or "--debug" in arguments
    return boundary.run(lambda: _run(arguments), arguments, debug=debug)


def _run(arguments: Sequence[str]) -> int:
    args = parser().parse_args(arguments)
    if hasattr(args, "launcher"):
        given.check_environment()
    if getattr(args, "scale", None) is not None:
        args.force_yml = [*args.force_yml, f"scale={args.scale}"]
    with _no_exit("The command"):
        if imports := getattr(args, "imports", ()):
            from mtkd import catalog

            catalog.import_modules(imports)
        return args.run(args)


@contextmanager
def _no_exit(what: str) -> Iterator[None]:
    """Foreign code that ends the program would make a command look done."""
    try:
        yield
    except SystemExit as error:
        raise MtkdError(
            f"{what} was ended by code from outside, which called sys.exit({error.code!r}). Remove the call, or put it "
            "under `if __name__ == '__main__':`."
        ) from error


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from mtkd import __version__
    from mtkd.commands import zoo

    top = argparse.ArgumentParser(prog="mtkd", description="Knowledge distillation for image super-resolution.")
    top.add_argument("--version", action="version", version=f"mtkd {__version__}")
    top.add_argument(
        "--debug", dest="traceback", action="store_true", help="show the traceback of an error (also: MTKD_DEBUG=1)"
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    train = _command(
        commands,
        "train",
        "train the student of an option file",
        "mtkd train -opt options/train/MTKD/stage2.yml --scale 4 --auto_resume",
    )
    _option_file(train)
    train.add_argument("--auto_resume", action="store_true", help="continue from the run's newest training state")
    train.add_argument(
        "--debug", action="store_true", help="validate and save every 8 iterations, print every one, show tracebacks"
    )
    _launcher(train)
    train.set_defaults(run=_train)

    test = _command(
        commands,
        "test",
        "measure networks on test sets: table, per-image CSV, JSON",
        """mtkd test experiments/MTKD_edsr_m_x4                   # a run: its network, its metrics, on Set5, Set14, ...
  mtkd test experiments/MTKD_edsr_m_x4 --with bicubic,teachers --data photos/
  mtkd test experiments/A experiments/B net.pth zoo:edsr_m_x4     # side by side in one table
  mtkd test -opt options/benchmark.yml --scale 4         # what an option file says

Of a run folder net_g_latest.pth is measured, else its newest checkpoint, and the average (EMA) where there is one; the
table says which. A weights file says itself what it holds when mtkd wrote it (`mtkd zoo convert --to safetensors` makes
such a file of others). Metrics are those of the run's validation, else PSNR and SSIM on Y with crop_border = scale.
Without --data the sets are those of options/benchmark.yml that are here. Results go to results/NAME, and older ones are
never overwritten: NAME is that of the network, of several comparison_xSCALE.""",
    )
    test.add_argument(
        "networks", nargs="*", metavar="NETWORK", help="a run folder, a weights file, or zoo:NAME; all of one scale"
    )
    test.add_argument(
        "-opt", type=given.path, metavar="FILE", help="instead: a test option file (YAML, BasicSR's grammar)"
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
    _tiles(test, "run in tiles of N lq pixels, which may change numbers (default: whole)")
    test.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU when there is one)")
    _changes(test)
    _launcher(test)
    test.set_defaults(run=_test)

    check = _command(
        commands,
        "check",
        "validate option files without training",
        "mtkd check options/ my_run.yml --data",
    )
    check.add_argument("files", nargs="+", type=given.path, metavar="FILE", help="option files, or folders of them")
    check.add_argument("--data", action="store_true", help="also check weights, data folders, pairs and image sizes")
    _changes(check)
    check.set_defaults(run=_check)

    config = _command(
        commands,
        "config",
        "what option files may say, what one says in full, and what differs between two",
        "mtkd config show X.yml --scale 3",
    )
    actions = config.add_subparsers(required=True, metavar="ACTION")
    schema = _command(actions, "schema", "print the JSON schema for editors", "mtkd config schema > schema.json")
    schema.set_defaults(run=_config_schema)
    show = _command(
        actions,
        "show",
        "print an option file with its base, its scale and every default written out; the print loads back equal",
        "mtkd config show X.yml --scale 3",
    )
    show.add_argument("file", type=given.path, metavar="FILE")
    _changes(show)
    show.set_defaults(run=_config_show)
    diff = _command(actions, "diff", "compare two option files, defaults included", "mtkd config diff A.yml B.yml")
    diff.add_argument("first", type=given.path, metavar="A")
    diff.add_argument("second", type=given.path, metavar="B")
    _changes(diff)
    diff.set_defaults(run=_config_diff)

    upscale = _command(
        commands,
        "upscale",
        "upscale an image or a folder of images",
        "mtkd upscale photos/ upscaled/ --weights experiments/MTKD_edsr_m_x4/models/net_g_latest.pth",
    )
    upscale.add_argument("input", type=given.path, metavar="IN", help="an image, or a folder of images")
    upscale.add_argument("output", type=given.path, metavar="OUT", help="the image to write, or the folder to fill")
    source = upscale.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=_weights, help="a checkpoint written by mtkd, or zoo:NAME")
    source.add_argument(
        "-opt", type=given.path, metavar="FILE", help="a test option file: its network_g and path.pretrain_network_g"
    )
    _tiles(upscale, "run in tiles of N lq pixels (default: as large as memory allows)")
    upscale.add_argument("--x8", action="store_true", help="average over the eight flips and rotations (8 x slower)")
    upscale.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    upscale.add_argument("--compile", action="store_true", help="torch.compile the network; on a CPU it may be slower")
    upscale.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU when there is one)")
    existing = upscale.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace images that exist in OUT")
    existing.add_argument(
        "--skip_existing", action="store_true", help="leave images that exist in OUT: goes on where a run was stopped"
    )
    _changes(upscale)
    upscale.set_defaults(run=_upscale)

    teach = _command(
        commands,
        "teach",
        "run the teachers once over the training images, into the option file's target_store",
        """mtkd teach -opt X.yml --dry_run                # how much disk and time it takes; writes nothing
  mtkd teach -opt X.yml                          # everything here; after an interruption it goes on
  mtkd train -opt X.yml                          # the student, at the price of training it alone

X.yml names the store (target_store: targets_x4), or --force_yml target_store=targets_x4 does. Shared over jobs, each
on any machine that sees the same images and weights:
  mtkd teach -opt X.yml --shard 1/16             # ... to 16/16, in any order or all at once
  mtkd teach -opt X.yml --merge                  # bring targets_x4.shard-* together first; runs no network
Shared over the GPUs of a machine:
  torchrun --nproc_per_node 8 -m mtkd teach -opt X.yml --launcher pytorch
  mtkd teach -opt X.yml --merge""",
    )
    _option_file(teach)
    teach.add_argument("--dry_run", action="store_true", help="say what it takes, time the teachers on one crop, end")
    teach.add_argument("--shard", metavar="K/N", help="make share K of N alone, in a file of its own")
    teach.add_argument("--merge", action="store_true", help="make the store of its finished shards")
    teach.add_argument("--x8", action="store_true", help="average over the eight flips and rotations (8 x slower)")
    _tiles(teach, "run in tiles of N lq pixels (default: whole, or what fits into memory)")
    teach.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: the option file's")
    teach.add_argument(
        "--dtype",
        choices=("uint8", "float16"),
        default="uint8",
        help="float16 keeps what 8 bits round away, unclamped, in twice the space (uint8)",
    )
    teach.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU when there is one)")
    _launcher(teach)
    teach.set_defaults(run=_teach)

    demo = _command(
        commands,
        "demo",
        "distil a student from three small teachers on real photographs, here and now",
        "mtkd demo --out demo_results",
    )
    demo.add_argument("--out", type=given.path, default=Path("experiments/demo"), help="folder for all that it makes")
    demo.add_argument("--quick", action="store_true", help="a few iterations each: shows the path, not the quality")
    demo.set_defaults(run=_demo)

    listing = _command(commands, "list", "list what exists", "mtkd list methods")
    listing.add_argument("what", choices=("archs", "methods", "losses", "metrics", "datasets"))
    listing.set_defaults(run=_list)

    zoo.add_parser(commands)
    return top


def _command(commands: argparse._SubParsersAction, name: str, about: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _tiles(command: argparse.ArgumentParser, about: str) -> None:
    command.add_argument("--tile", type=_pixels, metavar="N", help=about)
    command.add_argument("--tile_pad", type=_pixels, default=32, metavar="N", help="context around each tile (32)")


def _option_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-opt", required=True, type=given.path, metavar="FILE", help="option file (YAML, BasicSR's grammar)"
    )
    _changes(command)


def _changes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--force_yml",
        nargs="+",
        default=(),
        metavar="a:b=c",
        help="change values of the option file, e.g. train:optim_g:lr=1e-4 scale=2",
    )
    command.add_argument(
        "--scale", type=_scale, metavar="N", help="the scale, also where the file says {scale}; as --force_yml scale=N"
    )
    _imports(command)


def _imports(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        default=(),
        metavar="MODULE",
        help="modules of your own to import first, which register archs, losses or metrics in BasicSR's registries",
    )


def _launcher(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="who started the processes; pytorch: `torchrun --nproc_per_node N -m mtkd ... --launcher pytorch`",
    )
    command.add_argument("--local_rank", "--local-rank", type=int, default=0, help="accepted for old launchers, unused")


def _weights(text: str) -> str:
    return text if text.startswith("zoo:") else str(given.path(text))


def _scale(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number such as 2, 3 or 4, found {text[:60]!r}")
    return int(text)


def _pixels(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number of pixels, found {text[:60]!r}") from None
    if abs(number) > 1_000_000:
        raise argparse.ArgumentTypeError("no image is as large as that")
    return number


def _command_line() -> str:
    return "mtkd " + shlex.join(sys.argv[1:])


def _train(args: argparse.Namespace) -> int:
    from mtkd.config import load_options

    options = load_options(args.opt, force=args.force_yml, debug=args.debug, kind="train")
    from mtkd.training.loop import Stopped, train

    try:
        train(
            options,
            auto_resume=args.auto_resume,
            launcher=args.launcher,
            option_text=args.opt.read_text(encoding="utf-8"),
            command=_command_line(),
        )
    except Stopped as stopped:
        return int(stopped.code)
    return 0


def _test(args: argparse.Namespace) -> int:
    from mtkd.config import load_options
    from mtkd.runtime.launch import environment_rank

    if environment_rank() > 0 and args.launcher != "none":
        # Testing takes one process, as in BasicSR, whose users start it with the launcher of their training.
        return 0
    beside = [word.strip() for word in args.beside.split(",") if word.strip()]
    if unknown := [word for word in beside if word not in _ROWS]:
        raise MtkdError(f"--with {unknown[0]}: there are no such rows. It takes {' and '.join(_ROWS)}, with a comma.")
    if args.opt is None:
        if not args.networks:
            raise MtkdError(
                "Nothing is named to measure. Name run folders, weights files or zoo:NAME, before --data and its "
                "folders: `mtkd test experiments/NAME`; or an option file: `mtkd test -opt FILE`."
            )
        if args.force_yml:
            raise MtkdError("--force_yml and --scale change values of an option file, `-opt FILE`, and none is given.")
        from mtkd.inference.compare import compare

        compare(
            args.networks,
            data=args.data,
            bicubic="bicubic" in beside,
            teachers="teachers" in beside,
            tile_size=args.tile,
            tile_pad=args.tile_pad,
            device=args.device,
            command=_command_line(),
        )
        return 0
    if args.networks or args.data or beside:
        raise MtkdError(
            "-opt FILE says itself which network and which images are measured. Leave out the networks named, --data "
            "and --with, or -opt."
        )
    options = load_options(args.opt, force=args.force_yml, kind="test")
    from mtkd.inference.run_test import in_tiles, run_test
    from mtkd.runtime.device import named_device

    if args.tile is not None:
        options = in_tiles(options, args.tile, args.tile_pad)
    run_test(options, device=named_device(args.device) if args.device else None, command=_command_line())
    return 0


_ROWS = ("bicubic", "teachers")
_PROBLEMS_SHOWN = 50


def _check(args: argparse.Namespace) -> int:
    from mtkd.config import OptionError, load_options
    from mtkd.config.layers import runs_among

    files: list[Path] = []
    for place in args.files:
        found = sorted([*place.rglob("*.yml"), *place.rglob("*.yaml")]) if place.is_dir() else [place]
        if not found:
            raise MtkdError(f"{place} holds no option files (*.yml).")
        files += found if len(found) == 1 else runs_among(found)
    broken = 0
    for file in files:
        problems: list[Any] = []
        try:
            options = load_options(file, force=args.force_yml)
            if args.data:
                from mtkd.training.check import check_data

                problems = check_data(options)
        except OptionError as error:
            problems = error.problems
        except MtkdError as error:
            problems = [error]
        if problems:
            broken += 1
            print(f"FAIL {file}")
            for problem in problems[:_PROBLEMS_SHOWN]:
                print(f"  {problem}")
            if len(problems) > _PROBLEMS_SHOWN:
                print(f"  and {len(problems) - _PROBLEMS_SHOWN:,} more problems")
        else:
            print(f"ok   {file}")
    print(f"{len(files) - broken} of {len(files)} option files are valid.")
    return boundary.USER_ERROR if broken else 0


def _config_schema(args: argparse.Namespace) -> int:
    import json

    from mtkd.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _config_show(args: argparse.Namespace) -> int:
    from mtkd.config import load_options, resolved_yaml

    options = load_options(args.file, force=args.force_yml)
    for notice in options.notices:
        print(f"# {notice}")
    print(resolved_yaml(options), end="")
    return 0


def _config_diff(args: argparse.Namespace) -> int:
    from mtkd.config import load_options
    from mtkd.config.diff import diff

    lines = diff(*(load_options(file, force=args.force_yml) for file in (args.first, args.second)))
    print("\n".join(lines) if lines else "The two describe the same run.")
    return 1 if lines else 0


def _upscale(args: argparse.Namespace) -> int:
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


def _teach(args: argparse.Namespace) -> int:
    from mtkd.config import load_options

    options = load_options(args.opt, force=args.force_yml, kind="train")
    if not options.target_store:
        raise MtkdError(f"{args.opt} names no target_store; add the key, or --force_yml target_store=FILE.")
    from mtkd.runtime.launch import started_by_torchrun
    from mtkd.targets import make as teach
    from mtkd.targets import shards
    from mtkd.targets.merge import merge

    path = Path(options.target_store)
    file = shlex.join(["-opt", str(args.opt), *(("--force_yml", *args.force_yml) if args.force_yml else ())])
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
        raise MtkdError("torchrun started several processes, and this one was not told: add `--launcher pytorch`.")
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


def _demo(args: argparse.Namespace) -> int:
    from mtkd.demo import demo

    demo(args.out, quick=args.quick)
    return 0


_TEACHERS = {
    "none": "none",
    "image": "one image per lq; trains from a target_store",
    "network": "run on line, frozen",
}


def _list(args: argparse.Namespace) -> int:
    import inspect

    from mtkd import catalog, variants

    kind = {"archs": "arch", "methods": "method", "losses": "loss", "metrics": "metric", "datasets": "dataset"}[
        args.what
    ]
    for name in catalog.names(kind):  # pyright: ignore[reportArgumentType]
        found = catalog.get(kind, name)  # pyright: ignore[reportArgumentType]
        print(f"{name}: {(inspect.getdoc(found) or '').splitlines()[0]}")
        for variant in variants.of_arch(name) if kind == "arch" else ():
            arguments = ", ".join(f"{key}: {value}" for key, value in variants.VARIANTS[variant][1].items())
            print(f"    {variant}: {{{arguments}}}")
        if kind == "method":
            if found.paper:
                print(f"    from {found.paper}")
            print(f"    teachers: {_TEACHERS[found.teacher_use]}")
            for term, about in found.terms.items():
                weight = "off by default" if about.weight is None else f"weight {about.weight:g}"
                criterion = f", {about.loss}" if about.loss else ""
                print(f"    train.{term}_opt: {about.about} ({weight}{criterion})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
