"""Importing mtkd is cheap: what is heavy or optional loads when it is used, not before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtkd import catalog
from mtkd.commands.list import WHAT

ROOT = Path(__file__).parents[1]
HEAVY = ("torchvision", "lpips", "cv2", "basicsr", "wandb", "matplotlib", "pytorch_wavelets", "spandrel", "skimage")
CATALOGUED = {path.partition(":")[0] for table in catalog.TABLES.values() for path in table.values()}
EVERYTHING = ("mtkd.cli", "mtkd.config", *sorted(CATALOGUED))


def heavy_modules_after(*imports: str) -> list[str]:
    """Names in HEAVY that a fresh interpreter holds once it has imported `imports`."""
    code = f"import importlib, json, sys\nfor name in {imports!r}: importlib.import_module(name)\n"
    code += f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_check_sees_a_heavy_import() -> None:
    assert heavy_modules_after("mtkd", "matplotlib") == ["matplotlib"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(("mtkd", "mtkd.catalog", "mtkd.contracts"), id="core"),
        pytest.param(EVERYTHING, id="command line and everything in the catalog"),
    ],
)
def test_importing_loads_nothing_heavy(imports: tuple[str, ...]) -> None:
    assert heavy_modules_after(*imports) == []


def test_import_mtkd_alone_does_not_even_load_torch() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import sys, mtkd; print('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.strip() == "False", run.stderr


@pytest.mark.parametrize("command", ["--help", "train --help", *(f"list {what}" for what in WHAT)])
def test_what_only_tells_loads_no_torch(command: str) -> None:
    """Importing torch takes seconds. What is imported is counted, not timed: it is the same on every machine."""
    code = f"import sys\nfrom mtkd.cli import main\ntry: main({command.split()!r})\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"
