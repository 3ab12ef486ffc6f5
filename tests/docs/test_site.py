"""The pages as a site: it builds without a warning, every link in it leads somewhere, and it needs no other host.

In a browser it is read at the width of a desk and of a telephone. Skipped where there is no Chromium.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import logging
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import PAGES, ROOT, module_of_the_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning of mkdocs, such as a page outside the navigation or a link to nothing, ends it."""
    pytest.importorskip("mkdocstrings_handlers.python")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    out = tmp_path_factory.mktemp("site")
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out)))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert said == []
    return out


class Parts(HTMLParser):
    """Links, names and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [link for key in ("href", "src") if (link := found.get(key))]
        self.names |= {name for key in ("id", "name") if (name := found.get(key))}
        if tag != "a" and found.get("rel") != "canonical":
            self.loaded += [link for key in ("href", "src", "srcset", "poster") if (link := found.get(key))]
        if tag == "img":
            self.images.append(found)


@pytest.fixture(scope="module")
def parts(site: Path) -> dict[Path, Parts]:
    return {file.resolve(): Parts(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) >= len(PAGES) + 1  # and 404.html
    assert not (site / "site").exists(), "the tools of the site are no part of it"


def test_links_of_the_site_lead_to_pages_and_headings_that_are_there(parts: dict[Path, Parts]) -> None:
    wrong = []
    for file, page in parts.items():
        if file.name == "404.html":  # served at any address, so that its links begin at the root
            continue
        for link in page.links:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            if not target.is_file() or (
                url.fragment and target in parts and unquote(url.fragment) not in parts[target].names
            ):
                wrong.append(f"{file.name}: {link}")
    assert wrong == []


def test_no_page_loads_anything_of_another_host(parts: dict[Path, Parts]) -> None:
    assert {one for page in parts.values() for one in page.loaded if urlsplit(one).scheme not in ("", "data")} == set()


def test_images_say_what_they_show(parts: dict[Path, Parts]) -> None:
    images = [image for page in parts.values() for image in page.images]
    assert images
    assert [image["src"] for image in images if len(image.get("alt") or "") < 10] == []


def test_links_to_files_outside_the_site_become_text() -> None:
    pytest.importorskip("mkdocs")
    hooks = module_of_the_site("hooks")
    turned = functools.partial(hooks.turned, name="bench.md")
    assert turned("[the script](../benchmarks/gpu.py)") == "the script"
    assert turned("[how](../CONTRIBUTING.md#tests), [zoo](zoo.md)") == "[how](contribute.md#tests), [zoo](zoo.md)"
    assert turned("see `docs/zoo.md`, `README.md`.") == "see [`docs/zoo.md`](zoo.md), [`README.md`](overview.md)."
    assert turned("`reports.md` and docs/none.md") == "[`reports.md`](reports.md) and docs/none.md"
    assert turned("```sh\ncat docs/zoo.md\n```\n") == "```sh\ncat docs/zoo.md\n```\n"
    assert turned("[x](https://a.b/c.md) [y](#here)") == "[x](https://a.b/c.md) [y](#here)"
    assert hooks.turned("[methods](../methods.md)", "api/methods.md") == "[methods](../methods.md)"
    assert hooks.turned("[zoo](docs/zoo.md)", "overview.md") == "[zoo](zoo.md)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing, also where a browser leaves before it has all of one."""

    def log_message(self, *args: object) -> None:
        pass

    def copyfile(self, *args: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().copyfile(*args)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def context(browser: Browser, address: str, width: int, scheme: str = "light") -> tuple[BrowserContext, list[str]]:
    """A browser of that width, and what goes wrong in it: errors, and requests to other hosts."""
    made = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # pyright: ignore[reportArgumentType]
        permissions=["clipboard-read", "clipboard-write"],
    )
    made.set_default_timeout(120_000)  # on a machine that does other things too
    wrong: list[str] = []
    local = (address, "file:", "data:", "blob:")
    made.on("request", lambda request: None if request.url.startswith(local) else wrong.append(request.url))
    made.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    made.on("weberror", lambda error: wrong.append(str(error.error)))
    return made, wrong


WIDE = """index start options methods overview contribute from-basicsr photos distill deploy training zoo architecture
api/losses api/upscaling""".split()
"""Pages with the widest tables, the longest words and the longest lines of code."""


@in_a_browser
@pytest.mark.parametrize(
    ("width", "scheme", "names"),
    [(1280, "dark", ["index", "options"]), (390, "light", WIDE)],
    ids=["desk", "telephone"],
)
def test_no_page_scrolls_sideways_or_asks_another_host(
    browser: Browser, address: str, width: int, scheme: str, names: list[str]
) -> None:
    made, wrong = context(browser, address, width, scheme)
    page = made.new_page()
    wide = []
    for name in names:
        response = page.goto(f"{address}{name}.html")
        assert response is not None and response.ok, name
        if page.evaluate("document.documentElement.scrollWidth") > width:
            wide.append(name)
    assert wide == []
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 3 * 128) == (scheme == "dark")
    made.close()
    assert wrong == []


@in_a_browser
@pytest.mark.parametrize("served", [True, False])
def test_search_answers_with_a_server_and_from_the_disk(
    browser: Browser, address: str, site: Path, served: bool
) -> None:
    made, wrong = context(browser, address, 1280)
    page = made.new_page()
    page.goto((address if served else f"{site.as_uri()}/") + "start.html")
    page.locator("input.md-search__input").click()
    page.keyboard.type("WaveletLoss")
    found = page.locator(".md-search-result__link")
    found.first.wait_for()
    assert any("api/losses.html" in (one.get_attribute("href") or "") for one in found.all())
    found.first.click()
    page.wait_for_url("**/*.html?h=*")
    made.close()
    assert wrong == []


@in_a_browser
def test_code_can_be_copied(browser: Browser, address: str) -> None:
    made, wrong = context(browser, address, 1280)
    page = made.new_page()
    page.goto(address + "start.html")
    code = page.locator("pre > code").first
    code.hover()
    page.locator(".md-code__button").first.click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == code.inner_text().strip()
    made.close()
    assert wrong == []


@in_a_browser
def test_on_a_telephone_the_navigation_opens_and_options_are_a_list(browser: Browser, address: str) -> None:
    made, wrong = context(browser, address, 390)
    page = made.new_page()
    page.goto(address + "index.html")
    link = page.locator(".md-nav--primary a.md-nav__link", has_text="Start in ten minutes")
    assert not in_view(page, link)
    page.locator("label.md-header__button[for=__drawer]").click()
    page.wait_for_timeout(500)
    assert in_view(page, link)
    link.click()
    page.wait_for_url("**/start.html")
    page.goto(address + "options.html")
    for cell in page.locator(".page-options table tbody tr").nth(1).locator("td").all():
        box = cell.bounding_box()
        assert box is None or box["x"] + box["width"] <= 390
    row = page.locator(".page-options table tbody tr").nth(1)
    key, value = row.locator("td").nth(0).bounding_box(), row.locator("td").nth(1).bounding_box()
    assert key is not None and value is not None and value["y"] >= key["y"] + key["height"]
    made.close()
    assert wrong == []


def in_view(page: Page, link) -> bool:
    box = link.bounding_box()
    return box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
