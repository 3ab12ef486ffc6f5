"""Stored results -> `benchmarks/results/speed.md` and the section "Speed" of README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- from benchmarks/results/speed_*.json -->", "<!-- end of the measured part -->"


def write(root: Path, names: Sequence[str], results: dict[str, dict[str, Any]]) -> None:
    """Write both pages; `results` is device -> section name -> record."""
    page = ["# Speed", "", "Written by `python benchmarks/speed.py` from the JSON files beside it.", ""]
    for device, sections in results.items():
        page += [f"# {device.upper()}", ""]
        if not sections:
            page += ["Not measured.", ""]
        for name in names:
            if name in sections:
                page += [table(sections[name]), ""]
            elif sections:
                page += [f"## {name}", "", "Not measured.", ""]
    (root / "benchmarks/results/speed.md").write_text("\n".join(page), encoding="utf-8")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN in text:
        head, _, rest = text.partition(BEGIN)
        readme.write_text(f"{head}{BEGIN}\n{summary(results)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table(record: dict[str, Any]) -> str:
    """One section as Markdown: setting, rows, aims, notes, and where it was measured."""
    facts = record["environment"]
    lines = [f"## {record['title']}", "", record["setting"], ""]
    if record["rows"]:
        keys = list(record["rows"][0])
        lines += ["| " + " | ".join(keys) + " |", "|---" + "|---:" * (len(keys) - 1) + "|"]
        lines += ["| " + " | ".join(shown(row[key]) for key in keys) + " |" for row in record["rows"]]
        lines.append("")
    for aim in record["aims"]:
        sign, verdict = ("at least" if aim["at_least"] else "at most"), ("met" if aim["met"] else "**missed**")
        lines.append(f"- {aim['about']}: {shown(aim['measured'])}, aim {sign} {shown(aim['wanted'])}: {verdict}.")
    lines += [f"- {note}" for note in record["notes"]]
    lines += ["", measured_on(record, facts)]
    return "\n".join(lines)


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The promises and what came out, one row each."""
    lines = ["| ratio | aim | CPU | CUDA |", "|---|---:|---:|---:|"]
    aims: dict[str, dict[str, Any]] = {}
    for device, sections in results.items():
        for record in sections.values():
            for aim in record["aims"]:
                aims.setdefault(aim["about"], {"aim": aim})[device] = aim
    for about, found in aims.items():
        aim = found["aim"]
        bound = f"{'>=' if aim['at_least'] else '<='} {shown(aim['wanted'])}"
        cells = [
            (shown(found[device]["measured"]) + ("" if found[device]["met"] else " (missed)"))
            if device in found
            else "not measured"
            for device in ("cpu", "cuda")
        ]
        lines.append(f"| {about} | {bound} | {' | '.join(cells)} |")
    for sections in results.values():
        for record in list(sections.values())[:1]:
            lines += ["", measured_on(record, record["environment"])]
    return "\n".join(lines)


def measured_on(record: dict[str, Any], facts: dict[str, Any]) -> str:
    """Machine, versions, commit and command in one sentence."""
    return (
        f"Measured on {facts['device']} ({record['threads']} CPU threads), torch {facts['versions']['torch']}, commit "
        f"{facts['commit']}, with `{record['command']}`."
    )


def shown(value: Any) -> str:
    """A cell: three significant digits for fractions, thousands separated."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,d}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
