"""Rows compared: gains with intervals that hold for other seeds and other images, all of a group together.

Networks differ by their seed, and tests by their images. Every seed answers every image, so that the two cross:
gain[s, i] = gain + seed[s] + image[i] + rest[s, i]. An interval over images alone treats the seeds at hand as the only
ones; with three of them a bootstrap of seeds is too narrow (`docs/reports.md` has the coverage of each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from mtkd.report.arrange import POOLED, Block, baselines_of, blocks, groups, is_trained, rows_of, scores_of
from mtkd.report.comparison import LEVEL, POWER, Comparison, Interval, detectable, verdict
from mtkd.report.content import Report, Row
from mtkd.report.estimate import Estimate, estimates, root
from mtkd.report.resampling import bootstrap
from mtkd.report.simultaneous import MinP

__all__ = ["POOLED", "Comparison", "Summary", "comparisons", "detectable", "like_the_best", "summary", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One cell of a table.

    Attributes:
        mean: over seeds and images.
        sd: standard deviation over seeds of the mean over images (n - 1 in the denominator); NaN for one seed.
        seeds, images: how many entered.
    """

    mean: float
    sd: float
    seeds: int
    images: int


def summary(report: Report, row: Row, dataset: str, metric: str) -> Summary | None:
    """The mean of a row on one data set, or on all images of `Report.pooled` for `POOLED`.

    Seeds without any value on one of the sets are left out, and so are images that a remaining seed has no value for.
    None where nothing remains. An infinite value (PSNR of equal images) makes the mean infinite.

    Raises:
        MtkdError: the scores have another shape than (seeds, images).
    """
    sets = report.pooled if dataset == POOLED else (dataset,)
    if not sets or any(metric not in row.scores.get(name, {}) for name in sets):
        return None
    parts = [scores_of(report, row, name, metric) for name in sets]
    scores = np.concatenate(parts, axis=1)
    scores = scores[np.logical_and.reduce([~np.isnan(part).all(1) for part in parts])]
    scores = scores[:, ~np.isnan(scores).any(0)]
    if not scores.size:
        return None
    means = scores.mean(1)
    sd = float(means.std(ddof=1)) if len(means) > 1 and np.isfinite(means).all() else math.nan
    return Summary(mean=float(means.mean()), sd=sd, seeds=len(scores), images=scores.shape[1])


def comparisons(report: Report) -> list[Comparison]:
    """Every row of each group against each baseline of it: pooled first, then on every data set.

    Validation sets are left out: runs may have been chosen by them. Two families are corrected for in each group: all
    pooled comparisons, over rows, baselines and metrics; and all comparisons on single data sets. Two baselines are
    compared once, the later one against the earlier one. Nothing is random: the same report gives the same numbers.

    Raises:
        MtkdError: the scores of a row have another shape than (seeds, images), or its seeds repeat.
    """
    found = []
    for group in groups(report):
        rows = rows_of(report, group)
        singles = [name for name in report.images if name not in report.validation]
        compared = {number for pair in _pairs(report, group, rows) for number in pair}
        pooled = list(blocks(report, rows, report.pooled, POOLED, compared)) if report.pooled else []
        each = [block for name in singles for block in blocks(report, rows, [name], name, compared)]
        for family in (pooled, each):
            found += _family(report, group, rows, family)
    return found


@dataclass(frozen=True)
class Best:
    """The row of a group with the best mean.

    Attributes:
        name: of the row.
        alike: rows that it is not better than.
        others: rows with other seeds, whose means are of other runs: they are not looked at.
    """

    name: str
    alike: list[str]
    others: list[str]


def like_the_best(report: Report, group: str, metric: str) -> Best | None:
    """The group's own row with the best pooled mean; None for one row.

    The best is found by looking at the numbers, so that all pairs of rows are one family here, as in Tukey's test.
    """
    if not report.pooled:
        return None
    rows = [row for row in report.rows if row.group == group]
    most = max((row.seeds for row in rows if is_trained(row)), key=len, default=())
    others = [row.name for row in rows if is_trained(row) and sorted(row.seeds) != sorted(most)]
    own = [row for row in rows if row.name not in others]
    every = replace(
        report,
        rows=[row for row in report.rows if row.group != group or row.name not in others],
        baselines=[row.name for row in own],
        metrics={metric: report.metrics[metric]},
    )
    rows = rows_of(every, group)
    compared = {number for pair in _pairs(every, group, rows) for number in pair}
    found = _family(every, group, rows, list(blocks(every, rows, report.pooled, POOLED, compared)))
    if not found:
        return None
    sign = 1 if report.metrics[metric] == "higher" else -1
    means = {one.row: sign * one.mean for one in found} | {one.baseline: sign * one.baseline_mean for one in found}
    best = max(means, key=lambda name: means[name])
    beaten = {one.row for one in found if one.baseline == best and one.verdict == "worse"}
    beaten |= {one.baseline for one in found if one.row == best and one.verdict == "better"}
    return Best(best, alike=[row.name for row in own if row.name not in beaten | {best}], others=others)


def _family(report: Report, group: str, rows: Sequence[Row], family: Sequence[Block]) -> list[Comparison]:
    """The comparisons of `family`, corrected together."""
    trained = [is_trained(row) for row in rows]
    all_images = sum(map(len, report.images.values()))
    pairs = _pairs(report, group, rows)
    found = [(block, one) for block in family for one in estimates(block, trained, pairs, all_images)]
    intervals = [
        interval
        for block in family
        for interval in bootstrap([one.gains for of, one in found if of is block], block.strata, level=LEVEL)
    ]
    variable = {(block.dataset, block.metric): number for number, block in enumerate(family)}
    alone = np.array([one.p() for _, one in found])
    # A standard error of zero, or none, has no t: such a p value is 0, 1 or NaN already.
    usual = np.array([one.se > 0 and one.df > 0 for _, one in found], bool)
    corrected, threshold = alone.copy(), LEVEL
    if usual.any():
        used = [pair for pair, is_usual in zip(found, usual) if is_usual]
        errors = np.array([one.error / one.se for _, one in used])
        df = np.array([one.df for _, one in used])
        kinds = np.array([variable[block.dataset, block.metric] for block, _ in used])
        smallest = MinP(errors @ errors.T, df, kinds)
        corrected[usual] = smallest.corrected(alone[usual])
        threshold = smallest.threshold(LEVEL)
    return [
        _comparison(group, rows, block, one, interval, p, p_corrected, threshold, len(found))
        for (block, one), interval, p, p_corrected in zip(found, intervals, alone.tolist(), corrected.tolist())
    ]


def _pairs(report: Report, group: str, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(row, baseline) by their positions, each pair once; rows of every group are no one's rival."""
    position = {row.name: number for number, row in enumerate(rows)}
    baselines = [position[row.name] for row in baselines_of(report, group)]
    return [
        (number, baseline)
        for rank, baseline in enumerate(baselines)
        for number, row in enumerate(rows)
        if row.group == group and number not in baselines[: rank + 1]
    ]


def _comparison(
    group: str,
    rows: Sequence[Row],
    block: Block,
    one: Estimate,
    resampled: Interval,
    p: float,
    p_corrected: float,
    threshold: float,
    family: int,
) -> Comparison:
    seeds, images = one.gains.shape
    common = block.there[one.row] & block.there[one.baseline]
    by_image = one.gains.mean(0)
    spread = [by_image[block.strata == stratum] for stratum in np.unique(block.strata)]
    within = sum(float(((part - part.mean()) ** 2).sum()) for part in spread)
    known = one.df > 0
    return Comparison(
        group=group,
        row=rows[one.row].name,
        baseline=rows[one.baseline].name,
        dataset=block.dataset,
        metric=block.metric,
        seeds=seeds,
        images=images,
        dropped=block.dropped,
        mean=float(block.values[one.row, common].mean()),
        baseline_mean=float(block.values[one.baseline, common].mean()),
        gain=one.gain,
        interval=_interval(one, threshold) if known else (math.nan, math.nan),
        alone=_interval(one, LEVEL) if known else (math.nan, math.nan),
        bootstrap=resampled,
        p=p,
        p_corrected=p_corrected,
        family=family,
        se=one.se if known else math.nan,
        df=one.df,
        seed_sd=math.sqrt(seeds) * float(np.linalg.norm(one.from_seeds)) if seeds > 1 else math.nan,
        image_sd=math.sqrt(within / (images - len(spread))) if images > len(spread) else math.nan,
        detectable=_detectable(one, threshold) if known else math.nan,
        wins=int((by_image > 0).sum()),
    )


def _interval(one: Estimate, level: float) -> Interval:
    half = one.critical(level) * one.se if one.se else 0.0
    return one.gain - half, one.gain + half


def _detectable(one: Estimate, threshold: float) -> float:
    """The true gain that a two-sided test at `threshold` sees with the chance `POWER`.

    The chance is that of a noncentral t, averaged over the quantiles of its chi-square: `scipy.stats.nct` fails far
    from the centre. The chance to see it with the wrong sign is left out.
    """
    if not one.se:
        return 0.0
    critical, chi = one.critical(threshold), np.sqrt(special.chdtri(one.df, (np.arange(2000) + 0.5) / 2000) / one.df)

    def lack(shift: float) -> float:
        return float(special.ndtr(shift - critical * chi).mean()) - POWER

    return one.se * root(lack, 0, critical * float(chi.max()) + 5)
