"""The bootstrap of seeds and images: shown for comparison, never the ground of a verdict."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 10_000


def bootstrap(
    gains: Array, strata: NDArray[np.int64], *, level: float, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of the mean of `gains` (seeds, images) under resampled seeds and images.

    Seeds are drawn with replacement, and, by themselves, the images of each data set: every seed answers every image,
    so that one image keeps its place in all seeds (Owen, The pigeonhole bootstrap, 2007). Data sets keep their sizes.
    One seed is not resampled. `scipy.stats.bootstrap` resamples along one axis only.

    Args:
        strata: (images,) data set of each image.
        level: part of the resamples outside, in (0, 1).
    """
    seeds, images = gains.shape
    of_seeds = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    means = ((_image_counts(strata.tobytes(), resamples) @ gains.T) * of_seeds).sum(1) / (seeds * images)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(low), float(high)


@lru_cache(maxsize=1)
def _image_counts(strata: bytes, resamples: int) -> Array:
    """How often each image is drawn, (resamples, images); kept, because all comparisons on a data set share it."""
    of = np.frombuffer(strata, np.int64)
    random = np.random.default_rng(1)
    counts = np.empty((resamples, len(of)))
    for stratum in np.unique(of):
        here = np.flatnonzero(of == stratum)
        counts[:, here] = random.multinomial(len(here), np.full(len(here), 1 / len(here)), size=resamples)
    return counts
