"""README stays true: it names every source file, and what it tells people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtkd import catalog
from mtkd.cli import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = sorted(
    path.relative_to(ROOT)
    for pattern in ("mtkd/**/*.py", "benchmarks/*.py", "datasets/*.py", "docs/*.md", "*.py")
    for path in ROOT.glob(pattern)
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_readme_lists_the_file(path: Path) -> None:
    assert re.search(rf"(^|\s){re.escape(path.name)}\s", README), f"README's file tree lacks {path}"


def test_readme_names_every_method() -> None:
    missing = [name for name in catalog.METHODS if name != "SwinIRModel" and not re.search(rf"\b{name}\b", README)]
    assert not missing


def test_commands_of_the_readme_parse_and_name_real_option_files() -> None:
    commands = re.findall(r"^\.venv/bin/mtkd (.+?)\s*(?:#.*)?$", README, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = parser().parse_args(command.split())
        file = getattr(arguments, "opt", None)
        assert file is None or (ROOT / file).exists(), command
