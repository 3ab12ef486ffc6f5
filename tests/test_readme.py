"""README stays true: it names every source file, and what it tells people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

from mtkd import catalog
from mtkd.cli import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = {
    path.relative_to(ROOT).as_posix()
    for pattern in ("mtkd/**/*.py", "benchmarks/*.py", "datasets/*.py", "docs/*.md", "*.py")
    for path in ROOT.glob(pattern)
    if path.name != "__init__.py"
}


def files_of_the_tree() -> set[str]:
    """Paths in README's file tree, folders with a slash at their end."""
    block = README.partition("## Files\n\n```\n")[2].partition("\n```")[0]
    found: set[str] = set()
    folders: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        path = "".join(folders[:depth]) + name
        if name.endswith("/"):
            folders = [*folders[:depth], name]
        assert path not in found, f"README's file tree lists {path} twice"
        found.add(path)
    return found


def test_the_file_tree_lists_every_source_file_in_its_folder_and_nothing_else() -> None:
    listed = files_of_the_tree()
    assert sorted(SOURCES - listed) == [], "README's file tree lacks them"
    assert sorted(path for path in listed if not (ROOT / path).exists()) == [], "README's file tree has them"


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
