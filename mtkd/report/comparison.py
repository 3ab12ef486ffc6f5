"""One comparison of two rows, and the rule that turns its interval into a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["better", "worse", "cannot be told apart"]
Interval: TypeAlias = tuple[float, float]

LEVEL = 0.05
"""Of every test and interval: 95 % of what is said holds."""
POWER = 0.8
"""Chance to see a difference of the size `Comparison.detectable`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row against a baseline on the same images, trained from the same seeds.

    Every gain is signed so that more is better: row minus baseline where higher values are better, else baseline minus
    row. Units are those of the metric (dB for PSNR). What cannot be computed is NaN.

    Attributes:
        group: of the two rows.
        row, baseline: their names.
        dataset: where; "" for all images of `Report.pooled` together.
        metric: what was measured.
        seeds: that both rows were trained from; 1 also where nothing was trained.
        images: that every run of the group has a value for.
        dropped: images left out because some run of the group lacks a value.
        mean, baseline_mean: over seeds and images.
        gain: mean of the difference.
        interval: 95 % for all comparisons of the family together; the verdict is read from it.
        alone: 95 % for this comparison if it had been the only one.
        bootstrap: 95 % percentile interval of a bootstrap of seeds and images. It is too narrow for few seeds and is
            here to be compared with other papers; no verdict is read from it.
        p: of no difference, two-sided, for this comparison alone; consistent with `alone`.
        p_corrected: for all comparisons of the family together; consistent with `interval`.
        family: number of comparisons that were corrected for.
        se: standard error of the gain.
        df: degrees of freedom of `se`.
        seed_sd: standard deviation of the gain over seeds, images fixed; NaN for one seed.
        image_sd: standard deviation over images, within a data set, of the gain averaged over seeds.
        detectable: the smallest true gain that would have been seen with a chance of 0.8 after the correction.
        wins: number of images on which the row is ahead, averaged over seeds.
    """

    group: str
    row: str
    baseline: str
    dataset: str
    metric: str
    seeds: int
    images: int
    dropped: int
    mean: float
    baseline_mean: float
    gain: float
    interval: Interval
    alone: Interval
    bootstrap: Interval
    p: float
    p_corrected: float
    family: int
    se: float
    df: float
    seed_sd: float
    image_sd: float
    detectable: float
    wins: int

    @property
    def verdict(self) -> Verdict:
        """`verdict` of the interval that holds for the whole family."""
        return verdict(self.interval)

    @property
    def about(self) -> Literal["methods", "networks"]:
        """What the verdict speaks of: with one seed of these two networks alone, for another seed may turn it."""
        return "methods" if self.seeds > 1 else "networks"


def verdict(interval: Interval) -> Verdict:
    """The one rule: "better" or "worse" where all of the corrected interval of a gain lies on one side of zero.

    Example:
        >>> verdict((0.01, 0.05)), verdict((-0.01, 0.05)), verdict((float("nan"), float("nan")))
        ('better', 'cannot be told apart', 'cannot be told apart')
    """
    low, high = interval
    if low > 0:
        return "better"
    return "worse" if high < 0 else "cannot be told apart"


def detectable(comparisons: Iterable[Comparison]) -> float:
    """The smallest true gain that every one of `comparisons` would have seen with a chance of 0.8; NaN for none.

    Give comparisons of one group, data set and metric: others differ in units or images.
    """
    return max((one.detectable for one in comparisons if not math.isnan(one.detectable)), default=math.nan)
