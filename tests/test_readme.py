"""README stays true: its file tree has every folder, and it shows every command; tests/docs has what all pages keep."""

from __future__ import annotations

import re
from pathlib import Path

from mtkd import catalog
from mtkd.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARTS = {
    f"mtkd/{path.name}{'/' if path.is_dir() else ''}"
    for path in (ROOT / "mtkd").iterdir()
    if path.suffix == ".py" and not path.name.startswith("__") or (path / "__init__.py").exists()
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


def test_the_file_tree_has_every_part_of_the_package_and_nothing_that_is_not_there() -> None:
    listed = files_of_the_tree()
    assert sorted(PARTS - listed) == [], "README's file tree lacks them"
    assert sorted(path for path in listed if not (ROOT / path).exists()) == [], "README's file tree has them"


def test_readme_names_every_method() -> None:
    missing = [name for name in catalog.METHODS if name != "SwinIRModel" and not re.search(rf"\b{name}\b", README)]
    assert not missing


def test_the_readme_shows_every_command() -> None:
    use = README.partition("\n## Use it\n")[2].partition("\n## ")[0]
    names = [module.__name__.rpartition(".")[2] for module in COMMANDS]
    assert [name for name in names if f"mtkd {name} " not in use] == [], "section 'Use it' of README.md lacks them"
