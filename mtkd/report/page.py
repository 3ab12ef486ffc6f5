"""One self-contained HTML page of a report: it opens from a file, asks no network for anything, and works offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from mtkd.data.images import write_bytes
from mtkd.report.answer import answers
from mtkd.report.comparison import Comparison
from mtkd.report.content import Report
from mtkd.report.payload import payload
from mtkd.report.statistics import comparisons

TEMPLATES = "templates"
SCRIPTS = ("core.js", "tables.js", "differences.js", "viewer.js", "charts.js", "start.js")
"""Parts of the page's one script, in order; `core.js` opens the function that `start.js` closes."""


def write_page(report: Report, path: Path, compared: Sequence[Comparison] | None = None) -> None:
    """Write `report` as one HTML file.

    Pictures are in it as lossless WebP, each once, styles and script too. All names are foreign text: they are escaped
    in the text, and the script puts them on the page as text alone. A content security policy in the page forbids every
    request, and every script but its own.

    Args:
        compared: `comparisons(report)` where it is known already; it takes seconds for a large grid.

    Raises:
        MtkdError: the disk refuses, layers of a picture have different sizes, or scores have another shape than (seeds,
            images).
    """
    write_bytes(path, render(report, compared).encode("utf-8", "replace"))


def render(report: Report, compared: Sequence[Comparison] | None = None) -> str:
    """The page's text.

    Raises:
        MtkdError: as `write_page`, without the disk.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    compared = comparisons(report) if compared is None else compared
    environment = Environment(
        loader=PackageLoader("mtkd.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "\n".join(_text(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        report=report,
        compared=bool(compared),
        answers=answers(report, compared),
        data=payload(report, compared),
        style=_text("page.css"),
        script=script,
        policy=f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def _text(name: str) -> str:
    """A template as it is; newlines are single, as a browser reads them before it hashes a script."""
    text = resources.files(f"mtkd.report.{TEMPLATES}").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")
