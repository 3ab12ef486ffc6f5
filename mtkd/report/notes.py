"""What must be said under a table: how much was measured, what was corrected for, what could not have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtkd.report import numbers
from mtkd.report.arrange import POOLED, baselines_of, is_trained, rows_of
from mtkd.report.comparison import Comparison, detectable
from mtkd.report.content import Report
from mtkd.report.statistics import like_the_best


def notes(report: Report, group: str, found: Sequence[Comparison]) -> list[str]:
    """The sentences under the table of `group`.

    Args:
        found: `comparisons(report)`.
    """
    said = [_seeds(report, group)]
    if sum(row.group == group for row in report.rows) > 1:
        said[0] += " Bold is the best and underlined the second of the group's own rows."
    metric = next(iter(report.metrics))
    claims = [one for one in found if (one.group, one.dataset) == (group, POOLED)]
    if claims:
        said += _claims(report, claims, [one for one in claims if one.metric == metric])
        said += _best(report, group, metric)
    elif report.baselines and not baselines_of(report, group):
        said.append(f"No row of this group is called {' or '.join(report.baselines)}, so nothing is compared.")
    elif report.baselines and not report.pooled:
        said.append("No data sets are pooled, so no gain is claimed; single sets are compared in the CSV file.")
    if report.validation:
        names = " and ".join(report.validation)
        said.append(f"Runs were validated on {names}: it tells how they learnt, and no claim rests on it.")
    return said


def _seeds(report: Report, group: str) -> str:
    trained = [row for row in rows_of(report, group) if is_trained(row)]
    counts = sorted({len(row.seeds) for row in trained})
    if not counts or counts[-1] == 1:
        return "Means over images; every network was trained once, or not here."
    several = numbers.many(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    text = f"Mean ± standard deviation over {several}"
    if any(not is_trained(row) for row in rows_of(report, group)):
        text += "; one number where nothing was trained"
    return f"{text}."


def _claims(report: Report, claims: Sequence[Comparison], shown: Sequence[Comparison]) -> list[str]:
    """About the pooled comparisons of a group, of which the table shows those of one metric."""
    metric = shown[0].metric if shown else claims[0].metric
    images, seeds = min(one.images for one in claims), min(one.seeds for one in claims)
    over = f"{numbers.many(images, 'image')} of {' + '.join(report.pooled)}"
    said = [
        f"Gains are of {metric.upper()} over the {over}, each with one weight (pooled), signed so that more is better. "
        f"Their intervals of 95 % over seeds and images hold for {_all(claims[0].family)} of this group together: all "
        "its rows, baselines and metrics, corrected by the largest t. Better and worse: the interval is on one side of "
        "zero."
    ]
    if dropped := max(one.dropped for one in claims):
        said.append(f"{numbers.many(dropped, 'image')} left out of every gain, because some run has no finite value.")
    smallest = detectable(shown)
    if not math.isnan(smallest):
        text = f"{smallest:.2g}{numbers.unit(metric)}"
        said.append(
            f"A true gain of {text} would have been seen in each of them with a chance of 80 %; smaller ones are often "
            "missed."
        )
    if seeds == 1:
        said.append(
            "† One seed: the interval is over images alone and speaks of these two networks. It supports no claim "
            "about methods; another seed may turn it."
        )
    return said


def _all(family: int) -> str:
    return "the one comparison" if family == 1 else f"all {family} comparisons"


def _best(report: Report, group: str, metric: str) -> list[str]:
    found = like_the_best(report, group, metric)
    if found is None:
        return []
    same = " among the rows with all seeds" if found.others else ""
    about = f"{found.name} has the best {metric.upper()}{same}."
    pairs = "all pairs of rows compared and corrected for"
    if found.alike:
        said = [f"{about} Cannot be told apart from it ({pairs}): {', '.join(found.alike)}."]
    else:
        said = [f"{about} It is better than every other{' of them' if found.others else ' row'} ({pairs})."]
    if found.others:
        said.append(f"Not among them, for other seeds move a mean too: {', '.join(found.others)}.")
    return said
