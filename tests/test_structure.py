"""The structure that `docs/architecture.md` promises, held by reading the source.

The table "Who may import whom" of that page is the rule itself: these tests parse it, so that page and code cannot
drift apart.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from mtkd import catalog

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtkd"
FILES = sorted(PACKAGE.rglob("*.py"))
NOT_AT_MODULE_LEVEL = {
    "torchvision", "lpips", "cv2", "basicsr", "wandb", "matplotlib", "pytorch_wavelets", "spandrel", "skimage",
    "DISTS_pytorch", "pytorch_msssim",
}  # fmt: skip
DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "huggingface_hub": "huggingface_hub",
    "pywt": "pywavelets",
    "skimage": "scikit-image",
    "triton": "torch",
    "yaml": "pyyaml",
}
"""Imported name -> name in setup.py where they differ; triton comes with torch where it exists."""


class Import(NamedTuple):
    """One imported module or attribute, and where it stands."""

    target: str
    line: int
    lazy: bool
    """Inside a function, so that importing the file does not run it."""
    for_types: bool
    """Under `if TYPE_CHECKING`, so that it never runs."""


class Rule(NamedTuple):
    """What one part may import of ours."""

    allowed: frozenset[str]
    lazily: frozenset[str]
    everything: bool


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Every import in `source`, the text of `module`, with relative ones made absolute."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            found.extend(Import(f"{origin}.{alias.name}", node.lineno, lazy, for_types) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, lazy, True)
            for child in node.orelse:
                visit(child, lazy, for_types)
        else:
            lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, lazy, for_types)

    visit(ast.parse(source), False, False)
    return found


def module_name(file: Path) -> str:
    """Dotted name of a file of the package."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports_of_file(file: Path) -> list[Import]:
    return imports_of(file.read_text(encoding="utf-8"), module_name(file), is_package=file.name == "__init__.py")


def parts_of_package() -> set[str]:
    """Names directly under mtkd: its modules and sub-packages."""
    return {module_name(file).split(".")[1] for file in FILES if file != PACKAGE / "__init__.py"}


@functools.cache
def rules() -> dict[str, Rule]:
    """The table of the page: part -> what it may import."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    head = page.index("| part | may import |")
    table = {}
    for row in page[head:].splitlines()[2:]:
        if not row.startswith("|"):
            break
        parts, text = (cell.strip() for cell in row.strip("|").split("|"))
        text = text.partition(";")[0]  # what follows explains
        text = re.sub(r"\w+ through the catalog", "catalog", text)
        words = [] if text == "nothing of ours" else [word.strip() for word in text.split(",")]
        names = [word.removesuffix(" (lazily)").removesuffix(".py") for word in words]
        lazily = [name for name, word in zip(names, words, strict=True) if word.endswith("(lazily)")]
        rule = Rule(frozenset(names), frozenset(lazily), text == "everything")
        table.update(dict.fromkeys((part.strip() for part in parts.split(",")), rule))
    return table


def is_within(target: str, name: str) -> bool:
    return target == name or target.startswith(f"{name}.")


def violations(part: str, found: list[Import], rule: Rule) -> Iterator[str]:
    """Sentences about imports of ours that `rule` does not allow to `part`."""
    for target, line, lazy, for_types in found:
        if not target.startswith("mtkd."):
            continue
        inside = target.removeprefix("mtkd.")
        if rule.everything or inside.startswith("__") or is_within(inside, part):
            continue
        allowed = next((name for name in rule.allowed if is_within(inside, name)), None)
        if allowed is None:
            yield f"line {line}: {part} may not import {inside}"
        elif allowed in rule.lazily and not (lazy or for_types):
            yield f"line {line}: {part} may import {allowed} inside functions only"


def setup_arguments() -> dict[str, ast.expr]:
    """Keyword arguments of the call of `setup` in setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "setup"]
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def declared_distributions() -> set[str]:
    """Names of the requirements in setup.py, those of the extras for users included."""
    needed = ast.literal_eval(setup_arguments()["install_requires"])
    extras = ast.literal_eval(setup_arguments()["extras_require"])
    needed += [name for extra, names in extras.items() if extra != "dev" for name in names]
    return {re.split(r"[^\w.-]", name.lower())[0] for name in needed}


def test_every_part_has_its_row_in_the_table() -> None:
    missing = parts_of_package() - rules().keys()
    assert not missing, f"give {sorted(missing)} a row in 'Who may import whom' of docs/architecture.md"
    stale = rules().keys() - parts_of_package()
    assert not stale, f"docs/architecture.md has rows for {sorted(stale)}, which do not exist"


def test_the_table_names_only_parts_that_exist() -> None:
    named = {name for rule in rules().values() if not rule.everything for name in rule.allowed}
    gone = [name for name in named if not list(PACKAGE.glob(f"{name.replace('.', '/')}*"))]
    assert not gone


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_parts_import_only_what_the_table_allows(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        # What the package itself offers is imported when it is used.
        ours = [found for found in imports_of_file(file) if found.target.startswith("mtkd.")]
        assert all(found.lazy or found.for_types for found in ours)
        return
    part = module_name(file).split(".")[1]
    assert list(violations(part, imports_of_file(file), rules()[part])) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("losses", "from mtkd.archs.edsr import EDSR"),
        ("losses", "from mtkd import archs"),
        ("losses", "from ..metrics import psnr"),
        ("losses", "def late():\n    import mtkd.metrics.psnr"),
        ("training", "from mtkd.methods.mtkd import MTKD"),
        ("training", "from mtkd.methods import mtkd"),
        ("zoo", "from mtkd.archs.edsr import EDSR"),
        ("catalog", "from mtkd.basicsr import shim"),
        ("catalog", "def late():\n    from mtkd.basicsr import outward"),
        ("contracts", "import mtkd.catalog"),
    ],
)
def test_a_forbidden_import_is_seen(part: str, source: str) -> None:
    assert list(violations(part, imports_of(source, f"mtkd.{part}.module"), rules()[part]))


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("losses", "from mtkd.contracts import MtkdError"),
        ("losses", "from .pixel import L1Loss"),
        ("training", "from mtkd.methods.base import Method"),
        ("training", "from mtkd.methods import base"),
        ("catalog", "def late():\n    from mtkd.basicsr import inward"),
        ("cli", "from mtkd.methods.mtkd import MTKD"),
        ("cli", "from mtkd import __version__"),
    ],
)
def test_an_allowed_import_passes(part: str, source: str) -> None:
    assert not list(violations(part, imports_of(source, f"mtkd.{part}.module"), rules()[part]))


def test_what_the_catalog_asks_of_the_bridge_does_not_need_the_catalog() -> None:
    for name in ("shim", "inward"):
        found = [target for target, *_ in imports_of_file(PACKAGE / "basicsr" / f"{name}.py")]
        assert not [target for target in found if is_within(target, "mtkd.catalog") or "outward" in target], name
    at_module_level = [found.target for found in imports_of_file(PACKAGE / "basicsr" / "__init__.py") if not found.lazy]
    assert "mtkd.basicsr.outward" not in at_module_level


def modules_imported() -> dict[str, set[str]]:
    """Module of ours -> modules of ours that it imports anywhere, in functions too, but not for types alone."""
    modules = {module_name(file) for file in FILES}
    graph: dict[str, set[str]] = {}
    for file in FILES:
        module = module_name(file)
        targets = [found.target for found in imports_of_file(file) if not found.for_types]
        # `from mtkd.config import diff` imports a module, `from mtkd.config import Options` a name of one.
        met = {target if target in modules else target.rpartition(".")[0] for target in targets}
        graph[module] = (met & modules) - {module, "mtkd"}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle in `graph`, or nothing."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_needs_itself_however_late_it_is_imported() -> None:
    assert circle(modules_imported()) == []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


def test_every_arrow_between_parts_points_down() -> None:
    """The rows of the table stand in the order of the floors, the ground floor first."""
    floors = {part: floor for floor, part in enumerate(rules())}
    together = {"losses": "losses", "metrics": "losses", "data": "losses"}
    up = set()
    for module, targets in modules_imported().items():
        if module == "mtkd":  # offers what stands on any floor, and imports it when it is used
            continue
        part = module.partition(".")[2].partition(".")[0]
        for target in targets:
            other = target.split(".")[1]
            if together.get(part, part) == together.get(other, other):
                continue
            if floors[other] > floors[part]:
                up.add(f"{module} -> {target}")
    # The bridge has two directions: what it gives the catalog stands below it, what it takes from the catalog above.
    assert {arrow for arrow in up if not arrow.startswith("mtkd.catalog -> mtkd.basicsr.")} == set()
    assert up <= {"mtkd.catalog -> mtkd.basicsr.inward", "mtkd.catalog -> mtkd.basicsr.shim"}


LONGEST = {"config": 250}
"""Lines of a file, by part; elsewhere 350."""


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_long_file_says_why(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    part = file.relative_to(PACKAGE).parts[0]
    lines, most = len(text.splitlines()), LONGEST.get(part, 350)
    reason = re.search(r"[Ll]ong because", ast.get_docstring(ast.parse(text)) or "")
    assert lines <= most or (reason and part not in LONGEST), (
        f"{lines} lines: split it, or say `long because` in its docstring"
    )


def test_only_the_bridge_imports_basicsr() -> None:
    users = [module_name(f) for f in FILES if any(is_within(found.target, "basicsr") for found in imports_of_file(f))]
    assert users == ["mtkd.basicsr.shim"]


@pytest.mark.parametrize("file", [file for file in FILES if file != PACKAGE / "basicsr" / "shim.py"], ids=module_name)
def test_heavy_packages_are_imported_where_they_are_used(file: Path) -> None:
    heavy = [
        f"line {found.line}: {found.target}"
        for found in imports_of_file(file)
        if found.target.split(".")[0] in NOT_AT_MODULE_LEVEL and not found.lazy and not found.for_types
    ]
    assert heavy == []


def test_every_imported_distribution_is_declared() -> None:
    imported = {found.target.split(".")[0] for file in FILES for found in imports_of_file(file)}
    foreign = imported - sys.stdlib_module_names - {"mtkd"}
    names = {DISTRIBUTIONS.get(name, name.lower().replace("_", "-")) for name in foreign}
    assert names - declared_distributions() == set()


def test_every_folder_with_code_is_a_package() -> None:
    """find_packages passes over a folder without __init__.py, and a wheel would lack it."""
    assert not [str(file) for file in FILES if not (file.parent / "__init__.py").exists()]


def test_files_that_are_not_code_are_declared_as_package_data() -> None:
    declared = ast.literal_eval(setup_arguments()["package_data"])
    for file in PACKAGE.rglob("*"):
        if file.is_dir() or file.suffix in {".py", ".pyc"}:
            continue
        package = module_name(file.parent / "__init__.py")
        assert any(fnmatch(file.name, pattern) for pattern in declared.get(package, [])), f"setup.py would lose {file}"


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in catalog.TABLES.items() for name in table], ids=str
)
def test_catalog_entries_resolve(kind: catalog.Kind, name: str) -> None:
    assert callable(catalog.get(kind, name))


def test_the_one_console_script_runs_the_command_line() -> None:
    assert ast.literal_eval(setup_arguments()["entry_points"]) == {"console_scripts": ["mtkd = mtkd.cli:main"]}
    from mtkd.cli import main

    assert callable(main)


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    # "/home/me" is how tests write a home folder that nobody has.
    absolute = re.compile(r"(?<![\w./~}-])/(home|root|Users|mnt|media|scratch|work\w*)/(?!me\b)\w")
    suffixes = {".py", ".md", ".yml", ".yaml", ".toml", ".txt", ".json", ".csv"}
    files = [ROOT / "Makefile", ROOT / ".ci" / "run", *(file for file in ROOT.iterdir() if file.suffix in suffixes)]
    for folder in ("mtkd", "tests", "docs", "options", "benchmarks", "datasets"):
        files += [file for file in (ROOT / folder).rglob("*") if file.suffix in suffixes]
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if absolute.search(line)
    ]
    assert found == []


def test_a_source_distribution_holds_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tests, recipes and demo work without the checkout."""
    filelist = pytest.importorskip("setuptools._distutils.filelist")
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no checkout of git")
    monkeypatch.chdir(ROOT)
    files = filelist.FileList()
    files.allfiles = listed.stdout.splitlines()
    for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines():
        files.process_template_line(line)
    # setuptools takes the package and these by itself.
    own = {"MANIFEST.in", "setup.py", "README.md", "LICENSE"}
    lost = {name for name in files.allfiles if not name.startswith(("mtkd/", "."))} - {*files.files, *own}
    assert lost == set()
