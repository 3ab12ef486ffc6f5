"""Gains and their errors: how much of each comes from the seeds and how much from the images.

Variance of a gain = seeds + images, each over its own sample. What one seed does to one image is in both, so that the
sum is too large by that part and never too small.

- Images: within each data set, of the gain averaged over seeds. The sets themselves are taken as given.
- Seeds: all trained rows of a group share one variance, the residual of mean score = row + seed, which has (rows - 1) *
  (seeds - 1) degrees of freedom (randomised complete blocks: a seed gives all rows the same first weights and batches).
  Three seeds of two rows alone leave two, whose interval is twice as wide. Where the pair's own seeds scatter more than
  that, their variance stands in: a restless method must not borrow the calm of the others.
- Against a row that was not trained: the seeds of the other alone.

Two variances with few degrees of freedom each make no t. The critical value is Cochran's (Biometrics 20, 1964): the
mean of the two t, weighted by the variances. Satterthwaite's (1946) covers 92 to 94 % with two degrees of freedom
(`docs/reports.md` has the coverage of each).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from mtkd.report.arrange import Block

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One gain and where its error comes from.

    The two vectors hold the error in parts: the sum of squares of each is a variance, and the products of those of two
    estimates are their covariance.

    Attributes:
        row, baseline: their positions in the block.
        gains: (seeds, images), signed so that more is better, of the seeds that both rows have.
        from_images: (all images of the report,), zero where an image is not of the block.
        from_seeds: (rows * rows * all seeds + all seeds,); all zero for one seed.
        df_images, df_seeds: degrees of freedom of the two variances; 0 where there is none.
    """

    row: int
    baseline: int
    gains: Array
    from_images: Array
    from_seeds: Array
    df_images: float
    df_seeds: float

    @property
    def gain(self) -> float:
        """Mean over seeds and images."""
        return float(self.gains.mean())

    @property
    def error(self) -> Array:
        """Both vectors together, whose length is the standard error."""
        return np.concatenate([self.from_images, self.from_seeds])

    @property
    def se(self) -> float:
        """Standard error of the gain."""
        return float(np.linalg.norm(self.error))

    @property
    def df(self) -> float:
        """Degrees of freedom of `se`, Satterthwaite's; 0 where images cannot be told to vary."""
        if not self.df_images:
            return 0.0
        return _satterthwaite(self._parts)

    @cached_property
    def _parts(self) -> list[tuple[float, float]]:
        images, seeds = float(self.from_images @ self.from_images), float(self.from_seeds @ self.from_seeds)
        return [(images, self.df_images), *([(seeds, self.df_seeds)] if self.df_seeds else [])]

    def critical(self, level: float) -> float:
        """How many standard errors from zero a two-sided test at `level` sees a gain; for `df` and `se` above 0."""
        whole = sum(variance for variance, _ in self._parts)
        return sum(-variance * float(special.stdtrit(df, level / 2)) for variance, df in self._parts) / whole

    def p(self) -> float:
        """Of no gain, two-sided: the level whose critical value the gain just reaches; NaN where nothing is known."""
        if self.df <= 0:
            return math.nan
        if self.se == 0:
            return float(self.gain == 0)
        t = abs(self.gain) / self.se
        # Those of either variance alone lie on both sides, but for rounding.
        alone = [2 * float(special.stdtr(df, -t)) for _, df in self._parts]
        low, high = 0.99 * min(alone), min(1.01 * max(alone), 1.0)
        if max(alone) == min(alone) or low == 0:
            return max(alone)
        return math.exp(root(lambda log: self.critical(math.exp(log)) - t, math.log(low), math.log(high)))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where `function` is zero, between `low` and `high`, at which its signs differ: `scipy.optimize.brentq`."""
    found: Any = optimize.brentq(function, low, high)
    return float(found)


def estimates(
    block: Block, trained: Sequence[bool], pairs: Sequence[tuple[int, int]], all_images: int
) -> list[Estimate]:
    """The gain of each of `pairs`, (row, baseline), that was measured on a common seed.

    Args:
        trained: whether each row of the block was trained from its seeds.
        all_images: of the report.
    """
    strata = _sizeable(block.strata)
    # Only of what was trained: zeros of other rows would change how sums are rounded, and that differs by machine.
    place = {row: number for number, row in enumerate(np.flatnonzero(trained).tolist())}
    residuals, spare = _residuals(block.values[list(place)].mean(-1), block.there[list(place)])
    unit = residuals.ravel() / math.sqrt(spare) if spare else np.zeros(residuals.size)
    rows, seeds = residuals.shape
    found = []
    for row, baseline in pairs:
        common = block.there[row] & block.there[baseline]
        if not (trained[row] or trained[baseline]):
            common &= np.cumsum(common) == 1  # the same value for every seed
        if not common.any():
            continue
        gains = block.sign * (block.values[row] - block.values[baseline])[common]
        from_seeds, df_seeds = np.zeros(rows * rows * seeds + seeds), 0
        means = gains.mean(1)
        number = len(means)
        own = (means - means.mean()) / math.sqrt(number * max(number - 1, 1))
        if number > 1 and trained[row] and trained[baseline]:
            shared = np.zeros((rows, rows * seeds))
            shared[place[row]], shared[place[baseline]] = block.sign * unit, -block.sign * unit
            shared *= max(1 / math.sqrt(number), _ratio(float(np.linalg.norm(own)), float(np.linalg.norm(shared))))
            from_seeds[:-seeds], df_seeds = shared.ravel(), spare
        elif number > 1:
            from_seeds[-seeds:][common], df_seeds = own, number - 1
        from_images, df_images = _image_error(gains.mean(0), strata)
        everywhere = np.zeros(all_images)
        everywhere[block.places] = from_images
        found.append(
            Estimate(
                row=row,
                baseline=baseline,
                gains=gains,
                from_images=everywhere,
                from_seeds=from_seeds,
                df_images=df_images,
                df_seeds=df_seeds,
            )
        )
    return found


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _image_error(gains: Array, strata: NDArray[np.int64]) -> tuple[Array, float]:
    """The error of the mean of `gains` (images,), and its degrees of freedom; 0 where a data set has one image."""
    error, parts = np.zeros_like(gains), []
    for stratum in np.unique(strata):
        here = strata == stratum
        count = int(here.sum())
        if count < 2:
            return error, 0.0
        error[here] = (gains[here] - gains[here].mean()) / len(gains) * math.sqrt(count / (count - 1))
        parts.append((float(error[here] @ error[here]), count - 1))
    return error, _satterthwaite(parts)


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independent variances, each given with its own."""
    whole = sum(variance for variance, _ in parts)
    if whole == 0:
        return float(sum(df for _, df in parts))
    return whole**2 / sum(variance**2 / df for variance, df in parts if variance > 0)


def _residuals(means: Array, there: NDArray[np.bool_]) -> tuple[Array, int]:
    """What `means` (rows, seeds) has beside a part of its row and a part of its seed, and the degrees of freedom."""
    rows, seeds = np.nonzero(there)
    design = np.zeros((len(rows), sum(there.shape)))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), there.shape[0] + seeds] = 1
    residuals = np.zeros(there.shape)
    if not len(rows):
        return residuals, 0
    solution, _, rank, _ = np.linalg.lstsq(design, means[there])
    rest = means[there] - design @ solution
    # What is left by rounding alone is nothing: equal answers must not be told apart by it.
    residuals[there] = np.where(np.abs(rest) > 1e-12 * np.abs(means[there]).max(), rest, 0)
    return residuals, len(rows) - int(rank)


def _sizeable(strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """`strata` where each has two images at least: a set of one image shows no variance and is taken with another."""
    names, sizes = np.unique(strata, return_counts=True)
    if len(names) < 2 or sizes.min() > 1:
        return strata
    alone = names[sizes == 1]
    partner = alone[0] if len(alone) > 1 else names[sizes.argmax()]
    return np.where(np.isin(strata, alone), partner, strata)
