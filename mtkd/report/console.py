"""Tables on the terminal; no number is cut, however narrow the window is."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from mtkd.report import numbers
from mtkd.report.arrange import POOLED
from mtkd.report.comparison import Comparison
from mtkd.report.layout import Cell, Table

_STYLES = {0: "", 1: "bold", 2: "underline"}


def show(tables: Sequence[Table]) -> None:
    """Print the tables, each with its notes."""
    for table in tables:
        grid = Grid(title=Text(table.group) if table.group else None)
        for number, column in enumerate(table.columns):
            head = Text(f"{column.over}\n{column.name}".strip())
            grid.add_column(head, justify="right" if number else "left", no_wrap=True)
        for lines in (table.references, table.rows):
            for line in lines:
                grid.add_row(*map(_cell, line), end_section=line is lines[-1])
        _print(grid)
        for note in table.notes:
            print(note)


def show_comparisons(found: Sequence[Comparison], *, title: str = "") -> None:
    """Print a line for each comparison."""
    grid = Grid(title=Text(title) if title else None)
    for name in ("set", "images", "metric", "A", "B", "gain of A", "95 % interval", "p", "wins", "verdict"):
        grid.add_column(name, justify="left" if name in ("set", "metric", "verdict") else "right", no_wrap=True)
    for one in found:
        places = numbers.digits(one.metric, [0.1 * 10 ** -numbers.digits(one.metric, [])])
        shown = numbers.gain(one.gain, one.interval, one.metric)
        gain, _, interval = shown.partition(" ")
        grid.add_row(
            Text("all together" if one.dataset == POOLED else one.dataset),
            str(one.images),
            one.metric,
            numbers.fixed(one.mean, places),
            numbers.fixed(one.baseline_mean, places),
            gain,
            Text(interval or "-"),
            numbers.p_value(one.p_corrected),
            f"{one.wins}/{one.images}",
            one.verdict,
            end_section=one.dataset == POOLED,
        )
    _print(grid)


def _cell(cell: Cell) -> Text:
    text = Text(cell.text, _STYLES[cell.rank])
    return Text.assemble(text, f" ± {cell.sd}") if cell.sd else text


def _print(grid: RenderableType) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.width = max(console.width, Console(width=10_000).measure(grid).maximum)
    console.print(grid)
