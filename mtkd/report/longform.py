"""Every number of a report as CSV: one line a value, and one line a comparison."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from mtkd.report.arrange import POOLED, scores_of
from mtkd.report.comparison import Comparison
from mtkd.report.content import Report

VALUES = ("group", "row", "kind", "seed", "dataset", "validation", "image", "metric", "value")
COMPARISONS = (
    "group", "row", "baseline", "dataset", "metric", "seeds", "images", "dropped", "mean", "baseline_mean", "gain",
    "low", "high", "alone_low", "alone_high", "bootstrap_low", "bootstrap_high", "p", "p_corrected", "family", "se",
    "df", "seed_sd", "image_sd", "detectable", "wins", "verdict", "about",
)  # fmt: skip
"""`Comparison`, its intervals as two columns each: `low` and `high` are those of the verdict. The data set "pooled" is
all of `Report.pooled` together."""


def values(report: Report) -> str:
    """A line for each score of each seed and image, with all its digits; a missing one is left out.

    Raises:
        MtkdError: scores are not of the shape (seeds, images).
    """
    return _csv(
        VALUES,
        (
            (
                row.group,
                row.name,
                row.kind,
                seed,
                name,
                int(name in report.validation),
                image,
                metric,
                repr(float(value)),
            )
            for row in report.rows
            for name, images in report.images.items()
            for metric in report.metrics
            for seed, line in zip(row.seeds, scores_of(report, row, name, metric))
            for image, value in zip(images, line)
            if not math.isnan(value)
        ),
    )


def comparisons(found: Iterable[Comparison]) -> str:
    """A line for each comparison, with all digits; what is not known is empty."""
    return _csv(COMPARISONS, map(_comparison, found))


def _comparison(one: Comparison) -> list[object]:
    intervals = {"": one.interval, "alone_": one.alone, "bootstrap_": one.bootstrap}
    bounds = {f"{name}{end}": pair[at] for name, pair in intervals.items() for at, end in enumerate(("low", "high"))}
    cells = [bounds[name] if name in bounds else getattr(one, name) for name in COMPARISONS]
    cells[COMPARISONS.index("dataset")] = "pooled" if one.dataset == POOLED else one.dataset
    return ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
