"""The report page in a browser, as its reader uses it. Skipped where there is no Chromium."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mtkd.report.content import Report
from mtkd.report.page import write_page
from mtkd.report.pictures import luma
from tests.report.sample import STUDENTS, demo_images, make_report, renamed
from tests.report.test_page import EVIL

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]


@pytest.fixture(scope="module")
def report() -> Report:
    images = demo_images(3, side=96)["Kodak"]
    names = list(images)
    return make_report(
        {"Kodak": {name: images[name] for name in names[:2]}, "More": {names[2]: images[names[2]]}},
        groups={"S x4": 0.0, "M x4": 0.05},
        students={name: STUDENTS[name] for name in ("scratch", "output KD, 1:1", "PISR", "MTKD, ours")},
        shown=1,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(report, path)
    return path


def open_page(browser: Browser, file: Path, width: int = 1440, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page once its first picture is drawn, and what went wrong: errors, and requests but that of the file."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.set_default_timeout(120_000)  # on a machine that does other things too
    wrong: list[str] = []
    # The tests read the canvas more often than the page does.
    page.on("console", lambda said: None if "willReadFrequently" in said.text else wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    page.goto(file.as_uri())
    if page.query_selector("#viewer"):
        until(page, "document.getElementById('viewer-about').textContent !== ''")
    return page, wrong


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    opened, wrong = open_page(browser, file)
    yield opened
    opened.close()
    assert wrong == []


def rows_of(page: Page, number: int = 0) -> list[str]:
    table = page.locator("#table-list table").nth(number)
    return [name.split("\n")[0].strip() for name in table.locator("tbody th").all_inner_texts()]


def until(page: Page, condition: str) -> None:
    """Wait for an expression of the page; Playwright's own waiting needs `eval`, which the page forbids."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(condition)


def pixel(page: Page) -> list[int]:
    """Colour of the stage right of and below its middle, in the pixel of the picture that has its corner there."""
    code = """() => { const c = document.getElementById("stage");
      return [...c.getContext("2d").getImageData(c.width / 2 + 2, c.height / 2 + 2, 1, 1).data]; }"""
    return page.evaluate(code)


@pytest.mark.parametrize("width", [1440, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_requests_or_sideways_scrolling(
    browser: Browser, file: Path, width: int, scheme: str
) -> None:
    page, wrong = open_page(browser, file, width, scheme)
    for details in page.locator("details").all():
        if not details.evaluate("node => node.open"):
            details.locator("summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    page.close()
    assert wrong == []


def test_a_heading_sorts_its_table(page: Page, report: Report) -> None:
    before = rows_of(page)
    head = page.locator("#table-list table").first.locator("thead button", has_text="PSNR")
    head.click()
    means = {row.name: np.mean([np.concatenate([one["psnr"] for one in row.scores.values()], axis=1).mean()])
             for row in report.rows if row.group in ("", "S x4")}  # fmt: skip
    best = sorted(means, key=lambda name: -means[name])
    assert [name.split(" not trained")[0] for name in rows_of(page)] != before
    assert [name for name in rows_of(page) if name in means] == [name for name in best if name in rows_of(page)]
    head.click()
    assert [name for name in rows_of(page) if name in means] == [name for name in best[::-1] if name in rows_of(page)]
    assert page.locator("#table-list th[aria-sort=ascending]").count() == 1


def test_sets_metrics_and_baselines_can_be_chosen(page: Page, report: Report) -> None:
    row = next(row for row in report.rows if row.name == "PISR")
    cell = page.locator("#table-list table").first.locator("tr[data-row=PISR] td").first
    pooled = np.concatenate([one["psnr"] for one in row.scores.values()], axis=1).mean()
    assert cell.inner_text().startswith(f"{pooled:.3f}")
    page.select_option("#table-view", label="More (1)")
    assert cell.inner_text().startswith(f"{row.scores['More']['psnr'].mean():.3f}")
    page.select_option("#table-metric", label="SSIM")
    assert cell.inner_text().startswith(f"{row.scores['More']['ssim'].mean():.4f}")
    page.select_option("#table-view", index=0)
    page.select_option("#table-base", label="output KD, 1:1")
    assert page.locator("#table-list th", has_text="gain over output KD, 1:1").count() == 2


def test_verdicts_are_words_and_marks_not_colours_alone(page: Page) -> None:
    texts = page.locator("#table-list table").first.locator("td").all_inner_texts()
    verdicts = [text for text in texts if text.startswith(("\u25b2", "\u25bc", "\u2248"))]
    assert len(verdicts) == 3
    assert all(text.endswith(("better", "worse", "cannot be told apart")) for text in verdicts)


def test_the_slider_shows_left_and_right_and_the_scores_are_theirs(page: Page, report: Report) -> None:
    page.select_option("#viewer-left", label="ground truth")
    page.select_option("#viewer-right", label="bicubic")
    assert "ground truth itself" in page.locator("#tag-left").inner_text()
    shown = page.locator(".picks [aria-pressed=true]").get_attribute("title")
    picture = next(one for one in report.pictures if f"{one.image}, {one.dataset}" == shown)
    inner = (slice(4, -4), slice(4, -4)) if picture.crop is None else ()
    error = np.square(luma(picture.bicubic) - luma(picture.gt))[inner].mean()
    until(page, "document.getElementById('tag-right').textContent.startsWith('bicubic')")
    assert f"{10 * np.log10(255**2 / error):.3f} dB" in page.locator("#tag-right").inner_text()

    def middle(image: np.ndarray) -> list[int]:
        return [*image[image.shape[0] // 2, image.shape[1] // 2].tolist(), 255]

    page.locator("#viewer-slider").fill("90")
    page.wait_for_timeout(50)
    assert pixel(page) == middle(picture.gt)
    page.locator("#viewer-slider").fill("10")
    page.wait_for_timeout(50)
    assert pixel(page) == middle(picture.bicubic)
    box = page.locator("#stage").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.1 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], y, steps=4)
    page.mouse.up()
    assert float(page.locator("#viewer-slider").input_value()) == pytest.approx(70, abs=2)
    assert pixel(page) == middle(picture.gt)


def test_wheel_buttons_and_keys_zoom_and_arrows_move(page: Page) -> None:
    zoom = page.locator("#viewer-zoom")
    first = zoom.inner_text()
    page.click("#zoom-in")
    second = zoom.inner_text()
    assert float(second[:-1]) == pytest.approx(1.5 * float(first[:-1]), rel=0.1)
    page.locator("#stage").hover()
    page.mouse.wheel(0, -100)
    until(page, f"document.getElementById('viewer-zoom').textContent !== '{second}'")
    page.click("#zoom-fit")
    assert zoom.inner_text() == first
    page.focus("#stage")
    for _ in range(8):
        page.keyboard.press("+")
    assert float(zoom.inner_text()[:-1]) > 15
    # Squares: neighbours on the screen are one pixel of the picture.
    page.locator("#viewer-slider").fill("100")
    seen = page.evaluate(
        """() => { const c = document.getElementById("stage");
        const d = c.getContext("2d").getImageData(0, c.height >> 1, c.width, 1).data, found = [];
        for (let i = 0; i < d.length; i += 4) found.push(d[i] * 65536 + d[i + 1] * 256 + d[i + 2]); return found; }"""
    )
    changes = np.flatnonzero(np.diff(seen[:-10]))  # the line is at the end
    assert len(changes) > 3 and np.diff(changes).min() >= 15
    before = pixel(page), page.screenshot(clip=page.locator("#stage").bounding_box())  # pyright: ignore[reportArgumentType]
    page.focus("#stage")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert page.screenshot(clip=page.locator("#stage").bounding_box()) != before[1]  # pyright: ignore[reportArgumentType]
    page.keyboard.press("0")
    assert zoom.inner_text() == first
    position = page.locator("#viewer-slider").input_value()
    page.keyboard.press(",")
    assert float(page.locator("#viewer-slider").input_value()) == float(position) - 5


def test_keys_blink_and_swap(page: Page) -> None:
    names = [page.locator(f"#viewer-{side} option:checked").inner_text() for side in ("left", "right")]
    page.focus("#stage")
    page.keyboard.press("s")
    assert [page.locator(f"#viewer-{side} option:checked").inner_text() for side in ("left", "right")] == names[::-1]
    page.focus("#stage")
    page.keyboard.press("b")
    assert page.locator("#viewer-blink").get_attribute("aria-pressed") == "true"
    assert page.locator("#tag-right").is_hidden() and page.locator("#tag-left").is_visible()
    until(page, "document.getElementById('tag-left').hidden")
    page.keyboard.press("b")
    assert page.locator("#tag-right").is_visible() and page.locator("#tag-left").is_visible()


def test_the_difference_maps_are_the_errors_enlarged(page: Page, report: Report) -> None:
    page.select_option("#viewer-left", label="ground truth")
    page.select_option("#viewer-right", label="bicubic")
    until(page, "document.getElementById('map-name-1').textContent.startsWith('error of bicubic')")
    page.get_by_role("button", name="16\u00d7", exact=True).click()
    assert page.locator("#map-name-1").inner_text() == "error of bicubic, 16\u00d7"
    levels = page.evaluate(
        """() => [...document.querySelectorAll(".map canvas")].map((c) => {
        const d = c.getContext("2d").getImageData(c.width / 2 - 20, c.height / 2 - 20, 40, 40).data; let most = 0;
        for (let i = 0; i < d.length; i += 4) most = Math.max(most, d[i]); return most; })"""
    )
    assert levels[0] == 0 and levels[1] > 60 and levels[3] == levels[1]
    before = page.locator("#map-name-2").inner_text()
    assert "orange ground truth" in before and "blue bicubic" in before


def test_another_picture_keeps_the_two_layers(page: Page) -> None:
    page.select_option("#viewer-left", label="PISR")
    page.locator(".picks button").last.click()
    about = page.locator("#viewer-about")
    until(page, "document.getElementById('viewer-about').textContent.includes('More')")
    assert "the whole image of" in about.inner_text()
    assert page.locator("#viewer-left option:checked").inner_text() == "PISR"
    assert page.locator("#tag-left").inner_text().startswith("PISR")


def test_the_pair_of_rows_and_the_sets_can_be_chosen(page: Page, report: Report) -> None:
    body = page.locator("#difference-body")
    dots = page.locator("#strip .dot")
    assert dots.count() == 3
    page.select_option("#difference-a", label="scratch")
    page.select_option("#difference-b", label="PISR")
    assert body.locator("p").first.inner_text().startswith("scratch against PISR")
    page.select_option("#difference-set", label="More")
    assert dots.count() == 1
    a, b = (next(row for row in report.rows if row.name == name) for name in ("scratch", "PISR"))
    gap = float(a.scores["More"]["psnr"].mean() - b.scores["More"]["psnr"].mean())
    expected = f"{abs(gap):.3f}"
    assert expected in body.locator("p").first.inner_text()
    page.click("#image-scores summary")
    table = page.locator("#image-table table")
    until(page, "document.querySelectorAll('#image-table tbody tr').length === 1")
    page.select_option("#difference-set", label="all sets")
    assert table.locator("tbody tr").count() == 3
    table.locator("thead button", has_text="bicubic").click()
    values = [float(row.split("\t")[3]) for row in table.locator("tbody tr").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.select_option("#difference-group", label="M x4")
    assert "against scratch" in body.locator("p").first.inner_text()
    body.get_by_role("link", name="see").first.click()
    assert page.locator("#tag-right b").count() == 1


def test_charts_answer_to_their_controls(page: Page) -> None:
    assert page.locator("#band-list table").count() == 2 and page.locator("#band-list svg").count() > 30
    assert page.locator("#cost-body svg[role=img]").count() == 3
    curves = page.locator("#curve-body .chart").first
    assert curves.locator("path.curve").count() == 4
    shape = curves.locator("path.curve").first.get_attribute("d")
    curves.locator(".legend button", has_text="PISR").click()
    assert page.locator("#curve-body .chart").first.locator("path.curve").count() == 3
    page.get_by_role("button", name="over seconds of training").click()
    alone = curves.locator("path.curve").last.get_attribute("d")
    page.get_by_role("button", name="with the teachers' seconds").click()
    assert page.locator("#curve-body .chart").first.locator("path.curve").last.get_attribute("d") != alone
    changed = page.locator("#curve-body .chart").first
    assert "seconds" in changed.inner_text() or "seconds" in changed.locator("svg").first.text_content()  # pyright: ignore[reportOperatorIssue]
    assert changed.locator("path.curve").first.get_attribute("d") != shape
    page.get_by_role("button", name="gains over the baseline").click()
    gains = page.locator("#curve-body .chart").first
    assert "gain over scratch in PSNR" in gains.inner_text()
    # The baseline lies on its own zero.
    heights = {point.split(" ")[1] for point in gains.locator("path.curve").first.get_attribute("d")[1:].split("L")}  # pyright: ignore[reportOptionalSubscript]
    assert heights == {f"{float(gains.locator('line.zero').get_attribute('y1')):.1f}"}  # pyright: ignore[reportArgumentType]


def test_foreign_names_do_nothing(browser: Browser, report: Report, tmp_path: Path) -> None:
    write_page(renamed(report, EVIL), tmp_path / "report.html")
    page, wrong = open_page(browser, tmp_path / "report.html")
    page.click("#image-scores summary")
    page.locator(".picks button").last.click()
    page.select_option("#difference-b", index=0)
    page.select_option("#viewer-left", index=1)
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert EVIL in page.locator("h1").inner_text() and EVIL in page.locator("#tag-right").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440
    page.close()
    assert wrong == []


def test_one_row_is_seen_beside_bicubic_and_has_its_table_of_images(
    browser: Browser, report: Report, tmp_path: Path
) -> None:
    rows = [row for row in report.rows if (row.group, row.name) == ("S x4", "PISR")]
    pictures = [
        dataclasses.replace(one, answers={("", "PISR"): one.answers["S x4", "PISR"]}) for one in report.pictures
    ]
    alone = dataclasses.replace(report, rows=[dataclasses.replace(rows[0], group="")], pictures=pictures, baselines=[])
    write_page(alone, tmp_path / "report.html")
    page, wrong = open_page(browser, tmp_path / "report.html")
    names = [page.locator(f"#viewer-{side} option:checked").inner_text() for side in ("left", "right")]
    assert names == ["bicubic", "PISR"]
    until(page, "document.querySelectorAll('#image-table tbody tr').length === 3")
    assert page.locator("#strip").count() == 0
    page.close()
    assert wrong == []


@pytest.mark.parametrize("metrics", [{}, {"psnr": "higher"}])
def test_a_report_of_nearly_nothing_opens(browser: Browser, tmp_path: Path, metrics: dict) -> None:
    from mtkd.report.content import Row

    images = {"s": ["i"]} if metrics else {}
    nothing = Report(title="Empty", scale=2, rows=[Row(name="one", scores={})], images=images, metrics=metrics)
    write_page(nothing, tmp_path / "report.html")
    page, wrong = open_page(browser, tmp_path / "report.html", 420)
    assert page.locator("h1").inner_text() == "Empty" and page.locator("#curves").count() == 0
    page.close()
    assert wrong == []
