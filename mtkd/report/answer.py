"""The answer of a report in words, made from its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mtkd.report.arrange import POOLED, baselines_of, groups, rows_of
from mtkd.report.comparison import Comparison, detectable
from mtkd.report.content import Report
from mtkd.report.payload import digits_of, manner
from mtkd.report.statistics import summary


@dataclass(frozen=True)
class Answer:
    """What a reader takes home of one group.

    Attributes:
        group: its name.
        question: what is compared, on what.
        better, worse, alike: (name, gain) of the trained rows with that verdict against the first baseline, the largest
            gain first.
        sentences: what else must be known: the smallest difference that could be seen, other baselines, the teachers.
    """

    group: str
    question: str
    better: list[tuple[str, str]]
    worse: list[tuple[str, str]]
    alike: list[tuple[str, str]]
    sentences: list[str]


def answers(report: Report, compared: Sequence[Comparison]) -> list[Answer]:
    """One `Answer` for each group, by the first metric on the pooled images (the first set where none are pooled).

    None where nothing was measured.
    """
    if not (report.rows and report.images and report.metrics):
        return []
    return [_answer(report, group, compared) for group in groups(report)]


def _answer(report: Report, group: str, compared: Sequence[Comparison]) -> Answer:
    metric = next(iter(report.metrics))
    view = POOLED if report.pooled else next(iter(report.images))
    sets = list(report.pooled) or [view]
    mine = [one for one in compared if (one.group, one.dataset, one.metric) == (group, view, metric)]
    images = mine[0].images if mine else sum(len(report.images[name]) for name in sets)
    together = f"{', '.join(sets[:-1])} and {sets[-1]}" if len(sets) > 1 else sets[0]
    where = f"{manner(metric)['label']} on {together} ({_many(images, 'image')})"
    trained = {row.name for row in rows_of(report, group) if row.kind == "student"}
    mine = sorted(mine, key=lambda one: -one.gain)
    bases = [row.name for row in baselines_of(report, group)]
    base = next((name for name in bases if any(one.baseline == name for one in mine)), None)
    if report.baselines and not report.pooled and len(report.images) > 1:
        base = None  # which of the sets a claim is made on was not said
    if base is None:
        return Answer(
            group, f"Nothing is compared here. Means of {where}:", [], [], [], _means(report, group, view, metric)
        )
    first = [one for one in mine if one.baseline == base and one.row in trained]
    digits = digits_of(metric, compared)
    named = {v: [_gain(one, digits) for one in first if one.verdict == v] for v in ("better", "worse")}
    alike = [_gain(one, digits) for one in first if one.verdict not in named]
    sentences = []
    if dropped := max(one.dropped for one in mine):
        sentences.append(
            f"{_many(dropped, 'image')} left out of every gain, because some compared run has no finite value there."
        )
    smallest = detectable(first)
    if not math.isnan(smallest):
        sentences.append(
            "The smallest true difference that every one of these comparisons would have seen, with a chance of 8 in "
            f"10, is {_value(smallest, metric, digits)}."
        )
    once = [one.row for one in first if one.seeds == 1]
    if first and len(once) == len(first):
        sentences.append("Each row was trained once: this speaks of these networks, and another seed may turn it.")
    elif once:
        sentences.append(
            f"Of one seed alone, which speaks of these networks and may turn with another: {', '.join(once)}."
        )
    for other in bases:
        # Two baselines are compared once, the later one against the earlier one.
        ahead = [one.row for one in mine if one.baseline == other and one.verdict == "better"]
        ahead += [one.baseline for one in mine if one.row == other and one.verdict == "worse"]
        ahead = [name for name in ahead if name in trained]
        if other != base:
            sentences.append(f"Better than {other}: {'; '.join(ahead) if ahead else 'no row'}.")
    sentences += _gap(report, group, view, metric, base)
    question = f"Against {base}, by {where}:"
    return Answer(group, question, named["better"], named["worse"], alike, sentences)


def _gain(one: Comparison, digits: int) -> tuple[str, str]:
    return one.row, f"{one.gain:+.{digits}f} {manner(one.metric)['unit']}".strip().replace("-", "\u2212")


def _value(value: float, metric: str, digits: int | None = None) -> str:
    how = manner(metric)
    return f"{value:.{how['digits'] if digits is None else digits}f} {how['unit']}".strip()


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _means(report: Report, group: str, view: str, metric: str) -> list[str]:
    found = [(row, summary(report, row, view, metric)) for row in rows_of(report, group)]
    return [f"{row.name}: {_value(cell.mean, metric)}." for row, cell in found if cell is not None]


def _gap(report: Report, group: str, view: str, metric: str, base: str) -> list[str]:
    """How far the best teacher is from the baseline: the size that gains are to be seen beside."""
    cells = [(row, summary(report, row, view, metric)) for row in rows_of(report, group)]
    sign = 1 if report.metrics[metric] == "higher" else -1
    start = next((cell.mean for row, cell in cells if row.name == base and cell), None)
    teachers = [(sign * cell.mean, row.name) for row, cell in cells if row.kind == "teacher" and cell]
    if start is None or not teachers:
        return []
    best, name = max(teachers)
    distance = best - sign * start
    # Higher is above; a better LPIPS is below.
    where = "above" if sign * distance >= 0 else "below"
    return [f"For scale: the best teacher, {name}, is {_value(abs(distance), metric)} {where} {base}."]
