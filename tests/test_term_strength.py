"""benchmarks/term_strength.py measures every student term of every method, and docs/methods.md shows what it stored."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mtkd import catalog
from mtkd.data.images import write_image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/methods.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    # By file, because benchmarks are scripts and no package that tests could import.
    spec = importlib.util.spec_from_file_location("term_strength", ROOT / "benchmarks/term_strength.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


PUBLISHED_AS_IT_IS = {("PISRTeacher", "imitation"), ("PISR", "vid")}
"""Terms whose default weight is the paper's and leaves them without effect, as docs/methods.md says."""


def student_terms(method: str) -> set[str]:
    return {name for name, term in catalog.get("method", method).terms.items() if not term.critic}


def test_every_method_has_a_case(script: ModuleType) -> None:
    assert not script.missing(), (
        f"CASES of benchmarks/term_strength.py has no line for {', '.join(script.missing())}. Add its networks, run "
        "`python benchmarks/term_strength.py --only NAME`, and commit the table."
    )


def test_a_method_without_a_case_is_named(script: ModuleType) -> None:
    few = {label: case for label, case in script.CASES.items() if case.method != "FAKD"}
    assert script.missing(few) == ["FAKD"]


def test_the_page_shows_what_is_stored_and_every_term_is_in_it(script: ModuleType) -> None:
    record = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    assert f"{script.BEGIN}\n{script.table(record)}\n{script.END}" in PAGE.read_text(encoding="utf-8")
    assert set(record["cases"]) == set(script.CASES), "run benchmarks/term_strength.py --only with the method's name"
    for label, row in record["cases"].items():
        assert set(row["terms"]) | set(row["not_measured"]) == student_terms(script.CASES[label].method), label
        assert dict(script.CASES[label].options) == row["options"], f"{label} was measured with other options"
        for name, term in row["terms"].items():
            default = catalog.get("method", row["method"]).terms[name].weight
            assert term["weight"] == script.CASES[label].weights.get(name, default), f"{label}, {name}: another weight"


def test_no_default_is_inert(script: ModuleType) -> None:
    inert = set()
    for label, row in json.loads(script.RESULTS.read_text(encoding="utf-8"))["cases"].items():
        if script.CASES[label].weights:
            continue
        for name, term in row["terms"].items():
            if term["weight"] and max(at["weighted_ratio"] for at in term["at"].values()) < 0.03:
                inert.add((label, name))
    assert inert == PUBLISHED_AS_IT_IS, "a weight under which a term has no effect is no default"


def test_ratio_is_that_of_gradients_taken_by_hand(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (96, 104, 3), dtype=np.uint8)
        write_image(tmp_path / f"{number}.png", pixels)
    monkeypatch.setattr(script, "_IMAGES", {})
    script.open_images(tmp_path, tmp_path)
    setting = script.Setting(points=(0, 1), train_batch=2, train_lq=16, batch=2, lq=16)
    record = script.measure("MTKD", setting)["terms"]
    run = script.Run(script.CASES["MTKD"], setting)
    run.train(1)
    given = script.held_out().batch(0, 0, 2, 16)
    norms = {}
    for name in ("pixel", "target"):
        run.method.zero_grad()
        run.method(given, 1).losses[name].backward()
        norms[name] = torch.stack([p.grad.square().sum() for p in run.method.student.parameters()]).sum().sqrt()
    wanted = 1.0 * norms["target"] / (0.1 * norms["pixel"])
    assert record["target"]["at"]["1"]["weighted_ratio"] == pytest.approx(float(wanted), rel=1e-4)
    assert record["pixel"]["at"]["0"]["weighted_ratio"] == pytest.approx(1)
    assert -1 <= record["target"]["at"]["1"]["cosine"] <= 1
