"""The examples in docstrings are run, and what option files name most has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import mtkd
from mtkd import catalog, zoo

PACKAGE = Path(mtkd.__path__[0])
EXAMPLES = [
    ".".join(("mtkd", *file.relative_to(PACKAGE).with_suffix("").parts))
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    # Decorated functions too, which doctest passes over when it takes them for another module's.
    assert result.attempted == len(re.findall(r"^ +>>> ", inspect.getsource(module), flags=re.MULTILINE))
    assert result.failed == 0


@pytest.mark.parametrize("name", catalog.names("loss"))
def test_every_loss_has_an_example(name: str) -> None:
    assert ">>> " in (inspect.getdoc(catalog.get("loss", name)) or "")


def test_metrics_and_the_building_of_networks_have_an_example() -> None:
    # These need a file of weights.
    learned = ("calculate_lpips", "calculate_dists")
    metrics = [catalog.get("metric", name) for name in catalog.names("metric") if name not in learned]
    for function in (*metrics, zoo.build):
        assert ">>> " in (inspect.getdoc(function) or ""), function
