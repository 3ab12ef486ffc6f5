"""The wheel: what it carries, and that it works without the repository around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mtkd.runtime import shipped

ROOT = Path(__file__).parents[1]
CARRIED = [
    *ROOT.glob("options/**/*.yml"),
    *ROOT.glob("options/**/*.json"),
    *(path for path in ROOT.glob("datasets/demo/**/*") if path.is_file()),
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy: building leaves folders beside setup.py."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("mtkd", "options", "datasets/demo"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    stale = source / "build/lib/mtkd/shipped/options/train/gone.yml"
    stale.parent.mkdir(parents=True)
    stale.write_text("name: gone\n")
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in an empty folder, with the wheel's mtkd before every other."""
    where.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(installed), "MTKD_HOME": str(where / "home")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=where, env=environment, capture_output=True, text=True, timeout=250
    )


def test_the_wheel_carries_recipes_and_demo_and_nothing_that_is_gone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if name.startswith("mtkd/shipped/")}
    assert carried == {f"mtkd/shipped/{path.relative_to(ROOT).as_posix()}" for path in CARRIED}
    assert wheel.stat().st_size < 8e6, "the photographs of the demo are 3.3 MB, its weights 1.8 MB"


def test_the_wheel_makes_the_report_page(installed: Path, tmp_path: Path) -> None:
    """Its style, script and layout are files beside the code."""
    code = (
        "from mtkd.report.content import Report\n"
        "from mtkd.report import page\n"
        "print(page.__file__)\n"
        "print(len(page.render(Report(title='t', scale=2, rows=[], images={}, metrics={}))))\n"
    )
    ran = python(installed, tmp_path / "empty", "-c", code)
    place, size = ran.stdout.split()
    assert place.startswith(str(installed)) and int(size) > 20_000, ran.stderr


def test_the_wheel_carries_the_manifests_of_image_sets(installed: Path, tmp_path: Path) -> None:
    listed = python(installed, tmp_path / "empty", "-m", "mtkd", "data", "list")
    assert "datasets/Urban100/HR: not here (100 images)" in listed.stdout, listed.stderr


def test_recipes_are_found_without_the_repository(installed: Path, tmp_path: Path) -> None:
    place = python(installed, tmp_path / "empty", "-c", "import mtkd; print(mtkd.__file__)")
    assert place.stdout.startswith(str(installed)), place.stderr
    listed = python(installed, tmp_path / "empty", "-m", "mtkd", "list", "recipes")
    assert [line.partition(":")[0] for line in listed.stdout.splitlines()] == list(shipped.recipes()), listed.stderr
    name = next(iter(shipped.recipes()))
    checked = python(installed, tmp_path / "empty", "-m", "mtkd", "check", f"recipe:{name}", "--scale", "4")
    assert checked.returncode == 0 and str(installed) in checked.stdout, checked.stderr


def test_the_demo_finds_what_it_needs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    """It is stopped where training would begin."""
    code = (
        "import mtkd.demo, pathlib\n"
        "def train(options):\n"
        "    assert all(pathlib.Path(t.pretrain).is_file() for t in options.teachers.values())\n"
        "    print(options.name, options.datasets.train.meta_info_file)\n"
        "    raise KeyboardInterrupt\n"
        "mtkd.demo.train = train\n"
        "from mtkd.cli import main\n"
        "print(main(['demo', '--quick']))\n"
    )
    ran = python(installed, tmp_path / "empty", "-c", code)
    assert ran.stdout.splitlines()[-1] == "130", ran.stderr
    assert str(installed / "mtkd/shipped/datasets/demo") in ran.stdout
