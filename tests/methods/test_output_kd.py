"""Output distillation from one teacher and from several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mtkd.config import OptionError, load_options
from mtkd.contracts import Batch, MtkdError
from mtkd.methods.base import MethodConfig
from mtkd.methods.output_kd import OutputKD
from tests.methods.setups import TASK, batch, edsr


def three_teachers() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"a": edsr(12), "b": edsr(8), "c": edsr(4)}


def method_with(several: str) -> OutputKD:
    return OutputKD(edsr(), three_teachers(), TASK, MethodConfig(options={"several": several}))


def test_terms_are_the_two_distances() -> None:
    method, given = OutputKD(edsr(), {"a": edsr(12)}, TASK), batch()
    out = method(given, 0)
    torch.testing.assert_close(out.losses["pixel"], (out.sr - given.gt).abs().mean())
    torch.testing.assert_close(out.losses["target"], (out.sr - method.teachers["a"](given.lq)).abs().mean())


def test_several_teachers_are_an_error_unless_asked_for() -> None:
    with pytest.raises(MtkdError, match="3 teachers are declared"):
        method_with("error")(batch(), 0)


def test_mean_is_the_mean_of_all_teachers() -> None:
    method, given = method_with("mean"), batch()
    images = torch.stack([teacher(given.lq) for teacher in method.teachers.values()])
    torch.testing.assert_close(method.target(given), images.mean(0))


def test_random_draws_every_teacher_and_repeats_with_the_seed() -> None:
    method, given = method_with("random"), batch(1, 4, 4)
    images = [teacher(given.lq) for teacher in method.teachers.values()]

    def draws() -> list[int]:
        found = []
        for step in range(24):
            torch.manual_seed(step)
            target = method.target(given)
            found.append(next(i for i, image in enumerate(images) if torch.equal(image, target)))
        return found

    first = draws()
    assert set(first) == {0, 1, 2}
    assert first == draws()


def test_one_teacher_is_not_several() -> None:
    with pytest.raises(MtkdError, match="this run has 1"):
        OutputKD(edsr(), {"a": edsr(12)}, TASK, MethodConfig(options={"several": "mean"}))
    with pytest.raises(MtkdError, match="from a store"):
        OutputKD(edsr(), {}, TASK, MethodConfig(options={"several": "random"}))


def test_unknown_choice_names_the_choices() -> None:
    with pytest.raises(MtkdError, match="'error', 'mean', 'random'"):
        method_with("median")


def test_a_stored_target_replaces_the_teacher() -> None:
    method, given = OutputKD(edsr(), {}, TASK), batch()
    out = method(Batch(given.lq, given.gt, given.index, target=given.gt), 0)
    torch.testing.assert_close(out.losses["target"], out.losses["pixel"])


def test_without_the_target_term_no_teacher_runs() -> None:
    method = OutputKD(edsr(), {}, TASK, MethodConfig(terms={"pixel": {}}))
    assert list(method(batch(), 0).losses) == ["pixel"]


def test_option_files_may_name_several_teachers_only_with_a_choice() -> None:
    recipe = Path(__file__).parents[2] / "options" / "train" / "OutputKD" / "random.yml"
    assert load_options(recipe).method == {"several": "random"}
    with pytest.raises(OptionError, match="imitates one image, but there are 3 teachers"):
        load_options(recipe, force=["method:several=error"])
    with pytest.raises(OptionError, match="several"):
        load_options(recipe, force=["method:several=median"])
