"""What mkdocs needs to make a site of pages that are written for the repository.

Pages outside docs/ enter the site, and links are turned: those to a page lead to it, those to any other file of the
repository become plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contribute.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "datasets/README.md": "image-sets.md",
}
"""File of the repository that is a page -> its name in the site."""

INSIDE = {name: path for path, name in OUTSIDE.items()}
CODE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ ]*$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)"  # [text](target)
    r"|(?<![\w/`])(?P<tick>`?)(?P<mention>(?:[\w-]+/)*[\w-]+\.md)(?P=tick)(?![\w`])"  # `docs/zoo.md`, in a sentence
)
SPAN = re.compile(r"<code>([^<]*)</code>")
OPTION = re.compile(r"(?<!\S)--[\w-]+")
SHORT = 28
"""Letters of code that always fit on one line."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Let the pages outside docs/ enter."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of one page."""
    return turned(markdown, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark for the style sheet what differs on a phone: the page, and what stays on one line."""
    return f'<div class="page-{Path(page.file.src_uri).stem}">{SPAN.sub(unbroken, html)}</div>'


def unbroken(found: re.Match[str]) -> str:
    """Short code as a whole, in long code the options: a browser would break `--scale` behind its first hyphen."""
    text = found[1]
    if len(text) <= SHORT:
        return f'<code class="unbroken">{text}</code>'
    text = OPTION.sub(lambda option: f'<span class="unbroken">{option[0]}</span>', text)
    return f"<code>{text}</code>"


def turned(markdown: str, name: str) -> str:
    """Text of the page called `name` in the site, with its links as the site needs them; fenced code stays as it is."""
    here = posixpath.dirname(INSIDE.get(name, f"docs/{name}"))

    def link(found: re.Match[str]) -> str:
        if found["mention"]:
            page = page_of(found["mention"]) or page_of(posixpath.normpath(posixpath.join(here, found["mention"])))
            return found[0] if page in (None, name) else f"[{found[0]}]({relative(page, name)})"
        target, hash_, anchor = found["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return found[0]
        page = page_of(posixpath.normpath(posixpath.join(here, target)))
        if page is None:
            return found["text"]
        return f"{found['image']}[{found['text']}]({relative(page, name)}{hash_}{anchor})"

    return "".join(part if is_code else LINK.sub(link, part) for is_code, part in pieces(markdown))


def pieces(markdown: str) -> Iterator[tuple[bool, str]]:
    """(is it a fenced block, text), all of a page in order."""
    end = 0
    for block in CODE.finditer(markdown):
        yield False, markdown[end : block.start()]
        yield True, block[0]
        end = block.end()
    yield False, markdown[end:]


def page_of(path: str) -> str | None:
    """Name in the site of a file of the repository; None: it is no part of the site."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    inside = path.removeprefix("docs/")
    return inside if inside != path and not inside.startswith("site/") and (ROOT / path).is_file() else None


def relative(page: str, to: str) -> str:
    """Link from the page `to` to another."""
    return posixpath.relpath(page, posixpath.dirname(to) or ".")
