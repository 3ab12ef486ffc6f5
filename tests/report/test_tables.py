"""Tables hold the report's numbers, in every form, and say what must be said beside them."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtkd.report import longform, numbers, tables
from mtkd.report.arrange import POOLED
from mtkd.report.comparison import Comparison
from mtkd.report.content import Published, Report, Row
from mtkd.report.statistics import comparisons

SIZES = {"Set5": 5, "Kodak24": 24, "General100": 8}
GAINS = {"scratch": 0.0, "output_kd": 0.03, "MTKD & co. #1": 0.2, "100% <x> | y": 0.2}


@pytest.fixture(scope="module")
def report() -> Report:
    """Four students with three seeds, bicubic and a teacher beside them; one validation set."""
    random = np.random.default_rng(0)

    def scores(gain: float, seeds: int) -> dict[str, dict[str, np.ndarray]]:
        found = {}
        for dataset, size in SIZES.items():
            alike = np.random.default_rng(size).normal(28, 3, size) + gain
            psnr = alike + random.normal(0, 0.01, (seeds, 1)) + random.normal(0, 0.02, (seeds, size))
            found[dataset] = {"psnr": psnr, "ssim": psnr / 40}
        return found

    rows = [
        Row(name="bicubic", kind="baseline", scores=scores(-2, 1)),
        Row(name="teacher", kind="teacher", scores=scores(1, 1), parameters=1_517_571, gmacs=114.4),
        *(
            Row(name=name, group="EDSR x4", seeds=(1, 2, 3), scores=scores(gain, 3), parameters=31_043, gmacs=2.31)
            for name, gain in GAINS.items()
        ),
    ]
    return Report(
        title="t",
        scale=4,
        rows=rows,
        images={name: [f"{name}_{i}" for i in range(size)] for name, size in SIZES.items()},
        metrics={"psnr": "higher", "ssim": "higher"},
        pooled=("Set5", "Kodak24"),
        validation=("General100",),
        baselines=("scratch", "output_kd"),
        published=[
            Published(name="FAKD", dataset="Set5", metric="psnr", value=32.3, source="A paper, Table 2"),
            Published(name="FAKD", dataset="Kodak24", metric="ssim", value=0.895, source="A paper, Table 2"),
            Published(name="other", dataset="Urban100", metric="psnr", value=26.15, source="Not shown here"),
        ],
    )


@pytest.fixture(scope="module")
def found(report: Report) -> list[Comparison]:
    return comparisons(report)


def grid(text: str) -> list[list[str]]:
    """Cells of the first Markdown table, without its rule."""
    lines = text[text.index("| network") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(line) for line in cells}) == 1
    return [cells[0], *cells[2:]]


def test_markdown_holds_the_means_the_deviations_and_the_ranks(report: Report, found: list[Comparison]) -> None:
    head, *lines = grid(tables.markdown(report, found))
    assert [re.sub(r"\\(.)", r"\1", line[0]) for line in lines] == ["bicubic", "teacher", *GAINS]
    column = head.index("Kodak24 (24) PSNR")
    for line, row in zip(lines, report.rows):
        means = row.scores["Kodak24"]["psnr"].mean(1)
        mean, *sd = re.sub("[*]|</?u>", "", line[column]).split(" ± ")
        assert float(mean) == pytest.approx(means.mean(), abs=0.0005001)
        assert [float(one) for one in sd] == pytest.approx([means.std(ddof=1)] if len(means) > 1 else [], abs=0.0005001)
        assert line[1] == {"bicubic": "-", "teacher": "1,517,571"}.get(row.name, "31,043")
    order = sorted(report.rows[2:], key=lambda row: -row.scores["Kodak24"]["psnr"].mean())
    shown = {row.name: line[column] for line, row in zip(lines, report.rows)}
    assert shown[order[0].name].startswith("**") and shown[order[1].name].startswith("<u>")
    assert sum("**" in cell for cell in shown.values()) == sum("<u>" in cell for cell in shown.values()) == 1
    assert not re.search("[*]|<u>", shown["teacher"]), "the teacher is ahead, and is no one's rival"


def test_markdown_holds_gains_over_every_baseline_with_their_verdicts(report: Report, found: list[Comparison]) -> None:
    head, *lines = grid(tables.markdown(report, found))
    claims = {(one.row, one.baseline): one for one in found if one.dataset == POOLED and one.metric == "psnr"}
    for baseline, name in (("scratch", "PSNR over scratch"), ("output_kd", r"PSNR over output\_kd")):
        for line, row in zip(lines, report.rows):
            cell = line[head.index(name)]
            if (row.name, baseline) not in claims:
                assert cell == ""
                continue
            one = claims[row.name, baseline]
            assert cell.endswith(one.verdict)
            values = [float(value) for value in re.findall(r"[+-]?\d+\.\d+", cell)]
            assert values == pytest.approx([one.gain, *one.interval], abs=0.0005001)
    assert {one.verdict for one in claims.values()} == {"better", "cannot be told apart"}


def test_what_must_be_said_stands_under_the_table(report: Report, found: list[Comparison]) -> None:
    text = tables.markdown(report, found)
    assert "over 3 seeds" in text and "29 images of Set5 + Kodak24" in text
    assert f"all {2 * 5} comparisons" in text
    smallest = max(one.detectable for one in found if one.dataset == POOLED and one.metric == "psnr")
    assert f"A true gain of {smallest:.2g} dB would have been seen" in text
    assert re.search(r"Cannot be told apart from it .*: (MTKD & co. #1|100% \\<x\\> \\\| y)\.\n", text)
    assert "validated on General100" in text and "General100 (8, validation) PSNR" in text
    assert "† One seed" not in text


def test_one_seed_is_marked_as_a_statement_about_networks(report: Report) -> None:
    rows = []
    for row in report.rows:
        first = {name: {metric: v[:1] for metric, v in metrics.items()} for name, metrics in row.scores.items()}
        rows.append(replace(row, seeds=row.seeds[:1], scores=first))
    text = tables.markdown(replace(report, rows=rows))
    assert "†" in grid(text)[-1][-1]
    assert "† One seed: the interval is over images alone" in text and "±" not in text


def test_images_left_out_are_counted(report: Report) -> None:
    scores = {
        name: {metric: v.copy() for metric, v in metrics.items()} for name, metrics in report.rows[3].scores.items()
    }
    scores["Kodak24"]["psnr"][0, 3] = math.nan
    rows = [*report.rows[:3], replace(report.rows[3], scores=scores), *report.rows[4:]]
    assert "1 image left out of every gain" in tables.markdown(replace(report, rows=rows))


def test_published_figures_of_the_same_sets_stand_beside_ours(report: Report, found: list[Comparison]) -> None:
    text = tables.markdown(report, found)
    block = text[text.index("| published") :]
    assert "| FAKD | A paper, Table 2 | 32.30 | 0.8950 |" in block
    assert "Not shown here" not in text


def test_a_report_that_compares_nothing_has_a_table(report: Report) -> None:
    plain = replace(report, baselines=(), pooled=(), published=())
    text = tables.markdown(plain)
    assert "over scratch" not in text and len(grid(text)) == 1 + len(report.rows)
    assert "No data sets are pooled" in tables.markdown(replace(plain, baselines=("scratch",)))
    assert "No row of this group is called nobody" in tables.markdown(replace(report, baselines=("nobody",)))
    single = replace(report, rows=[replace(row, group="") for row in report.rows[2:]])
    assert "###" not in tables.markdown(single) and "**" in tables.markdown(single)


def test_latex_is_balanced_and_holds_the_same_numbers(report: Report, found: list[Comparison]) -> None:
    text = tables.latex(report, found)
    begun, ended = (re.findall(rf"\\{word}{{(\w+\*?)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended) == ["table*", "tabular", "tabular"]
    bare = re.sub(r"\\[\\{}%&#_$]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    for columns, body in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", text, flags=re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                spans = sum(int(width) - 1 for width in re.findall(r"\\multicolumn{(\d+)}", line))
                assert len(re.split(r"(?<!\\)&", line)) + spans == len(columns)
    assert r"MTKD \& co. \#1" in text and r"100\% \textless{}x\textgreater{} \textbar{} y" in text
    assert r"output\_kd" in text
    head, *lines = grid(tables.markdown(report, found))
    bold = re.search(r"[*]{2}([\d.]+)", " ".join(line[3] for line in lines))
    assert bold and rf"\textbf{{{bold[1]}}}" in text


def test_latex_compiles(report: Report, found: list[Comparison], tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here; the test above holds the structure")
    preamble = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    document = f"{preamble}\n{tables.latex(report, found)}\n\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_the_csv_of_values_gives_every_score_back(report: Report) -> None:
    scores = {
        name: {metric: v.copy() for metric, v in metrics.items()} for name, metrics in report.rows[2].scores.items()
    }
    scores["Set5"]["psnr"][1, 2] = math.nan
    broken = replace(report, rows=[*report.rows[:2], replace(report.rows[2], scores=scores), *report.rows[3:]])
    lines = list(csv.DictReader(io.StringIO(tables.csv_values(broken))))
    read = {(line["row"], line["seed"], line["dataset"], line["image"], line["metric"]): line for line in lines}
    assert len(read) == len(lines) == 2 * sum(SIZES.values()) * (2 + 3 * 4) - 1
    for row in broken.rows:
        for dataset, metrics in row.scores.items():
            for metric, values in metrics.items():
                for seed, line in zip(row.seeds, values):
                    for image, value in zip(report.images[dataset], line):
                        at = (row.name, str(seed), dataset, image, metric)
                        assert math.isnan(value) and at not in read or float(read[at]["value"]) == value
    assert {line["dataset"] for line in lines if line["validation"] == "1"} == {"General100"}


def test_the_csv_of_comparisons_gives_every_number_back(report: Report, found: list[Comparison]) -> None:
    lines = list(csv.DictReader(io.StringIO(tables.csv_comparisons(report, found))))
    assert tuple(lines[0]) == longform.COMPARISONS
    for line, one in zip(lines, found, strict=True):
        assert (line["row"], line["baseline"], line["metric"]) == (one.row, one.baseline, one.metric)
        assert line["dataset"] == (one.dataset or "pooled")
        assert (float(line["low"]), float(line["high"])) == one.interval
        assert (float(line["gain"]), float(line["p_corrected"]), int(line["wins"])) == (
            one.gain,
            one.p_corrected,
            one.wins,
        )
        assert (line["verdict"], line["about"]) == (one.verdict, "methods")


def test_the_terminal_cuts_no_number(
    report: Report, found: list[Comparison], capsys: pytest.CaptureFixture[str]
) -> None:
    tables.show(report, found)
    shown = capsys.readouterr().out
    assert "…" not in shown and "A true gain of" in shown
    _, *lines = grid(tables.markdown(report, found))
    for line in lines:
        for cell in line[3:]:
            assert re.sub(r"[*]|</?u>", "", cell) in shown


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (-0.0001, "0.000"), (-0.0312, "-0.031"), (1234.5, "1,234.500")]
)
def test_numbers_have_no_minus_before_zero(value: float, text: str) -> None:
    assert numbers.fixed(value, 3) == text


def test_a_bound_above_zero_never_looks_like_zero() -> None:
    assert numbers.gain(0.02, (0.0002, 0.04), "psnr") == "+0.0200 [+0.0002, +0.0400]"
    assert numbers.gain(0.02, (-0.00004, 0.04), "psnr") == "+0.02000 [-0.00004, +0.04000]"
    assert numbers.gain(0.02, (math.nan, math.nan), "psnr") == "+0.020"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_mean_that_lacks_an_image_has_no_rank(report: Report, value: float) -> None:
    """The image that it lacks may be the hard one."""
    best = next(row for row in report.rows if row.kind == "student")
    scores = {name: {metric: np.array(one) for metric, one in of.items()} for name, of in best.scores.items()}
    for of in scores.values():
        of["psnr"] += 10
    name = report.pooled[0]
    scores[name]["psnr"][:, 0] = value
    given = replace(report, rows=[replace(row, scores=scores) if row is best else row for row in report.rows])
    whole = sum(len(report.images[name]) for name in report.pooled)
    line = next(
        line for line in tables.markdown(given, comparisons(given)).splitlines() if line.startswith(f"| {best.name} ")
    )
    assert "**" not in line.split("|")[4]
    assert (f"({whole - 1} of {whole} images)" in line) == math.isnan(value)
