"""Option files that name several methods."""

from __future__ import annotations

from typing import Any

import pytest

from mtkd.config import make_options
from mtkd.config.resolved import resolved_yaml
from mtkd.config.yaml_loader import parse
from tests.config.samples import TEACHER, only_problem, problems, train

TWO = {"a": TEACHER, "b": TEACHER}
BOTH: dict[str, Any] = {"model_type": "MTKD + FAKD", "teachers": TWO, "fusion": "mean"}


def test_terms_carry_the_name_of_their_method_and_pixel_is_shared() -> None:
    options = train(BOTH)
    assert list(options.training.terms) == ["pixel", "MTKD.target", "FAKD.target", "FAKD.spatial"]
    assert options.training.terms["FAKD.spatial"].weight == [(0, pytest.approx(10 / 255))]


def test_the_weight_of_the_shared_term_is_the_sum() -> None:
    assert train(BOTH).training.terms["pixel"].weight == [(0, pytest.approx(0.6))]


@pytest.mark.parametrize("text", ["MTKD+FAKD", "MTKD +  FAKD"])
def test_the_name_is_written_one_way_and_loads_back(text: str) -> None:
    options = train(
        {**BOTH, "model_type": text, "method": {"FAKD": {"teachers": ["a"], "student_taps": ["conv_first"]}}}
    )
    assert options.model_type == "MTKD + FAKD"
    assert make_options(parse(resolved_yaml(options)).data).model_dump() == options.model_dump()


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"model_type": "CSD + FAKD"}, "model_type", "cannot be combined"),
        ({"model_type": "MTKD + FAKDD"}, "model_type", "Did you mean FAKD"),
        ({"method": {"FAKDD": {}}}, "method.FAKDD", "Did you mean FAKD"),
        ({"method": {"FAKD": {"student_tap": []}}}, "method.FAKD.student_tap", "Did you mean student_taps"),
        ({"method": {"FAKD": {"teachers": ["c"]}}}, "method.FAKD.teachers", "which is not under `teachers`: a, b"),
        ({"method": {"FAKD": {"teachers": []}}}, "method.FAKD.teachers", "must name a teacher"),
        ({"fusion": None}, "teachers", "MTKD imitates one image"),
        (
            {"model_type": "MTKD + SRKD", "method": {"SRKD": {"teachers": ["a"], "statistic": "max", "power": 2}}},
            "method.SRKD",
            "takes no power",
        ),
    ],
)
def test_a_mistake_is_named_at_its_key(changes: dict[str, Any], key: str, words: str) -> None:
    problem = only_problem(train, {**BOTH, **changes})
    assert problem.key == key and words in problem.message


def test_a_term_without_its_method_is_named() -> None:
    (problem,) = problems(train, {**BOTH, "train.target_opt": {}})
    assert "MTKD.target_opt" in problem.message


def test_what_does_nothing_is_said_by_method() -> None:
    options = train(off("FAKD.target", "FAKD.spatial"))
    assert [line for line in options.notices if "names FAKD" in line]
    one = {"method": {"DUKD": {"teachers": ["a"], "tiles": 4}}}
    options = train({**off("DUKD.zoom_in"), "model_type": "MTKD + DUKD", **one})
    assert [line for line in options.notices if line.startswith("method.DUKD.tiles has no effect")]


def off(*terms: str) -> dict[str, Any]:
    plain = {f"{term}_opt": None for term in terms}
    return {**BOTH, "train": {**parse(TRAIN_SECTION).data, **plain}}


TRAIN_SECTION = """\
optim_g: {type: Adam, lr: 1e-3}
scheduler: {type: MultiStepLR, milestones: [5]}
total_iter: 10
"""


def test_a_store_serves_the_method_that_imitates_an_image() -> None:
    options = train({**BOTH, "fusion": None, "target_store": "s"})
    assert options.target_store == "s"


def test_one_fusion_makes_one_image() -> None:
    changes = {
        "model_type": "MTKD + OutputKD",
        "teachers": {**TWO, "c": TEACHER},
        "method": {"MTKD": {"teachers": ["a", "b"]}},
    }
    assert "One `fusion` makes one image" in only_problem(train, {**BOTH, **changes}).message
