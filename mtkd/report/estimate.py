"""Gains and their errors: how much of each comes from the seeds and how much from the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        df: degrees of freedom of the standard error; 0 where it cannot be estimated.
    """

    row: int
    baseline: int
    gains: Array
    from_images: Array
    from_seeds: Array
    df: float

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


def estimates(
    block: Block, trained: Sequence[bool], pairs: Sequence[tuple[int, int]], all_images: int
) -> list[Estimate]:
    """The gain of each of `pairs`, (row, baseline), that was measured on a common seed.

    Variance = seeds + images, each over its own sample; the part of the rest (what one seed does to one image) is in
    both, so that the sum is too large by that part, and never too small. Degrees of freedom are Satterthwaite's (1946).

    - Images: within each data set, of the gain averaged over seeds. The sets themselves are taken as given.
    - Seeds: all trained rows of the group share one variance, the residual of mean score = row + seed, which has
      (rows - 1) * (seeds - 1) degrees of freedom (randomised complete blocks; a seed gives all rows the same first
      weights and batches). Three seeds of two rows alone leave two.
    - Against a row that was not trained: seeds of the other alone.
    """
    strata = _sizeable(block.strata)
    residuals, spare = _residuals(block.values.mean(-1), np.array(trained)[:, None] & block.there)
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
        number = int(common.sum())
        own, shared, seed_df = np.zeros(seeds), np.zeros((rows, rows * seeds)), 0
        if number > 1 and trained[row] and trained[baseline]:
            shared[row], shared[baseline] = (
                block.sign * unit / math.sqrt(number),
                -block.sign * unit / math.sqrt(number),
            )
            seed_df = spare
        elif number > 1:
            means = gains.mean(1)
            own[common] = (means - means.mean()) / math.sqrt(number * (number - 1))
            seed_df = number - 1
        from_images, parts = _image_error(gains.mean(0), strata)
        everywhere = np.zeros(all_images)
        everywhere[block.places] = from_images
        from_seeds = np.concatenate([shared.ravel(), own])
        found.append(
            Estimate(
                row=row,
                baseline=baseline,
                gains=gains,
                from_images=everywhere,
                from_seeds=from_seeds,
                df=_satterthwaite([*parts, (float(from_seeds @ from_seeds), seed_df)]) if parts else 0.0,
            )
        )
    return found


def _image_error(gains: Array, strata: NDArray[np.int64]) -> tuple[Array, list[tuple[float, int]]]:
    """The error of the mean of `gains` (images,), and (variance, degrees of freedom) of each data set."""
    error, parts = np.zeros_like(gains), []
    for stratum in np.unique(strata):
        here = strata == stratum
        count = int(here.sum())
        if count < 2:
            return error, []
        error[here] = (gains[here] - gains[here].mean()) / len(gains) * math.sqrt(count / (count - 1))
        parts.append((float(error[here] @ error[here]), count - 1))
    return error, parts


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
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
    residuals[there] = means[there] - design @ solution
    return residuals, len(rows) - int(rank)


def _sizeable(strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """`strata` where each has two images at least: a set of one image shows no variance and is taken with another."""
    names, sizes = np.unique(strata, return_counts=True)
    if len(names) < 2 or sizes.min() > 1:
        return strata
    alone = names[sizes == 1]
    partner = alone[0] if len(alone) > 1 else names[sizes.argmax()]
    return np.where(np.isin(strata, alone), partner, strata)
