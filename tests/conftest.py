"""What holds for every test: few threads, one kind of terminal, and the same random numbers whichever tests ran before.

Where basicsr is not installed, as on Python 3.13, files of tests that import it are left out, and so are tests that
come to need it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
HAS_BASICSR = importlib.util.find_spec("basicsr") is not None
collect_ignore = [
    str(file.relative_to(FOLDER))
    for file in FOLDER.rglob("test_*.py")
    if not HAS_BASICSR
    and re.search(r"^(import|from) (mtkd\.)?basicsr\b", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
]

# Hosts that run tests say so, and some terminals call themselves dumb: what is drawn would hang on where tests run.
for _name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
    os.environ.pop(_name, None)
os.environ["TERM"] = "xterm"

# On networks this small two processes (`pytest -n`) are worth more than two threads, which wait for each other.
# Commands that tests start inherit it.
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of a test stay in its folder."""
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` wait for a device; `benchmarks/gpu.py` runs them all where there is one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    try:
        return (yield)
    except ImportError as error:
        if HAS_BASICSR or "basicsr" not in str(error).lower():
            raise
        pytest.skip("needs basicsr")
