"""A run of two methods: trained on stored images and a live teacher, resumed exactly, tested from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd.config import Options, resolved_yaml
from mtkd.inference.named import find_target, networks_of
from mtkd.targets.make import Recipe, teach
from mtkd.training.loop import train
from tests.runs import make_images, make_teachers, run_options

pytestmark = pytest.mark.slow


TEACHERS: dict[Path, dict[str, Any]] = {}


def both(tmp_path: Path, **changes: Any) -> Options:
    place = tmp_path.parent.resolve()
    if not (place / "images").exists():
        make_images(place / "images")
        # Once: a store is held to the very files of its teachers.
        TEACHERS[place] = make_teachers(place / "teachers")
    given = {
        "model_type": "MTKD + FAKD",
        "teachers": TEACHERS[place],
        "fusion": "mean",
        "method": {"FAKD": {"teachers": ["rcan"]}},
        **changes,
    }
    return run_options(tmp_path, images=place / "images", **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models/net_g_latest.pth", weights_only=True)["params"]


@pytest.mark.parametrize("stored", [False, True], ids=["live", "store"])
def test_a_run_of_two_methods_resumes_exactly(tmp_path: Path, stored: bool) -> None:
    store = {"target_store": str(tmp_path / "targets")} if stored else {}
    if stored:
        teach(both(tmp_path / "one", **store), tmp_path / "targets", Recipe())
    train(both(tmp_path / "one", **store))
    train(both(tmp_path / "two", **store, train={"total_iter": 4}))
    train(both(tmp_path / "two", **store), auto_resume=True)
    one, two = (weights(tmp_path / name / "experiments/tiny") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_run_is_measured_as_any_other(tmp_path: Path) -> None:
    options = both(tmp_path / "one", train={"total_iter": 2})
    train(options, option_text=resolved_yaml(options))
    found = find_target(str(tmp_path / "one/experiments/tiny"))
    names = [subject.name for subject in networks_of([found], teachers=True)]
    assert len(names) == 4  # two teachers, their mean, the student
