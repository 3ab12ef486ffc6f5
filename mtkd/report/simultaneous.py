"""Many comparisons at once: what the smallest of their p values may be by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]
DRAWS = 2**14


class MinP:
    """Distribution of the smallest p value of a family of two-sided t tests, when no difference is real.

    The test of the largest |t| (Dunnett, 1955; for any contrasts: Hothorn, Bretz and Westfall, 2008): it knows that
    comparisons with one baseline, and metrics of the same images, rise and fall together, which Bonferroni's and Holm's
    corrections do not use. One step, so that each corrected p value has its interval. It is taken on the scale of p
    because degrees of freedom differ. Standard errors of one variable are taken to err together, others by themselves.

    scipy has it for independent samples and one baseline (`scipy.stats.dunnett`), not for correlations that are given;
    it is integrated with Sobol points (`scipy.stats.qmc`), always the same.

    Args:
        correlation: (m, m) of the estimates.
        df: (m,) degrees of freedom, > 0; inf for a known variance.
        variables: (m,) int; comparisons of one variable share a variance.
    """

    def __init__(self, correlation: Array, df: Array, variables: NDArray[np.int64]) -> None:
        self.size = len(df)
        kinds, of = np.unique(variables, return_inverse=True)
        points = stats.qmc.Sobol(self.size + len(kinds), rng=np.random.default_rng(0)).random(DRAWS)
        points = np.clip(points, 1e-12, 1 - 1e-12)
        eigenvalues, vectors = np.linalg.eigh(correlation)
        root = vectors * np.sqrt(np.clip(eigenvalues, 0, None))
        normal = special.ndtri(points)
        estimates = normal[:, : self.size] @ root.T
        shrink = np.ones_like(estimates)
        # The inverse of chi-square is slow: taken on a grid, on which it is smooth in the normal deviate.
        grid = np.linspace(-7.5, 7.5, 1501)
        for number in np.flatnonzero(np.isfinite(df)):
            chi = np.sqrt(special.chdtri(df[number], special.ndtr(-grid)) / df[number])
            shrink[:, number] = np.interp(normal[:, self.size + of[number]], grid, chi)
        t = np.abs(estimates) / shrink
        tails = np.where(np.isfinite(df), special.stdtr(np.where(np.isfinite(df), df, 1), -t), special.ndtr(-t))
        self._smallest = np.sort(2 * tails.min(axis=1))

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
