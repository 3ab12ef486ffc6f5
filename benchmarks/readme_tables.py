"""Write the tables of README and docs/results.md from the kept results of the grids: python benchmarks/readme_tables.py

Each stands between two comments, `<!-- table NAME -->` and `<!-- end -->`; a test holds the pages to this. With
`<!-- table NAME: WORDS -->` only those groups of rows are shown whose title has these words. `<!-- table demo -->` is
that of `mtkd demo`, whose `metrics.json` is kept as `benchmarks/results/demo_cpu.json`. What the text says of rows
"with all pairs of rows compared" is printed by

    python benchmarks/readme_tables.py --pairs cpu_x4 "edsr_32x4, x4, 24,000"
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from mtkd.bench.gather import gather
from mtkd.bench.grid import load_grid
from mtkd.bench.jobs import plan
from mtkd.demo import markdown
from mtkd.report.arrange import POOLED, groups, rows_of
from mtkd.report.comparison import Comparison, detectable
from mtkd.report.content import Report
from mtkd.report.numbers import gain as written_gain
from mtkd.report.statistics import comparisons, summary

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "benchmarks/results/demo_cpu.json"
PAGES = (ROOT / "README.md", ROOT / "docs/results.md")
METRIC = "psnr"
PLACE = re.compile(r"(<!-- table (\w+)(?:: ([^\n]+))? -->\n).*?(<!-- end -->)", re.DOTALL)


@cache
def results(name: str) -> tuple[Report, list[Comparison]]:
    """The report of the kept results of the grid `name`, and its comparisons."""
    grid = load_grid(ROOT / f"benchmarks/{name}.yml")
    report = gather(plan(grid, ROOT / "benchmarks/results" / name, check=False), grid.scales[0])
    return report, comparisons(report)


def table(name: str, words: str = "") -> str:
    """Groups of the grid `name` that have a number and `words` in their title: PSNR on the pooled sets, gains over the
    first two baselines. Of "demo": what `mtkd demo` printed.
    """
    if name == "demo":
        return markdown(json.loads(DEMO.read_text(encoding="utf-8"))["table"])
    report, found = results(name)
    parts = []
    for group in groups(report):
        rows = [row for row in rows_of(report, group) if row.group == group]
        if len(rows) < 2 or words not in group:
            continue
        own = [one for one in found if (one.group, one.dataset, one.metric) == (group, POOLED, METRIC)]
        first, *others = [name for name in report.baselines if any(row.name == name for row in rows)]
        second = others[-1] if others else None
        columns = [group, "PSNR-Y (dB)", f"over {first}", *([f"over {second}"] if second else [])]
        lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
        wholes = {row.name: summary(report, row, POOLED, METRIC) for row in rows}
        seeds = max(whole.seeds for whole in wholes.values() if whole is not None)
        for row in rows:
            whole = wholes[row.name]
            assert whole is not None
            fewer = f" ({whole.seeds} seeds)" if 1 < whole.seeds < seeds else ""
            cells = [
                row.name + fewer,
                f"{whole.mean:.3f} ± {whole.sd:.3f}" if whole.seeds > 1 else f"{whole.mean:.3f} †",
            ]
            cells += [_gain(own, row.name, base) for base in (first, second) if base]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n\n" + _note(report, own, len(rows)))
    if not parts:
        raise SystemExit(f"{name} has no rows in a group called {words!r}.")
    return "\n".join(parts)


def pairs(name: str, words: str) -> list[Comparison]:
    """Every pair of rows of the grid `name` in the groups with `words` in their title, all corrected together."""
    report, _ = results(name)
    rows = [row for row in report.rows if words in row.group]
    if not rows:
        raise SystemExit(f"{name} has no rows in a group called {words!r}.")
    own = {METRIC: report.metrics[METRIC]}
    every = replace(report, rows=rows, baselines=[row.name for row in rows], metrics=own)
    return [one for one in comparisons(every) if one.dataset == POOLED]


def _gain(found: list[Comparison], row: str, base: str) -> str:
    for one in found:
        if (one.row, one.baseline) == (row, base):
            gain, (low, high) = one.gain, one.interval
        elif (one.row, one.baseline) == (base, row):
            gain, (low, high) = -one.gain, (-one.interval[1], -one.interval[0])
        else:
            continue
        text = written_gain(gain, (low, high), METRIC)
        return f"**{text}**" if (low > 0 or high < 0) and one.seeds > 1 else text
    return ""


def _note(report: Report, found: list[Comparison], rows: int) -> str:
    seeds, images = max(one.seeds for one in found), max(one.images for one in found)
    if seeds == 1:
        return (
            f"† One seed, {images} images of {', '.join(report.pooled)}; intervals of 95 % over images alone, which "
            "say nothing of another seed.\n"
        )
    return (
        f"{seeds} seeds, {images} images of {', '.join(report.pooled)}; intervals of 95 % over seeds and images for "
        f"all {found[0].family} comparisons together, bold where zero is outside. A gain of "
        f"{detectable(found):.2f} dB would have been seen in each with a chance of 80 %.\n"
    )


def written(text: str) -> str:
    """`text` of a page with its tables made again."""
    return PLACE.sub(lambda place: place[1] + table(place[2], place[3] or "") + place[4], text)


def main() -> None:
    """Renew the pages, or print pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs=2, metavar=("GRID", "WORDS"), help="print all pairs of rows of these groups")
    given = parser.parse_args()
    if given.pairs:
        for one in pairs(*given.pairs):
            low, high = one.interval
            print(f"{one.row} over {one.baseline}: {one.gain:+.4f} [{low:+.4f}, {high:+.4f}]")
        return
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
