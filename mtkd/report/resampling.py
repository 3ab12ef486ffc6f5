"""The bootstrap of seeds and images: shown for comparison, never the ground of a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 10_000


def bootstrap(
    gains: Sequence[Array], strata: NDArray[np.int64], *, level: float, resamples: int = RESAMPLES
) -> list[tuple[float, float]]:
    """Percentile interval of the mean of each of `gains`, (seeds, images), under resampled seeds and images.

    Seeds are drawn with replacement, and, by themselves, the images of each data set: every seed answers every image,
    so that one image keeps its place in all seeds (Owen, The pigeonhole bootstrap, 2007). Data sets keep their sizes.
    One seed is not resampled. `scipy.stats.bootstrap` resamples along one axis only.

    Args:
        gains: all on the same images; they may have different numbers of seeds.
        strata: (images,) data set of each image.
        level: part of the resamples outside, in (0, 1).
    """
    if not gains:
        return []
    images = len(strata)
    sums = _of_images(tuple(strata.tolist()), resamples) @ np.concatenate(gains).T
    found, start = [], 0
    for one in gains:
        seeds = len(one)
        of_seeds = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        means = (sums[:, start : start + seeds] * of_seeds).sum(1) / (seeds * images)
        low, high = np.quantile(means, [level / 2, 1 - level / 2])
        found.append((float(low), float(high)))
        start += seeds
    return found


# A report has a family of comparisons for each metric and student, on the same few sets of images.
@lru_cache(maxsize=8)
def _of_images(strata: tuple[int, ...], resamples: int) -> Array:
    """(resamples, images) how often each image is drawn."""
    random, of = np.random.default_rng(1), np.array(strata)
    drawn = np.empty((resamples, len(of)))
    for stratum in np.unique(of):
        here = np.flatnonzero(of == stratum)
        drawn[:, here] = random.multinomial(len(here), np.full(len(here), 1 / len(here)), size=resamples)
    return drawn
