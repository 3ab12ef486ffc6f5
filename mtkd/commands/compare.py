"""`mtkd compare A B`: is one better than the other? Results paired image by image, with intervals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtkd.commands import arguments
from mtkd.contracts import MtkdError
from mtkd.runtime import given

if TYPE_CHECKING:
    from mtkd.inference.read_results import Measured
    from mtkd.report.content import Report, Row


def add(subparsers: arguments.SubParsers) -> None:
    """Add `compare` to the sub-parsers of a command line."""
    compare = arguments.command(
        subparsers,
        "compare",
        "is one run better than another? paired by image and seed, with intervals",
        """mtkd compare results/A results/B                       # two results of `mtkd test`
  mtkd compare experiments/A experiments/B               # the last validations of two runs
  mtkd compare results/comparison_x4:net_a results/comparison_x4:net_b
  mtkd compare --a results/A_s1 results/A_s2 results/A_s3 --b results/B_s1 results/B_s2 results/B_s3

With one run of each, the interval is over images alone: it speaks of these two networks, and another seed may turn it.
With several runs of each it is over seeds and images and speaks of the methods; give both in the order of their seeds,
for runs of one seed are paired. All lines that are printed together are corrected for together; docs/reports.md says
how.""",
    )
    compare.add_argument(
        "pair",
        nargs="*",
        metavar="RESULT",
        help="A and B, each a results folder, a metrics.csv or a run folder; FOLDER:NETWORK where it holds several",
    )
    compare.add_argument("--a", nargs="+", default=(), metavar="RESULT", help="instead: A, once for each seed")
    compare.add_argument(
        "--b", nargs="+", default=(), metavar="RESULT", help="B, once for each seed, in the same order"
    )
    compare.add_argument("--metric", nargs="+", metavar="NAME", help="only these (default: all that both have)")
    compare.add_argument("--csv", type=given.path, metavar="FILE", help="write every number, with all its digits")
    compare.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table of comparisons; 0 whatever the verdict.

    Raises:
        MtkdError: not two sides are given, they cannot be read, or sets, images or metrics differ.
    """
    from mtkd.inference.read_results import check_alike, read_measured
    from mtkd.report import console, longform
    from mtkd.report.statistics import comparisons

    first, second = _sides(args)
    results = {spec: read_measured(spec) for spec in (*first, *second)}
    check_alike(list(results.values()), args.metric)
    a, b = ([results[spec] for spec in side] for side in (first, second))
    report = _report(a, b, args.metric)
    found = comparisons(report)
    for letter, side, row in zip("AB", (a, b), reversed(report.rows)):
        print(f"{letter}: {row.name}, {', '.join(str(one.file) for one in side)}")
    console.show_comparisons(found)
    for line in _remarks(a, b, found[0].family if report.pooled else 0, len(found)):
        print(line)
    if args.csv is not None:
        from mtkd.data.images import write_bytes

        write_bytes(args.csv, longform.comparisons(found).encode())
        print(f"Every number: {args.csv}")
    return 0


def _sides(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What A and B are."""
    if args.a or args.b:
        if args.pair or not (args.a and args.b):
            raise MtkdError(
                "Give `--a A1 A2 ... --b B1 B2 ...`, or two results without these words: `mtkd compare A B`."
            )
        sides = list(args.a), list(args.b)
    elif len(args.pair) == 2:
        sides = [args.pair[0]], [args.pair[1]]
    else:
        raise MtkdError(
            f"Two results are compared, and {len(args.pair)} given: `mtkd compare A B`, or with several seeds "
            "`mtkd compare --a A1 A2 A3 --b B1 B2 B3`."
        )
    if len(sides[0]) != len(sides[1]):
        raise MtkdError(
            f"A has {len(sides[0])} results and B {len(sides[1])}: runs of one seed are paired. Give as many of each, "
            "in the order of their seeds."
        )
    for side in sides:
        if twice := next((spec for spec in side if side.count(spec) > 1), None):
            raise MtkdError(f"{twice} is given twice on one side; it is one run. Name each run once.")
    return sides


def _report(a: Sequence[Measured], b: Sequence[Measured], wanted: Sequence[str] | None) -> Report:
    """Two rows, B the baseline."""
    from mtkd.report.content import Report

    every = [{metric for metrics in one.values.values() for metric in metrics} for one in (*a, *b)]
    common = [metric for metric in next(iter(a[0].values.values())) if all(metric in one for one in every)]
    if missing := [metric for metric in wanted or () if metric not in common]:
        raise MtkdError(f"--metric {missing[0]}: not all results have it. They have {', '.join(common) or 'none'}.")
    metrics = list(dict.fromkeys(wanted or common))
    if not metrics:
        raise MtkdError("The results have no metric in common. Measure both by the same `val.metrics`.")
    images = {dataset: list(next(iter(columns.values()))) for dataset, columns in a[0].values.items()}
    names = [a[0].name, b[0].name]
    if names[0] == names[1]:
        names = [f"{names[0]} (A)", f"{names[1]} (B)"]
    return Report(
        title="",
        scale=1,
        rows=[_row(names[1], b, images, metrics), _row(names[0], a, images, metrics)],
        images=images,
        metrics={metric: a[0].better(metric) for metric in metrics},
        pooled=list(images) if len(images) > 1 else (),
        baselines=[names[1]],
    )


def _row(name: str, side: Sequence[Measured], images: dict[str, list[str]], metrics: Sequence[str]) -> Row:
    import numpy as np

    from mtkd.report.content import Row

    scores = {
        dataset: {
            metric: np.array([[one.values[dataset][metric][image] for image in order] for one in side])
            for metric in metrics
        }
        for dataset, order in images.items()
    }
    return Row(name=name, seeds=range(len(side)), scores=scores)


def _remarks(a: Sequence[Measured], b: Sequence[Measured], pooled: int, lines: int) -> list[str]:
    """What the table does not say by itself."""
    singles = lines - pooled
    families = f"the {pooled} over all sets together, and by themselves the {singles} of single sets" if pooled else ""
    said = [
        "Gains are signed so that more is better for A. The intervals hold together, and p is corrected: "
        f"{families or ('one comparison' if lines == 1 else f'all {lines} comparisons')}."
    ]
    if len(a) == 1:
        said.append(
            "One run of each: the interval is over images alone. It speaks of these two networks and supports no claim "
            "about methods, for another seed may turn it. Several seeds: `mtkd compare --a A1 A2 A3 --b B1 B2 B3`."
        )
    else:
        said.append(f"{len(a)} runs of each, paired in the order given: the interval is over seeds and images.")
    if any(one.validated for one in (*a, *b)):
        said.append(
            "These are validation sets: a choice made by them (the best checkpoint, a weight) is no longer a test."
        )
    return said
