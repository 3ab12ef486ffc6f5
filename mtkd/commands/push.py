"""`mtkd push`: a trained network into a repository of the Hugging Face hub."""

from __future__ import annotations

import argparse

from mtkd.commands import arguments


def add(subparsers: arguments.SubParsers) -> None:
    """Add `push` to the sub-parsers of a command line."""
    push = arguments.command(
        subparsers,
        "push",
        "put a trained network on the Hugging Face hub",
        "mtkd push experiments/MTKD_edsr_m_x4 ann/photos_x4 --license apache-2.0",
    )
    push.add_argument("source", metavar="RUN|FILE", help="the folder of a run, or a .pth, .safetensors or .onnx file")
    push.add_argument("repository", metavar="USER/NAME", help="made if it is not there")
    push.add_argument("--license", metavar="NAME", help="the hub's name of a licence (default: what the file says)")
    push.add_argument("--private", action="store_true", help="only you see a repository that is made now")
    push.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Push and say how to load it; 0 when it is there.

    Raises:
        MtkdError: the network cannot be pushed; the text says why.
    """
    from mtkd.inference.publish import push

    address = push(args.source, args.repository, licence=args.license, private=args.private)
    name = args.repository.removeprefix("hf:")
    print(f'{address} holds it now. In Python: mtkd.load("hf:{name}")')
    return 0
