"""One table for each group, as cells: what Markdown, LaTeX and the terminal all show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtkd.report import numbers
from mtkd.report.arrange import POOLED, baselines_of, groups, is_trained, rows_of
from mtkd.report.comparison import Comparison
from mtkd.report.content import Report, Row
from mtkd.report.notes import notes
from mtkd.report.statistics import Summary, summary

ONE_SEED = "†"
"""Mark of a comparison that speaks of two networks and not of methods."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: of the number or name.
        sd: its standard deviation over seeds, "" for none.
        rank: 1 for the best row of the group's own, 2 for the second, else 0; equal numbers share a rank.
    """

    text: str
    sd: str = ""
    rank: int = 0


@dataclass(frozen=True)
class Column:
    """Heading of a column: `over` is shared by neighbours, a data set; "" for none."""

    name: str
    over: str = ""


@dataclass(frozen=True)
class Table:
    """The table of one group.

    Attributes:
        group: its name, "" where all rows belong to every group.
        columns: the first names the row.
        references: rows of every group, which are not ranked.
        rows: the group's own.
        published: figures of others, in `published_columns`.
        notes: sentences under the table.
    """

    group: str
    columns: Sequence[Column]
    references: Sequence[Sequence[Cell]]
    rows: Sequence[Sequence[Cell]]
    published_columns: Sequence[Column] = ()
    published: Sequence[Sequence[Cell]] = field(default=())
    notes: Sequence[str] = ()


def tables(report: Report, found: Sequence[Comparison]) -> list[Table]:
    """The table of every group.

    Args:
        found: `comparisons(report)`.
    """
    return [_table(report, group, found) for group in groups(report)]


def places(report: Report) -> list[tuple[str, str]]:
    """(data set or `POOLED`, metric) of every column of scores: pooled first where there is more than one set."""
    pooled = [POOLED] if len(report.pooled) > 1 else []
    return [(name, metric) for name in [*pooled, *report.images] for metric in report.metrics]


def title(report: Report, dataset: str) -> str:
    """Heading of a data set: its images, and whether runs were validated on it."""
    if dataset == POOLED:
        return f"pooled ({sum(len(report.images[name]) for name in report.pooled)})"
    mark = ", validation" if dataset in report.validation else ""
    return f"{dataset} ({len(report.images[dataset])}{mark})"


def _table(report: Report, group: str, found: Sequence[Comparison]) -> Table:
    rows = rows_of(report, group)
    where = places(report)
    cells = {at: _scores(report, group, rows, *at) for at in where}
    columns = [Column("network"), Column("parameters"), Column("GMACs")]
    columns += [Column(numbers.heading(metric, report.metrics[metric]), title(report, name)) for name, metric in where]
    # Claims are pooled; where a report pools nothing, the comparisons of single sets are in the CSV alone.
    metric = next(iter(report.metrics))
    baselines = [row.name for row in baselines_of(report, group)] if report.pooled else []
    claims = {
        (one.row, one.baseline): one
        for one in found
        if (one.group, one.dataset) == (group, POOLED) and one.metric == metric
    }
    columns += [Column(f"{metric.upper()} over {name}") for name in baselines]
    lines = [
        [
            Cell(row.name),
            Cell(numbers.count(row.parameters)),
            Cell(numbers.count(row.gmacs)),
            *(cells[at][number] for at in where),
            *(_gain(claims.get((row.name, name))) for name in baselines),
        ]
        for number, row in enumerate(rows)
    ]
    own = [row.group == group for row in rows]
    published_columns, published = _published(report, where)
    return Table(
        group=group,
        columns=columns,
        references=[line for line, mine in zip(lines, own) if not mine],
        rows=[line for line, mine in zip(lines, own) if mine],
        published_columns=published_columns,
        published=published,
        notes=notes(report, group, found),
    )


def _scores(report: Report, group: str, rows: Sequence[Row], dataset: str, metric: str) -> list[Cell]:
    """The column of a metric, ranked as its numbers are shown: what looks equal shares a rank.

    A mean over fewer images than there are says over how many, and it and an infinite one have no rank: the images that
    a row lacks may be the hard ones. So may seeds that other rows of the group have.
    """
    found = [summary(report, row, dataset, metric) for row in rows]
    whole = sum(len(report.images[name]) for name in (report.pooled if dataset == POOLED else [dataset]))
    places_shown = numbers.digits(metric, [one.sd for one in found if one is not None])
    texts = ["-" if one is None else numbers.fixed(one.mean, places_shown) for one in found]
    sign = 1 if report.metrics[metric] == "higher" else -1
    own = [row.group == group and is_trained(row) for row in rows]
    most = max((one.seeds for one, trained in zip(found, own) if one is not None and trained), default=0)
    lacks = [_lacking(one, whole, most if trained else 0) for one, trained in zip(found, own)]
    ranked = [
        one is not None and row.group == group and not lack and math.isfinite(one.mean)
        for row, one, lack in zip(rows, found, lacks)
    ]
    values = {text: sign * float(text.replace(",", "")) for text, mine in zip(texts, ranked) if mine}
    order = sorted(set(values.values()), reverse=True)
    ranks = {text: order.index(value) + 1 for text, value in values.items()}
    return [
        Cell(
            text + lack,
            "" if one is None or one.sd != one.sd else numbers.fixed(one.sd, places_shown),
            ranks[text] if mine and ranks[text] < 3 and len(order) > 1 else 0,
        )
        for text, one, mine, lack in zip(texts, found, ranked, lacks)
    ]


def _lacking(one: Summary | None, images: int, seeds: int) -> str:
    """Of how many of the images and seeds a mean is, where it is not of all."""
    if one is None:
        return ""
    if one.images < images:
        return f" ({one.images} of {images} images)"
    return f" ({one.seeds} of {seeds} seeds)" if one.seeds < seeds else ""


def _gain(one: Comparison | None) -> Cell:
    if one is None:
        return Cell("")
    mark = ONE_SEED if one.about == "networks" else ""
    return Cell(f"{numbers.gain(one.gain, one.interval, one.metric)} {one.verdict}{mark}")


def _published(report: Report, where: Sequence[tuple[str, str]]) -> tuple[list[Column], list[list[Cell]]]:
    """Figures of others for what our columns show, a line for each name and source."""
    given = [one for one in report.published if (one.dataset, one.metric) in where]
    shown = [at for at in where if any((one.dataset, one.metric) == at for one in given)]
    values = {(one.name, one.source, one.dataset, one.metric): numbers.printed(one.value, one.metric) for one in given}
    columns = [Column("published"), Column("source")]
    columns += [Column(numbers.heading(metric, report.metrics[metric]), name) for name, metric in shown]
    lines = [
        [Cell(name), Cell(source), *(Cell(values.get((name, source, *at), "")) for at in shown)]
        for name, source in dict.fromkeys((one.name, one.source) for one in given)
    ]
    return (columns, lines) if lines else ([], [])
