"""CONTRIBUTING.md stays true: its worked example works, and what it names exists."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtkd
from mtkd import catalog
from mtkd.config import yaml_loader
from mtkd.training.loop import train
from tests.losses import test_loss_conformance as conformance
from tests.runs import run_options

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE, ENTRY, WITNESS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
(OPTIONS,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def items(lines: str) -> dict[str, Any]:
    """What a line of a Python table adds to it."""
    return eval("{" + lines + "}", {"np": np})


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example carried out, but for the folder of its file; its name in the catalog."""
    ((name, path),) = items(ENTRY).items()
    module = path.partition(":")[0].rpartition(".")[2] + "_of_the_example"
    (tmp_path / f"{module}.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(catalog.LOSSES, name, f"{module}:{path.partition(':')[2]}")
    for key, formula in items(WITNESS).items():
        monkeypatch.setitem(conformance.WITNESS, key, formula)
    yield name
    sys.modules.pop(module, None)


def test_the_example_passes_the_conformance_suite(followed: str) -> None:
    tests = [
        test
        for key, test in vars(conformance).items()
        if key.startswith("test_") and list(inspect.signature(test).parameters) == ["name"]
    ]
    assert len(tests) >= 10
    for test in tests:
        test(followed)


def test_the_example_of_the_example_is_right(followed: str) -> None:
    module = importlib.import_module(catalog.get("loss", followed).__module__)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert (result.attempted, result.failed) == (1, 0)


def test_the_example_trains_as_its_option_file_says(followed: str, tmp_path: Path) -> None:
    given = yaml_loader.parse(OPTIONS).data["train"]
    assert given["pixel_opt"]["type"] == followed
    assert train(run_options(tmp_path, train={**given, "total_iter": 2})).exists()


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`((?:mtkd|tests|docs|options)/[\w./]*|[A-Z]+\.md)`", PAGE))
    named -= {f"mtkd/{folder}/NAME.py" for folder in ("archs", "methods", "losses", "metrics")}
    assert len(named) > 15
    assert sorted(path for path in named - {"mtkd/losses/huber.py"} if not (ROOT / path).exists()) == []


def test_every_name_in_a_file_that_is_named_is_there() -> None:
    pairs = re.findall(r"`([A-Z_]+)` of\s+`([\w/]+\.py)`", PAGE)
    assert len(pairs) >= 6
    for name, path in pairs:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE), (name, path)


def test_every_make_target_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake\s+([a-z]+)\b", PAGE)) - {"the"} <= targets


def test_every_page_tells_the_same_version() -> None:
    citation = yaml_loader.parse((ROOT / "CITATION.cff").read_text(encoding="utf-8")).data
    changes = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert citation["version"] == mtkd.__version__
    assert mtkd.__version__ in changes[0]


def test_the_lowest_versions_that_are_tested_are_the_lowest_that_are_allowed() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)[";]', setup))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".github/lowest.txt").read_text(), flags=re.MULTILINE))
    assert tested.keys() == allowed.keys() - {"setuptools"}
    for name, version in tested.items():
        assert f"{version}.".startswith(f"{allowed[name]}."), name


def test_the_workflow_names_what_there_is() -> None:
    flow = yaml_loader.parse((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")).data
    commands = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    paths = re.findall(r"(?<![\w/.])(?:\.ci|\.github|tests)/[\w./]+", "\n".join(commands))
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).exists()] == []
