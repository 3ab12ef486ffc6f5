"""`mtkd export`: a network as files for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mtkd.commands import arguments
from mtkd.contracts import MtkdError
from mtkd.runtime import given

FORMATS = ("onnx", "ncnn", "torch", "safetensors")
PRECISIONS = ("fp32", "fp16", "int8")
_ABOUT = "write a network as ONNX, ncnn, torch.export or safetensors, checked by its own runtime"
_EXAMPLE = (
    "mtkd export tiny_x4 deploy/ --format onnx ncnn\n"
    "  mtkd export experiments/RUN student.onnx --precision fp32 int8 --photos photos/"
)


def add(subparsers: arguments.SubParsers) -> None:
    """Add `export` to the sub-parsers of a command line."""
    export = arguments.command(subparsers, "export", _ABOUT, _EXAMPLE)
    export.add_argument(
        "source", metavar="SOURCE", help="what --weights of `mtkd upscale` takes: a checkpoint, a run folder, zoo:NAME"
    )
    export.add_argument(
        "out",
        nargs="+",
        type=given.path,
        metavar="OUT",
        help="files by their suffix (.onnx, .param of ncnn, .pt2 of torch.export, .safetensors), or a folder for every "
        "--format",
    )
    export.add_argument("--format", nargs="+", choices=FORMATS, help="formats of a folder (default: onnx)")
    export.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=("fp32",),
        help="onnx: fp32, fp16 (for GPUs), int8 (fastest on a CPU); ncnn: fp32, fp16 (half the file). A file beside "
        "fp32 has its precision in its name (default: fp32)",
    )
    export.add_argument(
        "--photos",
        type=given.path,
        metavar="FOLDER",
        help="photos to try every file on, and to calibrate and measure int8 with (default: the demo's five)",
    )
    export.add_argument("--overwrite", action="store_true", help="replace files that exist")
    export.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files and say what each of them costs; 0 when all are right.

    Raises:
        MtkdError: the source, a name or a precision cannot be used, or a file computes something else.
    """
    planned = files(args.source, args.out, args.format, args.precision)

    from mtkd.export import Exporter
    from mtkd.inference.load import load_network

    exporter = Exporter(load_network(args.source), photos=args.photos)
    for path, format, precision in planned:
        exporter.plan(path, format=format, precision=precision, overwrite=args.overwrite)
    for path, format, precision in planned:
        print(exporter.write(path, format=format, precision=precision, overwrite=args.overwrite), flush=True)
    return 0


def files(
    source: str, outs: list[Path], formats: list[str] | None, precisions: list[str] | tuple[str, ...]
) -> list[tuple[Path, str, str]]:
    """Path, format and precision of every file that is asked for.

    Raises:
        MtkdError: a format has none of the precisions, `--format` names formats and no OUT is a folder, or two files
            would have one name.
    """
    from mtkd.export.write import FORMATS as SUFFIXES
    from mtkd.export.write import PRECISIONS as KNOWN
    from mtkd.export.write import check

    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
    found: list[tuple[Path, str, str]] = []
    for out in outs:
        is_file = out.suffix.lower() in by_suffix and not out.is_dir()
        if not is_file and out.exists() and not out.is_dir():
            raise MtkdError(f"{out} is a file with the suffix of no format: {', '.join(by_suffix)}.")
        for format in [by_suffix[out.suffix.lower()]] if is_file else formats or ["onnx"]:
            chosen = [precision for precision in precisions if precision in KNOWN[format]]
            if not chosen:
                check(format, precisions[0])
            base = out if is_file else out / f"{name_of(source)}{SUFFIXES[format]}"
            for precision in chosen:
                plain = precision == "fp32" or (is_file and len(chosen) == 1)
                path = base if plain else base.with_name(f"{base.stem}_{precision}{base.suffix}")
                found.append((path, format, precision))
    if formats and all(out.suffix.lower() in by_suffix and not out.is_dir() for out in outs):
        raise MtkdError(
            "--format is for folders: the suffix of a file tells its format. Leave it out, or name a folder."
        )
    names = [path for path, _, _ in found]
    if twice := next((path for path in names if names.count(path) > 1), None):
        raise MtkdError(f"Two files would be called {twice}: name each OUT, format and precision once.")
    return found


def name_of(source: str) -> str:
    """The name of a network for its files: of a run its folder's, of published weights theirs.

    Example:
        >>> name_of("zoo:rcan_x4"), name_of("experiments/edsr_x4/models/net_g_latest.pth"), name_of("runs/a/")
        ('rcan_x4', 'edsr_x4', 'a')
    """
    path = Path(source.rpartition(":")[2])
    if path.parent.name == "models" and path.parent.parent.name:
        return path.parent.parent.name
    return path.stem if path.suffix in (".pth", ".pt", ".safetensors", ".ckpt") else path.name or "network"
