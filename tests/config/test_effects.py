"""What training would refuse is a problem of the option file, and what would do nothing is a notice."""

from __future__ import annotations

from typing import Any

import pytest

from mtkd.config import make_options
from mtkd.config.resolved import resolved_yaml
from mtkd.config.yaml_loader import parse
from tests.config.samples import TEACHER, only_problem, train

TAUGHT = {"teachers": {"t": TEACHER}}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        (
            {"model_type": "SRKD", **TAUGHT, "method": {"statistic": "max", "power": 2}},
            "method",
            "takes no power",
        ),
        ({"model_type": "CSD"}, "method.vgg", "zoo:vgg19"),
        ({"model_type": "DUKD", **TAUGHT, "method": {"tiles": 5}}, "method.tiles", "scale^2 = 4"),
        ({"model_type": "OnlineTeacher", "train.teacher_pixel_opt": None}, "train.distill_opt", "which is off"),
        ({"model_type": "StructuredKD", **TAUGHT, "train.holistic_opt": {}}, "train.holistic_opt", "critic_opt"),
        ({"model_type": "OutputKD", **TAUGHT, "method": {"several": "mean"}}, "method.several", "has 1 (t)"),
        ({"model_type": "FAKD", **TAUGHT, "train.attention_opt": {"form": "x"}}, "train.attention_opt", "form"),
        ({"train.pixel_opt": {"type": "CharbonnierLoss", "eps": 0}}, "train.pixel_opt", "eps > 0"),
        ({"model_type": "AT", **TAUGHT, "train.pixel_opt": None}, "train.attention_opt", "would stay as they began"),
        ({"model_type": "RKD", **TAUGHT, "train.pixel_opt": {"loss_weight": 0}}, "train.distance_opt", "to its taps"),
        ({"model_type": "PISRTeacher", "train.pixel_opt": None}, "train.imitation_opt", "in part"),
        ({"model_type": "AT + SRKD", **TAUGHT, "train.pixel_opt": None}, "train.AT.attention_opt", "OutputKD + AT"),
    ],
)
def test_what_training_refuses(changes: dict[str, Any], key: str, words: str) -> None:
    problem = only_problem(train, changes)
    assert problem.key == key and words in problem.message


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "OutputKD + AT", "train.pixel_opt": None},
        {"model_type": "FitNet", "train.pixel_opt": None, "path": {"pretrain_network_g": "x.pth"}},
        {"model_type": "FitNet", "train.pixel_opt": None, "method": {"student_taps": ["conv_last"]}},
        {"model_type": "CRD", "train.pixel_opt": None, "train.target_opt": {"loss_weight": 1}},
        {"model_type": "FitNet", "train.pixel_opt": {"loss_weight": [[0, 0], [1, 1]]}},
    ],
)
def test_a_term_on_features_beside_one_on_images_is_a_training(changes: dict[str, Any]) -> None:
    assert train({**changes, **TAUGHT}).train


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        ({"model_type": "OutputKD", **TAUGHT, "train.target_opt": None}, "teachers has no effect"),
        ({"model_type": "OutputKD", "target_store": "s", "train.target_opt": None}, "target_store has no effect"),
        ({"model_type": "StructuredKD", **TAUGHT, "method": {"real": "gt"}}, "method.real has no effect"),
        ({"model_type": "StructuredKD", **TAUGHT, "method": {"critic_feat": 8}}, "method.critic_feat has no effect"),
        ({"model_type": "DUKD", **TAUGHT, "method": {"tiles": 4}, "train.zoom_in_opt": None}, "method.tiles has no"),
        ({"train.pixel_opt": {"type": "WaveletLoss", "eps": 0.5}}, "train.pixel_opt.eps has no effect"),
        ({"model_type": "CSD", "method": {"vgg": "zoo:vgg19", "negatives": 32}}, "method.negatives acts as 2"),
        (
            {"model_type": "FAKD", **TAUGHT, "train.target_opt": None, "train.spatial_opt": None},
            "teachers has no effect",
        ),
    ],
)
def test_what_does_nothing_is_said(changes: dict[str, Any], notice: str) -> None:
    options = train(changes)
    assert [line for line in options.notices if line.startswith(notice)], options.notices
    again = make_options(parse(resolved_yaml(options)).data)
    assert again.model_dump() == options.model_dump()


def test_defaults_written_out_are_no_news() -> None:
    given = {"real": "teacher", "conditional": True, "critic_feat": 64}
    options = train({"model_type": "StructuredKD", **TAUGHT, "method": given})
    assert not [line for line in options.notices if "has no effect" in line]
