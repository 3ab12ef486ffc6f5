"""Stored results -> `benchmarks/results/speed.md` and the section "Speed" of README.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- from benchmarks/results/speed_*.json -->", "<!-- end of the measured part -->"

Record = Mapping[str, Any]
"""A section as `speed.py` stores it: `Section.record()` with the machine, versions, commit and command."""


def write(root: Path, names: Sequence[str], results: Mapping[str, Mapping[str, Record]]) -> None:
    """Write both pages; `results` is device, as headings show it -> section name -> record."""
    (root / "benchmarks/results/speed.md").write_text(page(names, results), encoding="utf-8")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN in text:
        head, _, rest = text.partition(BEGIN)
        readme.write_text(f"{head}{BEGIN}\n{summary(results)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def stored(folder: Path) -> dict[str, dict[str, Record]]:
    """The results in `folder`, device as headings show it -> section name -> record; CUDA is there without results."""
    found = {"CPU": load(folder / "speed_cpu.json")}
    for path in sorted(folder.glob("speed_cuda_*.json")):
        sections = load(path)
        found["CUDA, " + next(iter(sections.values()))["environment"]["device"]] = sections
    return found if len(found) > 1 else {**found, "CUDA": {}}


def load(path: Path) -> dict[str, Record]:
    """Stored sections, none when there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def page(names: Sequence[str], results: Mapping[str, Mapping[str, Record]]) -> str:
    """Every table of every device; what was not measured says so."""
    lines = ["# Speed", "", "Written by `python benchmarks/speed.py` from the JSON files beside it.", ""]
    for device, sections in results.items():
        lines += [f"# {device}", ""]
        if not sections:
            lines += ["Not measured.", ""]
        for name in names:
            if name in sections:
                lines += [table(sections[name]), ""]
            elif sections:
                lines += [f"## {name}", "", "Not measured.", ""]
    return "\n".join(lines)


def table(record: Record) -> str:
    """One section as Markdown: setting, rows, aims, notes, and where it was measured."""
    lines = [f"## {record['title']}", "", record["setting"], ""]
    if record["rows"]:
        columns = {key: [row[key] for row in record["rows"]] for key in record["rows"][0]}
        marks = ["---" if all(isinstance(value, str) for value in values) else "---:" for values in columns.values()]
        lines += [_line(columns), f"|{'|'.join(marks)}|"]
        lines += [_line(map(shown, row)) for row in zip(*columns.values(), strict=True)]
        lines.append("")
    for aim in record["aims"]:
        sign, verdict = ("at least" if aim["at_least"] else "at most"), ("met" if aim["met"] else "**missed**")
        lines.append(f"- {aim['about']}: {shown(aim['measured'])}, aim {sign} {shown(aim['wanted'])}: {verdict}.")
    lines += [f"- {note}" for note in record["notes"]]
    return "\n".join([*lines, "", measured_on([record])])


def summary(results: Mapping[str, Mapping[str, Record]]) -> str:
    """The promises and what came out, one row each."""
    aims: dict[str, dict[str, Any]] = {}
    for device, sections in results.items():
        for record in sections.values():
            for aim in record["aims"]:
                aims.setdefault(aim["about"], {})[device] = aim
    if not aims:
        return "Not measured yet."
    lines = [_line(["ratio", "aim", *results]), "|---|---:|" + "---:|" * len(results)]
    for about, found in aims.items():
        bounds = dict.fromkeys(f"{'>=' if a['at_least'] else '<='} {shown(a['wanted'])}" for a in found.values())
        lines.append(_line([about, " / ".join(bounds), *(_outcome(found.get(device)) for device in results)]))
    for sections in results.values():
        if sections:
            lines += ["", measured_on(list(sections.values()))]
    return "\n".join(lines)


def measured_on(records: Sequence[Record]) -> str:
    """Machine, versions, commit and command in one sentence."""
    facts = [record["environment"] for record in records]
    machine = _all(f"{f['device']} ({record['threads']} CPU threads)" for f, record in zip(facts, records, strict=True))
    return (
        f"Measured on {machine}, torch {_all(f['versions']['torch'] for f in facts)}, commit "
        f"{_all(str(f['commit']) for f in facts)}, with {_commands(records)}."
    )


def shown(value: Any) -> str:
    """A cell: three significant digits for fractions, thousands separated."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,d}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _outcome(aim: Mapping[str, Any] | None) -> str:
    if aim is None:
        return "not measured"
    return shown(aim["measured"]) + ("" if aim["met"] else " (missed)")


def _commands(records: Sequence[Record]) -> str:
    commands = dict.fromkeys(record["command"] for record in records)
    if len(commands) > 2:
        return f"`{next(iter(commands)).partition(' --')[0]} --only NAME`, section by section"
    return _all(f"`{command}`" for command in commands)


def _all(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
