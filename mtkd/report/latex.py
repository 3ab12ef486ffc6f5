"""Tables in LaTeX, with the packages booktabs and graphicx."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from mtkd.report.layout import Cell, Column, Table

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$^{\dagger}$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "µ": r"$\mu$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_STYLES = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}


def latex(tables: Sequence[Table]) -> str:
    r"""A `table*` for each group, as wide as the page, with published figures below.

    The document needs `\usepackage{booktabs,graphicx}`.
    """
    return "\n".join("\n".join(_one(table)) + "\n" for table in tables)


def escaped(text: str) -> str:
    r"""`text` as LaTeX sets it.

    Example:
        >>> escaped("edsr_m & 100 %")
        'edsr\\_m \\& 100 \\%'
    """
    return "".join(_ESCAPES.get(sign, sign) for sign in " ".join(text.split()))


def _one(table: Table) -> Iterator[str]:
    yield r"% needs \usepackage{booktabs,graphicx}"
    yield r"\begin{table*}"
    yield r"\centering\small"
    yield f"\\caption{{{escaped(' '.join([f'{table.group}.' if table.group else '', *table.notes]).strip())}}}"
    yield from _tabular(table.columns, [table.references, table.rows], left=1)
    if table.published:
        yield r"\par\medskip Published figures, of others, under the same setting as far as is known:\par\smallskip"
        yield from _tabular(table.published_columns, [table.published], left=2)
    yield r"\end{table*}"


def _tabular(columns: Sequence[Column], blocks: Sequence[Sequence[Sequence[Cell]]], *, left: int) -> Iterator[str]:
    """A tabular whose first `left` columns hold words, with a rule between `blocks`."""
    yield r"\resizebox{\textwidth}{!}{%"
    yield f"\\begin{{tabular}}{{{'l' * left}{'r' * (len(columns) - left)}}}"
    yield r"\toprule"
    above, rules, start = [], [], 1
    for over, same in groupby(columns, key=lambda column: column.over):
        width = len(list(same))
        above.append(f"\\multicolumn{{{width}}}{{c}}{{{escaped(over)}}}")
        if over:
            rules.append(f"\\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    if rules:
        yield " & ".join(above) + r" \\"
        yield " ".join(rules)
    yield " & ".join(escaped(column.name) for column in columns) + r" \\"
    for block in blocks:
        if block:
            yield r"\midrule"
        for line in block:
            yield " & ".join(map(_cell, line)) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}}"


def _cell(cell: Cell) -> str:
    text = _STYLES[cell.rank].format(escaped(cell.text))
    # After a line's end TeX would take these for an argument of it.
    text = f"{{}}{text}" if text.startswith(("[", "*")) else text
    return f"{text} {{\\scriptsize $\\pm$ {escaped(cell.sd)}}}" if cell.sd else text
