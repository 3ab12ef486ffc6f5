"""The scores of a group as one block: rows, seeds and images that can be compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtkd.contracts import MtkdError
from mtkd.report.content import Report, Row

POOLED = ""
"""Name of all images of `Report.pooled` together, where the name of a data set can stand."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Scores of one metric on one data set, or on all pooled ones.

    Attributes:
        dataset: its name, or `POOLED`.
        metric: what was measured.
        sign: 1 where higher values are better, else -1.
        values: (rows, seeds, images), finite in rows that are compared; all NaN where a run is missing.
        there: (rows, seeds), whether the run was measured.
        strata: (images,) int, which data set each image is of.
        places: (images,) int, position of each image among all images of the report.
        dropped: images that some compared run lacks a value for.
    """

    dataset: str
    metric: str
    sign: int
    values: NDArray[np.float64]
    there: NDArray[np.bool_]
    strata: NDArray[np.int64]
    places: NDArray[np.int64]
    dropped: int


def groups(report: Report) -> list[str]:
    """Names of the groups, in the order of their first rows; [""] where every row belongs to all."""
    return list(dict.fromkeys(row.group for row in report.rows if row.group)) or [""]


def rows_of(report: Report, group: str) -> list[Row]:
    """Rows of a group: those of every group first. Where two have one name the group's own row is taken."""
    own = [row for row in report.rows if row.group == group]
    names = {row.name for row in own}
    return [*(row for row in report.rows if not row.group and group and row.name not in names), *own]


def baselines_of(report: Report, group: str) -> list[Row]:
    """The rows of a group that others are compared with, in the order of `Report.baselines`."""
    named = {row.name: row for row in rows_of(report, group)}
    return [named[name] for name in report.baselines if name in named]


def is_trained(row: Row) -> bool:
    """Whether another seed would have made another row: students are, what is only measured is not."""
    return row.kind == "student"


def seeds_of(rows: Sequence[Row]) -> list[int]:
    """Seeds of all trained rows, in the order in which they come; [0] where nothing was trained."""
    return list(dict.fromkeys(seed for row in rows if is_trained(row) for seed in row.seeds)) or [0]


def blocks(
    report: Report, rows: Sequence[Row], sets: Sequence[str], dataset: str, compared: Collection[int]
) -> Iterator[Block]:
    """A block for every metric, of `sets` together.

    A row that lacks one of `sets` is missing as a whole. An image that a run of the other compared rows has no finite
    value for is left out for all of them: gains of a group stand on the same images. What was not trained has its one
    value for every seed.

    Args:
        rows: of one group.
        dataset: what to call `sets` together.
        compared: positions of the rows that a comparison has; only they have finite values on all that is kept.

    Raises:
        MtkdError: scores are not of the shape (seeds, images), or seeds or names repeat.
    """
    seeds = seeds_of(rows)
    starts = dict(zip(report.images, np.cumsum([0, *map(len, report.images.values())]).tolist()))
    strata = np.repeat(np.arange(len(sets)), [len(report.images[name]) for name in sets])
    places = np.concatenate([starts[name] + np.arange(len(report.images[name])) for name in sets])
    for metric, direction in report.metrics.items():
        values = np.full((len(rows), len(seeds), len(places)), np.nan)
        for number, row in enumerate(rows):
            if all(metric in row.scores.get(name, {}) for name in sets):
                parts = [scores_of(report, row, name, metric) for name in sets]
                where = [seeds.index(seed) for seed in row.seeds] if is_trained(row) else slice(None)
                values[number, where] = np.concatenate(parts, axis=1)
        # Infinite is the PSNR of equal images; no mean and no difference can be made of it.
        values[~np.isfinite(values)] = np.nan
        ends = np.cumsum([len(report.images[name]) for name in sets])[:-1]
        whole = [~np.isnan(part).all(-1) for part in np.split(values, ends, axis=-1)]
        there = np.logical_and.reduce(whole)
        counted = there & np.isin(np.arange(len(rows)), list(compared))[:, None]
        keep = ~np.isnan(values[counted]).any(0) if counted.any() else np.zeros(len(places), bool)
        # A row that nothing is compared with counts where it has what the others have.
        there &= ~np.isnan(values[:, :, keep]).any(-1)
        values[~there] = np.nan
        if keep.any():
            yield Block(
                dataset=dataset,
                metric=metric,
                sign=1 if direction == "higher" else -1,
                values=values[:, :, keep],
                there=there,
                strata=strata[keep],
                places=places[keep],
                dropped=int((~keep).sum()),
            )


def scores_of(report: Report, row: Row, dataset: str, metric: str) -> NDArray[np.float64]:
    """Scores of a row, (seeds, images), NaN where there are none.

    Raises:
        MtkdError: they have another shape, or seeds repeat.
    """
    expected = (len(row.seeds), len(report.images[dataset]))
    found = row.scores.get(dataset, {}).get(metric)
    scores = np.full(expected, np.nan) if found is None else np.array(found, np.float64)
    where = f"Row {row.name!r} of group {row.group!r}"
    if scores.shape != expected:
        raise MtkdError(
            f"{where}: scores of {metric} on {dataset} have the shape {scores.shape}, expected {expected}, (seeds, "
            "images). Give one line for each of Row.seeds and one column for each of Report.images."
        )
    if len(set(row.seeds)) < len(row.seeds):
        raise MtkdError(f"{where}: the seeds {tuple(row.seeds)} repeat. Name each run's seed once.")
    if not is_trained(row) and len(row.seeds) > 1:
        raise MtkdError(f"{where}: a row of kind {row.kind!r} is measured once, found the seeds {tuple(row.seeds)}.")
    return scores
