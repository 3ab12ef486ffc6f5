"""The report page without a browser: its parts, its data, and that foreign names stay text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtkd.contracts import MtkdError
from mtkd.report.answer import answers
from mtkd.report.content import Report, Row
from mtkd.report.page import render, write_page
from mtkd.report.payload import payload
from mtkd.report.statistics import comparisons, summary
from tests.report.sample import STUDENTS, demo_images, make_report, renamed

EVIL = (
    """</script><script>window.hacked = 1</script> "quoted" 'too' <img src=x onerror="window.hacked = 2"> {{ 7 * 7 }}"""
)
NOTHING = Report(title="Empty", scale=2, rows=[], images={}, metrics={})


class Read(HTMLParser):
    """What a browser would make of a page: tags with their attributes, ids, and the text of scripts and of the rest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def ids(self) -> list[str]:
        return [found for _, attributes in self.tags if (found := attributes.get("id"))]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report(
        demo_images(2, side=96),
        groups={"S x4": 0.0, "M x4": 0.05},
        students={name: STUDENTS[name] for name in ("scratch", "output KD, 1:1", "MTKD, ours")},
        shown=1,
    )


@pytest.fixture(scope="module")
def page(report: Report) -> Read:
    return Read(render(report))


def test_every_part_is_there_and_its_links_lead_somewhere(page: Read) -> None:
    parts = {"answer", "tables", "viewer", "differences", "bands", "costs", "curves", "published", "protocol"}
    assert parts <= set(page.ids) and len(page.ids) == len(set(page.ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {f"#{part}" for part in parts} == set(links)
    assert "lang" in dict(page.tags)["html"]


def test_nothing_is_asked_of_a_network(page: Read) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base") and "src" not in attributes, tag
        assert not any(name.startswith("on") for name in attributes)
    code = page.scripts[1]
    for word in ("http://", "https://", "fetch(", "XMLHttpRequest", "import(", "innerHTML", "eval("):
        assert word not in code.replace("http://www.w3.org/2000/svg", "")


def test_the_policy_allows_the_one_script_alone(page: Read) -> None:
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy and "unsafe-eval" not in policy
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert re.search(r"script-src ([^;]*)", policy)[1] == f"'sha256-{digest}'"  # pyright: ignore[reportOptionalSubscript]
    assert len(page.scripts) == 2


def test_the_data_are_those_of_the_report(page: Read, report: Report) -> None:
    data = page.data
    assert [row["name"] for row in data["rows"]] == [row.name for row in report.rows]
    for known, row in zip(data["rows"], report.rows, strict=True):
        for view, name in enumerate([""]):  # the one set is what is pooled
            for metric, key in enumerate(report.metrics):
                cell = summary(report, row, name, key)
                assert cell is not None and known["cells"][view][metric]["mean"] == pytest.approx(cell.mean, rel=1e-5)
        for place, name in enumerate(report.images):
            expected = np.mean(row.scores[name]["psnr"], axis=0)
            np.testing.assert_allclose(known["images"][place][0], expected, rtol=1e-5)
        assert [len(curve["values"]) for curve in known["curves"]] == [len(curve.values) for curve in row.curves]
    compared = [one for one in comparisons(report) if one.dataset == ""]
    assert [(one["row"], one["verdict"]) for one in data["comparisons"]] == [(one.row, one.verdict) for one in compared]
    assert data["groups"][1]["name"] == "M x4"
    assert {data["rows"][at]["group"] for at in data["groups"][1]["rows"]} == {"", "M x4"}


def test_each_image_is_embedded_once(page: Read, report: Report) -> None:
    data = page.data
    assert len(data["blobs"]) == len(set(data["blobs"]))
    (picture,) = data["pictures"]
    # Ground truth, and one layer for each row: the bicubic one is the row of that name, not a second layer.
    assert len(picture["layers"]) == 1 + len(report.rows)
    assert {layer["image"] for layer in picture["layers"]} == set(range(len(data["blobs"])))


def test_the_answer_says_what_the_numbers_say(page: Read, report: Report) -> None:
    compared = comparisons(report)
    for answer in answers(report, compared):
        mine = [
            one
            for one in compared
            if (one.group, one.dataset, one.metric, one.baseline) == (answer.group, "", "psnr", "scratch")
            and one.row in STUDENTS
        ]
        for verdict, rows in (("better", answer.better), ("worse", answer.worse)):
            assert {name for name, _ in rows} == {one.row for one in mine if one.verdict == verdict}
        assert len(answer.better) + len(answer.worse) + len(answer.alike) == len(mine) == 2
        gains = dict([*answer.better, *answer.worse, *answer.alike])
        ours = next(one.gain for one in mine if one.row == "MTKD, ours")
        assert gains["MTKD, ours"] == f"{ours:+.3f} dB"
        assert answer.question == "Against scratch, by PSNR on Kodak (2 images):"
        assert answer.question in page.text
    assert "Not complete yet: 1 planned result is missing." in page.text
    assert "output KD, 1:1, seed 40: not trained yet" in page.text


def test_foreign_text_stays_text(report: Report) -> None:
    page = Read(render(renamed(report, EVIL)))
    assert len(page.scripts) == 2 and not [tag for tag, _ in page.tags if tag == "img"]
    assert page.data["rows"][0]["name"] == f"{report.rows[0].name} {EVIL}"
    assert page.text.count("{{ 7 * 7 }}") > 10 and "49" not in page.text.replace("149", "")


def test_what_is_not_there_has_no_part(report: Report) -> None:
    bare = dataclasses.replace(report, pictures=[], published=[], missing=[], facts={}, files={}, baselines=[])
    page = Read(render(bare))
    assert not {"viewer", "bands", "published"} & set(page.ids)
    assert "Nothing is compared here. Means of PSNR on Kodak (2 images):" in page.text
    assert f"bicubic: {np.mean(report.rows[0].scores['Kodak']['psnr']):.3f} dB." in page.text
    assert "missing" not in page.text and "Claims" not in page.text
    assert "Claims are made on Kodak" in Read(render(report)).text


def test_one_seed_is_said_to_speak_of_networks(report: Report) -> None:
    rows = [
        dataclasses.replace(
            row,
            seeds=row.seeds[:1],
            scores={name: {key: values[:1] for key, values in one.items()} for name, one in row.scores.items()},
        )
        for row in report.rows
    ]
    assert "Each row was trained once" in Read(render(dataclasses.replace(report, rows=rows))).text


def test_gaps_in_the_scores_are_gaps_on_the_page(report: Report) -> None:
    first = report.rows[0]
    holes = {"psnr": np.array([[np.nan, np.inf]]), "ssim": first.scores["Kodak"]["ssim"]}
    row = Row(name="holes", kind="teacher", scores={"Kodak": holes})
    data = Read(render(dataclasses.replace(report, rows=[*report.rows, row, Row(name="nothing", scores={})]))).data
    assert data["rows"][-2]["images"][0][0] == [None, "inf"]
    assert data["rows"][-1]["images"][0][0] == [None, None] and data["rows"][-1]["cells"][0] == [None, None]


@pytest.mark.parametrize("rows", [[], [Row(name="one", scores={})]])
def test_a_report_of_nothing_is_a_page(rows: list[Row]) -> None:
    assert "Empty" in Read(render(dataclasses.replace(NOTHING, rows=rows))).text
    some = dataclasses.replace(NOTHING, rows=rows, images={"s": ["i"]}, metrics={"psnr": "higher"})
    assert ("Nothing is compared here" in Read(render(some)).text) is bool(rows)


def test_the_file_is_written_whole_or_an_error_names_it(tmp_path: Path, report: Report) -> None:
    write_page(NOTHING, tmp_path / "new/report.html")
    assert (tmp_path / "new/report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(MtkdError, match="report.html cannot be written"):
        write_page(NOTHING, tmp_path / "file/report.html")


def test_the_answer_tells_both_ways_of_baselines_and_which_rows_have_one_seed() -> None:
    random = np.random.default_rng(1)
    alike = random.normal(28, 3, (3, 40))
    gains = {"a": 0.0, "b": -0.05, "c": 0.1}
    scores = {name: alike + gain + random.normal(0, 1e-3, (3, 40)) for name, gain in gains.items()}
    rows = [Row(name=name, seeds=(1, 2, 3), scores={"d": {"psnr": values}}) for name, values in scores.items()]
    rows[2] = replace(rows[2], seeds=(1,), scores={"d": {"psnr": scores["c"][:1]}})
    teacher = Row(name="t", kind="teacher", scores={"d": {"psnr": alike[:1] - 0.5}})
    images = {"d": [str(number) for number in range(40)], "e": ["1"]}
    given = Report(
        title="",
        scale=2,
        rows=[teacher, *rows],
        images=images,
        metrics={"psnr": "lower"},
        pooled=("d",),
        baselines=("a", "b"),
    )
    (answer,) = answers(given, comparisons(given))
    assert [name for name, _ in answer.better] == ["b"] and [name for name, _ in answer.worse] == ["c"]
    assert "Better than b: no row." in answer.sentences
    assert any("Of one seed alone" in sentence and sentence.endswith(": c.") for sentence in answer.sentences)
    assert any(
        sentence.endswith("dB below a.") and "the best teacher, t, is" in sentence for sentence in answer.sentences
    )
    higher = replace(given, metrics={"psnr": "higher"})
    (answer,) = answers(higher, comparisons(higher))
    assert "Better than b: c; a." in answer.sentences
    # One value an image, of the seed that all rows have.
    content = payload(higher, comparisons(higher))
    shown = next(row for row in content["rows"] if row["name"] == "a")
    assert shown["images"][0][0][0] == pytest.approx(scores["a"][0, 0], rel=1e-5)
    unsaid = replace(higher, pooled=())
    (answer,) = answers(unsaid, comparisons(unsaid))
    assert answer.question.startswith("Nothing is compared here")


def test_the_page_says_what_is_left_out_and_shows_no_verdict_as_zero() -> None:
    random = np.random.default_rng(0)
    alike = random.normal(28, 3, (1, 40))
    scores = {"a": alike, "b": alike + 0.0002 + random.normal(0, 1e-6, (1, 40))}
    scores["b"][0, 3] = math.inf
    rows = [Row(name=name, scores={"d": {"psnr": values}}) for name, values in scores.items()]
    images = {"d": [str(number) for number in range(40)]}
    given = Report(
        title="", scale=2, rows=rows, images=images, metrics={"psnr": "higher"}, pooled=("d",), baselines=("a",)
    )
    compared = comparisons(given)
    (answer,) = answers(given, compared)
    assert answer.question.endswith("(39 images):")
    assert answer.better == [("b", "+0.0002 dB")]
    assert any(sentence.startswith("1 image left out of every gain") for sentence in answer.sentences)
    assert payload(given, compared)["metrics"][0]["digits"] == 4
