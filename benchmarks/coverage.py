"""How often 95 % intervals of a gain hold the truth, by simulation: the table of `docs/reports.md`.

    python benchmarks/coverage.py --trials 4000

Students of two or seven methods, three seeds each, without any true gain. What moves them is as large as measured on
distilled students of 28,000 parameters: seeds move a gain by 0.007 to 0.03 dB, an image differs from the mean gain by
0.035 dB, and what one seed does to one image is 0.02 dB.
"""

from __future__ import annotations

import argparse
import math
import warnings

import numpy as np
from scipy import stats

from mtkd.report.arrange import Block
from mtkd.report.estimate import Estimate, estimates
from mtkd.report.resampling import bootstrap

SEEDS, LEVEL = 3, 0.05
WAYS = (
    "images alone, t",
    "percentile bootstrap of seeds and images",
    "BCa bootstrap of the seeds' means",
    "t of the seeds' means",
    "pair's own seeds, Satterthwaite",
    "pair's own seeds, Cochran",
    "ours",
)


def simulated(random: np.random.Generator, rows: int, images: int, seed_sd: float, restless: float) -> np.ndarray:
    """Scores (rows, seeds, images); the seeds of row 1 scatter `restless` times as much as those of the others."""
    of_runs = random.normal(0, seed_sd / 2**0.5, (rows, SEEDS, 1))
    of_runs[1] *= restless
    alike = random.normal(28, 3, images) + random.normal(0, 0.02, (1, SEEDS, 1))
    of_images = random.normal(0, 0.035 / 2**0.5, (rows, 1, images))
    return alike + of_runs + of_images + random.normal(0, 0.02 / 2**0.5, (rows, SEEDS, images))


def estimate(values: np.ndarray) -> Estimate:
    """Row 1 against row 0."""
    rows, seeds, images = values.shape
    block = Block(
        dataset="d", metric="psnr", sign=1, values=values, there=np.ones((rows, seeds), bool),
        strata=np.zeros(images, np.int64), places=np.arange(images), dropped=0,
    )  # fmt: skip
    return estimates(block, [True] * rows, [(1, 0)], images)[0]


def intervals(values: np.ndarray, random: np.random.Generator, *, bootstraps: bool) -> dict[str, tuple[float, float]]:
    """Way -> (low, high)."""
    group, pair, images = estimate(values), estimate(values[:2]), values.shape[-1]
    gain, by_seed = pair.gain, pair.gains.mean(1)
    halves = {
        WAYS[0]: stats.t.isf(LEVEL / 2, images - 1) * np.linalg.norm(pair.from_images),
        WAYS[3]: stats.t.isf(LEVEL / 2, SEEDS - 1) * np.std(by_seed, ddof=1) / math.sqrt(SEEDS),
        WAYS[4]: stats.t.isf(LEVEL / 2, pair.df) * pair.se,
        WAYS[5]: pair.critical(LEVEL) * pair.se,
        WAYS[6]: group.critical(LEVEL) * group.se,
    }
    found = {way: (gain - half, gain + half) for way, half in halves.items()}
    if bootstraps:
        [found[WAYS[1]]] = bootstrap([pair.gains], np.zeros(images, np.int64), level=LEVEL, resamples=400)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCa does not always exist for three numbers, and says so
            bca = stats.bootstrap((by_seed,), np.mean, n_resamples=499, method="BCa", rng=random).confidence_interval
        found[WAYS[2]] = (bca.low, bca.high)
    return found


def main() -> None:
    """Print a Markdown table: coverage in percent, and half the mean width in thousandths of a dB.

    Bootstraps are tried on every fourth trial.
    """
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=4000)
    trials = arguments.parse_args().trials
    print(f"| rows, images, seeds of the row | gain over seeds (dB) | {' | '.join(WAYS)} |")
    print("|---|---:|" + "---:|" * len(WAYS))
    for rows, restless in ((2, 1.0), (7, 1.0), (7, 2.0)):
        for images, seed_sd in ((20, 0.007), (60, 0.02), (200, 0.03)):
            random = np.random.default_rng(0)
            hits: dict[str, list[bool]] = {way: [] for way in WAYS}
            widths: dict[str, list[float]] = {way: [] for way in WAYS}
            for trial in range(trials):
                values = simulated(random, rows, images, seed_sd, restless)
                for way, (low, high) in intervals(values, random, bootstraps=trial % 4 == 0).items():
                    hits[way].append(low <= 0 <= high)
                    widths[way].append((high - low) / 2)
            cells = [f"{100 * np.mean(hits[way]):.1f} ({1000 * np.nanmean(widths[way]):.0f})" for way in WAYS]
            calm = "as the others'" if restless == 1 else "twice as restless"
            print(f"| {rows}, {images}, {calm} | {seed_sd} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
