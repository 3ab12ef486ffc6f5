"""Many comparisons at once: what the smallest of their p values may be by chance."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]
DRAWS = 2**14


class MinP:
    """Distribution of the smallest p value of a family of two-sided t tests, when no difference is real.

    The test of the largest |t| (Dunnett, 1955; for any contrasts: Hothorn, Bretz and Westfall, 2008): it knows that
    comparisons with one baseline, and metrics of the same images, rise and fall together, which Bonferroni's and Holm's
    corrections do not use. One step, so that each corrected p value has its interval.

    Comparisons of one variable share a standard error, others err by themselves. Where their degrees of freedom differ
    a little, the median stands for all: it shapes how they go together, while each p value alone stays uniform.

    scipy has it for independent samples and one baseline (`scipy.stats.dunnett`), not for correlations that are given;
    it is integrated with Sobol points (`scipy.stats.qmc`), always the same.

    Args:
        correlation: (m, m) of the estimates.
        df: (m,) degrees of freedom, > 0; inf for a known variance.
        variables: (m,) int: a metric on a data set, whose comparisons share a variance.
    """

    def __init__(self, correlation: Array, df: Array, variables: NDArray[np.int64]) -> None:
        self.size = len(df)
        kinds = np.unique(variables)
        points = stats.qmc.Sobol(self.size + len(kinds), rng=np.random.default_rng(0)).random(DRAWS)
        points = np.clip(points, 1e-12, 1 - 1e-12)
        eigenvalues, vectors = np.linalg.eigh(correlation)
        root = vectors * np.sqrt(np.clip(eigenvalues, 0, None))
        sizes = np.abs(special.ndtri(points[:, : self.size]) @ root.T)
        smallest = np.ones(DRAWS)
        for number, kind in enumerate(kinds):
            largest, freedom = sizes[:, variables == kind].max(axis=1), float(np.median(df[variables == kind]))
            if math.isinf(freedom):
                tails = special.ndtr(-largest)
            else:
                chi = np.sqrt(special.chdtri(freedom, points[:, self.size + number]) / freedom)
                tails = special.stdtr(freedom, -largest / chi)
            smallest = np.minimum(smallest, 2 * tails)
        self._smallest = np.sort(smallest)

    def corrected(self, p: Array) -> Array:
        """Corrected p values: the chance that the smallest of all is at most each of `p`.

        It lies between p and Bonferroni's bound, which stands in for it where p is too small for the points.
        """
        counts = np.searchsorted(self._smallest, p, side="right")
        return np.maximum(p, np.minimum(self.size * p, (counts + 1) / (DRAWS + 1))).clip(max=1)

    def threshold(self, level: float) -> float:
        """The largest p whose corrected value is below `level`: every interval at 1 - threshold, all hold at once."""
        most = int(np.ceil(level * (DRAWS + 1))) - 2
        return min(max(float(np.nextafter(self._smallest[most], 0)), level / self.size), level)
