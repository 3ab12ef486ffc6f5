"""`better` is the metric's to declare; the option file says it where the metric does not. And a key's former name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from mtkd import catalog
from mtkd.config import TrainSetOptions, make_options, resolved_yaml, yaml_loader
from mtkd.config.diff import flat, with_new_names
from mtkd.contracts import MtkdError
from mtkd.metrics.better import better
from mtkd.training.record import compare
from tests.config.samples import TRAIN, changed, evaluation, only_problem, train


def silent(sr: Tensor, gt: Tensor) -> Tensor:
    """A metric from outside that does not declare which value is the better one."""
    return (sr - gt).abs().double().mean(dim=(1, 2, 3))


@better("lower")
def declared(sr: Tensor, gt: Tensor) -> Tensor:
    """The same, which declares it."""
    return silent(sr, gt)


def with_metric(name: str, **arguments: Any) -> dict[str, Any]:
    return {"val.metrics": {"mine": {"type": name, **arguments}}}


@pytest.mark.parametrize("name", catalog.names("metric"))
def test_our_metrics_declare_it(name: str) -> None:
    options = train(with_metric(name, crop_border=2))
    assert options.val.metrics["mine"]["better"] == catalog.get("metric", name).better


def test_a_metric_from_outside_declares_it_or_the_file_does() -> None:
    assert train(with_metric(f"{__name__}:declared")).val.metrics["mine"]["better"] == "lower"
    assert train(with_metric(f"{__name__}:declared", better="higher")).val.metrics["mine"]["better"] == "higher"
    assert train(with_metric(f"{__name__}:silent", better="lower")).val.metrics["mine"]["better"] == "lower"
    problem = only_problem(train, with_metric(f"{__name__}:silent"))
    assert problem.key == "val.metrics.mine.better"
    assert "required, and missing" in problem.message and "`better: lower`" in problem.message


@pytest.mark.parametrize(("name", "direction"), [("calculate_niqe", "lower"), ("calculate_psnr_pt", "higher")])
def test_basicsrs_metrics_are_known(name: str, direction: str) -> None:
    pytest.importorskip("mtkd.basicsr")
    assert train(with_metric(name, crop_border=2)).val.metrics["mine"]["better"] == direction


def test_without_checks_nothing_is_guessed() -> None:
    options = make_options(changed(TRAIN, with_metric("nowhere:metric")), check=False)
    assert options.val.metrics["mine"] == {"type": "nowhere:metric"}


@pytest.mark.parametrize(("old", "new"), [("auto", "auto"), ("device", "gpu"), ("ram", "ram"), ("disk", "disk")])
def test_residence_is_the_former_name_of_cache(old: str, new: str) -> None:
    options = train({"datasets.train.residence": old})
    (notice,) = options.notices
    assert notice == f"datasets.train.residence is called `cache` now; write `cache: {new}`."
    assert isinstance(options.train_set, TrainSetOptions)
    assert (options.train_set.cache, options.train_set.residence) == (new, old)
    assert flat(options) == flat(train({"datasets.train.cache": new}))
    again = make_options(yaml_loader.parse(resolved_yaml(options)).data)
    assert flat(again) == flat(options) and not any("residence" in notice for notice in again.notices)


def test_a_wrong_or_second_value_of_the_former_name_is_a_problem() -> None:
    for value in ("vram", None, ["ram"]):
        wrong = only_problem(train, {"datasets.train.residence": value})
        assert wrong.key == "datasets.train.residence"
        assert wrong.message.startswith("must be 'auto', 'device', 'ram' or 'disk', found ")
    both = only_problem(train, {"datasets.train.residence": "ram", "datasets.train.cache": "disk"})
    assert both.key == "datasets.train.residence" and "Remove this line" in both.message


def test_what_a_state_of_before_kept_is_compared_under_the_new_name() -> None:
    now = flat(train({"datasets.train.cache": "gpu"}))
    then = {key: value for key, value in now.items() if key != "datasets.train.cache"}
    assert with_new_names({**then, "datasets.train.residence": "device"}) == now
    assert with_new_names(now) == now
    images = {"images": {"count": 1}, "world_size": 1}
    before = {"options": {**then, "datasets.train.residence": "device"}, **images}
    assert compare(before, {"options": now, **images}, Path("10.state")) == []


def test_a_test_file_has_no_training() -> None:
    options = train()
    assert options.training is options.train and options.train_set is options.datasets.train
    for key in ("training", "train_set"):
        with pytest.raises(MtkdError, match=r"options has no .*train"):
            getattr(evaluation(), key)
