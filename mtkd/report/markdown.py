"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from mtkd.report.layout import Cell, Column, Table

_STYLES = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}


def markdown(tables: Sequence[Table]) -> str:
    """The tables one after another, each under its group's name."""
    return "\n".join(_one(table) for table in tables)


def _one(table: Table) -> str:
    parts = [f"### {_escaped(table.group)}\n"] if table.group else []
    parts.append(_grid(table.columns, [*table.references, *table.rows], left=1))
    parts += [f"{_escaped(note)}\n" for note in table.notes]
    if table.published:
        parts.append("Published figures, of others, under the same setting as far as is known:\n")
        parts.append(_grid(table.published_columns, table.published, left=2))
    return "\n".join(parts)


def _grid(columns: Sequence[Column], lines: Sequence[Sequence[Cell]], *, left: int) -> str:
    """A table whose first `left` columns hold words."""
    heads = [_escaped(f"{column.over} {column.name}".strip()) for column in columns]
    rules = ["---" if number < left else "---:" for number in range(len(columns))]
    rows = [heads, rules, *([_cell(cell) for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(cell: Cell) -> str:
    text = _STYLES[cell.rank].format(_escaped(cell.text))
    return f"{text} ± {cell.sd}" if cell.sd else text


def _escaped(text: str) -> str:
    """`text` that Markdown shows as it is."""
    for sign in "\\`*_<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
