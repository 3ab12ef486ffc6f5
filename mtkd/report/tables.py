"""The tables of a report in every form.

Comparisons take seconds where there are many: give `found` where they are there already.
"""

from __future__ import annotations

from collections.abc import Sequence

from mtkd.report import console, layout, longform
from mtkd.report.comparison import Comparison
from mtkd.report.content import Report
from mtkd.report.latex import latex as _latex
from mtkd.report.markdown import markdown as _markdown
from mtkd.report.statistics import comparisons


def markdown(report: Report, found: Sequence[Comparison] | None = None) -> str:
    """A table for each group with its sentences, and published figures beside it.

    Args:
        found: `comparisons(report)`, made where it is None; so everywhere here.

    Raises:
        MtkdError: scores are not of the shape (seeds, images); so everywhere here.
    """
    return _markdown(_tables(report, found))


def latex(report: Report, found: Sequence[Comparison] | None = None) -> str:
    """The same for a paper; it needs the package booktabs."""
    return _latex(_tables(report, found))


def show(report: Report, found: Sequence[Comparison] | None = None) -> None:
    """The same on the terminal, without what others have published."""
    console.show(_tables(report, found))


def csv_values(report: Report) -> str:
    """Every score in long form: `longform.VALUES` are the columns."""
    return longform.values(report)


def csv_comparisons(report: Report, found: Sequence[Comparison] | None = None) -> str:
    """Every comparison, those of single data sets too: `longform.COMPARISONS` are the columns."""
    return longform.comparisons(comparisons(report) if found is None else found)


def _tables(report: Report, found: Sequence[Comparison] | None) -> list[layout.Table]:
    return layout.tables(report, comparisons(report) if found is None else found)
