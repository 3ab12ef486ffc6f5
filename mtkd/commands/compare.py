"""`mtkd compare A B`: is one better than the other? Results paired image by image, with intervals."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtkd.commands import arguments
from mtkd.contracts import MtkdError
from mtkd.runtime import given

if TYPE_CHECKING:
    from mtkd.inference.read_results import Measured
    from mtkd.report.comparison import Comparison
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
        MtkdError: not two sides are given, a run stands there twice, they cannot be read, sets, images or metrics
            differ, or no image has a finite value in all of them.
    """
    from mtkd.inference.read_results import check_alike, read_measured
    from mtkd.report import console, longform
    from mtkd.report.statistics import comparisons

    first, second = _sides(args)
    results = {spec: read_measured(spec) for spec in (*first, *second)}
    _check_distinct(first, second, results)
    check_alike(list(results.values()), args.metric)
    a, b = ([results[spec] for spec in side] for side in (first, second))
    report = _report(a, b, args.metric)
    found = comparisons(report)
    left_out = _left_out(report, found)
    _check_something_left(report, found, left_out, args.metric)
    for letter, side, row in zip("AB", (a, b), reversed(report.rows)):
        print(f"{letter}: {row.name}, {', '.join(str(one.file) for one in side)}")
    console.show_comparisons(found)
    for line in _remarks(a, b, found, left_out):
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
    return sides


def _check_distinct(first: Sequence[str], second: Sequence[str], results: Mapping[str, Measured]) -> None:
    """Check that every run stands on one side, once.

    Args:
        results: what each text of the two sides names.

    Raises:
        MtkdError: two texts name the same network of the same file, however they are spelt.
    """
    seen: dict[tuple[Path, str], tuple[str, str]] = {}
    for letter, side in zip("AB", (first, second)):
        for spec in side:
            one = results[spec]
            run = (one.file.resolve(), one.name)
            if run not in seen:
                seen[run] = letter, spec
                continue
            before, other = seen[run]
            where = "twice on one side" if before == letter else "as A and as B"
            told = f"{spec} is given {where}; it is" if spec == other else f"{other} and {spec}, given {where}, are"
            raise MtkdError(f"{told} one run. Name each run once.")


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


def _left_out(report: Report, found: Sequence[Comparison]) -> dict[tuple[str, str], list[str]]:
    """What no gain rests on, because some run has no finite value: (what, why) -> by which metrics.

    Args:
        report: of `_report`.
        found: `comparisons(report)`.
    """
    from mtkd.report.statistics import POOLED

    compared = {(one.dataset, one.metric): one for one in found}
    seeds = len(report.rows[0].seeds)
    left_out: dict[tuple[str, str], list[str]] = {}
    for metric in report.metrics:
        for dataset, images in report.images.items():
            one, total = compared.get((dataset, metric)), len(images)
            parts = []
            if one is None:
                parts.append(f"all {total} images of {dataset}" if total > 1 else f"the only image of {dataset}")
            elif one.dropped:
                parts.append(f"{one.dropped} of {total} images of {dataset}")
            if one is not None and one.seeds < seeds:
                parts.append(f"{seeds - one.seeds} of {seeds} pairs of runs on {dataset}")
            for what in parts:
                left_out.setdefault((what, _why(report, dataset, metric)), []).append(metric)
        if not report.pooled or all(compared.get((name, metric)) is None for name in report.images):
            continue
        # A run without any value on one set is missing on all of them together, so that this needs its own words.
        together = compared.get((POOLED, metric))
        if together is None:
            key = "all sets together", "no pair of runs has values on every set"
            left_out.setdefault(key, []).append(metric)
        elif together.seeds < seeds:
            key = f"{seeds - together.seeds} of {seeds} pairs of runs over all sets together", "no value on some set"
            left_out.setdefault(key, []).append(metric)
    return left_out


def _why(report: Report, dataset: str, metric: str) -> str:
    """Which values are not finite, and whose."""
    import numpy as np

    scores = {letter: row.scores[dataset][metric] for letter, row in zip("AB", reversed(report.rows))}
    kinds = {"infinite": np.isinf, "NaN or empty": np.isnan}
    letters = {kind: [letter for letter, of in scores.items() if test(of).any()] for kind, test in kinds.items()}
    return ", ".join(f"{kind} in {' and '.join(whose)}" for kind, whose in letters.items() if whose)


def _told(left_out: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """`_left_out` as one sentence."""
    listed = "; ".join(f"{what} by {', '.join(metrics)} ({why})" for (what, why), metrics in left_out.items())
    return f"Left out, because some run has no finite value: {listed}."


def _check_something_left(
    report: Report,
    found: Sequence[Comparison],
    left_out: Mapping[tuple[str, str], Sequence[str]],
    wanted: Sequence[str] | None,
) -> None:
    """Check that there is a comparison, and one by each metric that was asked for.

    Raises:
        MtkdError: there is none; the text names the metrics and why.
    """
    compared = {one.metric for one in found}
    gone = [metric for metric in report.metrics if metric not in compared]
    if not gone or (found and not wanted):
        return
    reasons = {key: lost for key, metrics in left_out.items() if (lost := [name for name in metrics if name in gone])}
    raise MtkdError(
        f"Nothing is left to compare by {', '.join(gone)}. {_told(reasons)} An image is compared where every run has a "
        "finite value: measure other images, or name other metrics by --metric."
    )


def _remarks(
    a: Sequence[Measured],
    b: Sequence[Measured],
    found: Sequence[Comparison],
    left_out: Mapping[tuple[str, str], Sequence[str]],
) -> list[str]:
    """What the table does not say by itself."""
    from mtkd.report.statistics import POOLED

    known = [one for one in found if not math.isnan(one.interval[0])]
    pooled = sum(one.dataset == POOLED for one in known)
    singles = len(known) - pooled
    said = ["Gains are signed so that more is better for A."]
    if known:
        families = (
            f"the {pooled} over all sets together, and by themselves the {singles} of single sets"
            if pooled and singles
            else "one comparison"
            if len(known) == 1
            else f"all {len(known)} comparisons"
        )
        said[0] += f" The intervals hold together, and p is corrected: {families}."
    if left_out:
        said.append(_told(left_out))
    said += _basis(len(a), found, known)
    if any(one.validated for one in (*a, *b)):
        said.append(
            "These are validation sets: a choice made by them (the best checkpoint, a weight) is no longer a test."
        )
    return said


def _basis(runs: int, found: Sequence[Comparison], known: Sequence[Comparison]) -> list[str]:
    """What the comparisons stand on: seeds, images, or neither.

    Args:
        runs: given on each side.
        known: those of `found` that have an interval.
    """
    networks = [one for one in found if one.about == "networks"]
    said = []
    if not known:
        said.append(
            "Every gain stands on one image, which shows no variance: there is no interval and no p, and nothing can "
            "be told apart."
        )
    elif len(known) < len(found):
        unknown = [one for one in found if math.isnan(one.interval[0])]
        listed = ", ".join(f"{one.dataset or 'all sets together'} by {one.metric}" for one in unknown)
        said.append(f"One image shows no variance: there is no interval and no p for {listed}.")
    if len(networks) == len(found):
        one_run = "One run of each" if runs == 1 else "One run of each is left"
        basis = "the interval is over images alone. It" if known else "the gain"
        said.append(
            f"{one_run}: {basis} speaks of these two networks and supports no claim about methods, for another seed "
            "may turn it. Several seeds: `mtkd compare --a A1 A2 A3 --b B1 B2 B3`."
        )
    else:
        text = f"{runs} runs of each, paired in the order given"
        text += ": the interval is over seeds and images." if known else "."
        if any(one in networks for one in known):
            text += " Where one pair of them is left, it is over images alone and speaks of these two networks."
        said.append(text)
    return said
