"""Optimizers by their path: arguments checked, runs resumed bit for bit, those that training cannot drive refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from mtkd import zoo
from mtkd.config import OptionError
from mtkd.contracts import MtkdError
from mtkd.training.loop import prepare, train
from mtkd.training.optim import build_optimizer, try_going_on
from mtkd.training.preflight import try_optimizers
from tests.runs import make_images, run_options

HERE = __name__


class Lion(Optimizer):
    """Lion (Chen et al., arXiv 2302.06675), which warms its rate up by a count that it keeps in its group."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), offset: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "offset": offset, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            group["k"] += 1
            first, second = group["betas"]
            for p in group["params"]:
                momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = (momentum * first + p.grad * (1 - first)).sign_()
                p.add_(update, alpha=-group["lr"] * min(1.0, group["k"] / 3))
                momentum.lerp_(p.grad, 1 - second)


class Forgetful(Lion):
    """Counts where no state is saved."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.count = 0

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.count += 1
        self.param_groups[0]["betas"] = (0.9, 1 - 0.1 / self.count)
        super().step()


class KeepsLists(Lion):
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["history"] = [1, 2]


class ScheduleFree(Lion):
    def train(self) -> None: ...
    def eval(self) -> None: ...


class Sharp(Lion):
    def step(self, closure: Any) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]


class RateFree(Optimizer):
    def __init__(self, params: Any, decay: float = 0.0) -> None:
        super().__init__(params, {"decay": decay})


def given(name: str, **more: Any) -> dict[str, Any]:
    return {"type": f"{HERE}.{name}", "lr": 1e-3, **more}


def test_lion_by_its_path_trains_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    # A negative number is the class's own affair, as with torch's Adafactor.
    optim = given("Lion", betas=[0.95, 0.98], offset=-0.5)

    def run(folder: str, total: int, **more: Any) -> dict[str, torch.Tensor]:
        path = {"experiments_root": str(tmp_path / folder)}
        settings = {"optim_g": optim, "total_iter": total, "ema_decay": 0.0}
        weights = train(run_options(tmp_path, images=images, path=path, train=settings), **more)
        return zoo.read_checkpoint(weights).state

    whole = run("whole", 6)
    run("half", 2)
    saved = torch.load(tmp_path / "half/tiny/training_states/2.state", weights_only=True)
    assert saved["optimizers"][0]["param_groups"][0]["k"] == 2
    resumed = run("half", 6, auto_resume=True)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_state_without_the_count_of_the_group_is_refused(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    changes: dict[str, Any] = {"images": images, "train": {"optim_g": given("Lion"), "total_iter": 2}}
    train(run_options(tmp_path, **{**changes, "train": dict(changes["train"])}))
    state = tmp_path / "experiments/tiny/training_states/2.state"
    saved = torch.load(state, weights_only=True)
    del saved["optimizers"][0]["param_groups"][0]["k"]
    torch.save(saved, state)
    options = run_options(tmp_path, images=images, train={"optim_g": given("Lion"), "total_iter": 4})
    with pytest.raises(MtkdError, match="its group of parameters lacks k"):
        prepare(options, auto_resume=True)


def test_classes_of_torch_can_be_named_by_their_path_and_nothing_is_forced_on_them() -> None:
    try_going_on({"type": "torch.optim.Adafactor", "lr": 1e-3})
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    assert build_optimizer(parameters, {"type": "torch.optim:AdamW", "lr": 1e-3}).param_groups[0]["fused"] is None
    assert build_optimizer(parameters, {"type": "AdamW", "lr": 1e-3}).param_groups[0]["fused"] is True


@pytest.mark.parametrize(
    ("optim", "text"),
    [
        (given("Lion", betass=[0.9, 0.99]), "betass: not a key of .*Lion. Did you mean betas"),
        (given("Lion", betas=0.9), "betas: must be a list"),
        (given("Lionn"), "cannot be used: .* has no attribute 'Lionn'"),
        (given("ScheduleFree"), r"schedule-free: .*train\(\) and eval\(\)"),
        (given("Sharp"), r"step\(\) needs closure"),
        (given("RateFree"), "takes no `lr`"),
        (given("given"), "is not an optimizer, and was not called"),
        ({"type": "no_such_package.Lion", "lr": 1e-3}, "No module named 'no_such_package'"),
        ({"type": "Lion", "lr": 1e-3}, "by its path: `type: package.module.Lion`"),
        ({"type": f"{HERE}.Lion"}, "lr: required, and missing"),
    ],
)
def test_what_training_cannot_drive_is_refused_while_the_file_is_read(
    optim: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=text):
        run_options(tmp_path, images=tmp_path, train={"optim_g": optim})


@pytest.mark.parametrize(
    ("name", "text"), [("Forgetful", "does not go on as it stopped"), ("KeepsLists", "cannot be kept.*history")]
)
def test_a_run_that_could_not_be_resumed_does_not_begin(name: str, text: str, tmp_path: Path) -> None:
    options = run_options(tmp_path, train={"optim_g": given(name)})
    (problem,) = try_optimizers(options)
    assert problem.key == "train.optim_g"
    with pytest.raises(MtkdError, match=text):
        train(options)
    assert not (tmp_path / "experiments").exists()


def test_the_trial_leaves_the_random_numbers_of_a_run_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    try_going_on(given("Lion"))
    assert torch.equal(torch.random.get_rng_state(), before)
