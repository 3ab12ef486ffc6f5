"""Runs of BasicSR go on here: weights, average, optimizer and learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd.contracts import MtkdError
from mtkd.training import loop as train_module
from mtkd.training.loop import train
from tests.runs import STUDENT, make_images, run_options

pytestmark = pytest.mark.slow

TRAIN: dict[str, Any] = {
    "ema_decay": 0.9,
    "optim_g": {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]},
    "scheduler": {
        "type": "MultiStepRestartLR", "milestones": [3, 6], "gamma": 0.5, "restarts": [0], "restart_weights": [1],
    },
    "total_iter": 8,
    "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))


def basicsr_model(root: Path) -> Any:
    """BasicSR's own SRModel with the network and the schedule of our runs, on the CPU."""
    import copy

    from basicsr.models.sr_model import SRModel

    for folder in ("models", "training_states"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    network = {"num_in_ch": 3, "num_out_ch": 3, **STUDENT}
    options = {
        "name": "theirs", "num_gpu": 0, "dist": False, "is_train": True, "scale": 2, "network_g": network,
        "train": TRAIN,
        "path": {"models": str(root / "models"), "training_states": str(root / "training_states")},
    }  # fmt: skip
    torch.manual_seed(11)
    return SRModel(copy.deepcopy(options))


def advance(model: Any, batches: list[Any], first: int) -> None:
    """Iterations as in BasicSR's train_pipeline, which counts from 1."""
    for current_iter, batch in enumerate(batches, start=first):
        model.update_learning_rate(current_iter, warmup_iter=-1)
        model.feed_data({"lq": batch.lq, "gt": batch.gt})
        model.optimize_parameters(current_iter)


def test_a_run_of_basicsr_goes_on_here_as_it_would_there(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    ours = run_options(tmp_path, images=images, train=TRAIN)
    run = train_module.prepare(ours)
    batches = list(run.batches())
    run.close()

    root = tmp_path / "theirs"
    model = basicsr_model(root)
    advance(model, batches[:4], 1)
    model.save(0, 4)
    advance(model, batches[4:], 5)

    path = {"experiments_root": str(tmp_path / "e"), "resume_state": str(root / "training_states/4.state")}
    latest = train(run_options(tmp_path, images=images, train=TRAIN, path=path))
    resumed = torch.load(latest, weights_only=True)
    for key, net in (("params", model.net_g), ("params_ema", model.net_g_ema)):
        for name, value in net.state_dict().items():
            torch.testing.assert_close(resumed[key][name], value, rtol=1e-4, atol=1e-6, msg=f"{key} {name}")


def test_moments_follow_their_parameters_when_basicsr_orders_them_otherwise(tmp_path: Path) -> None:
    from mtkd.training.resume import in_our_order

    theirs = torch.nn.Sequential()
    theirs.b, theirs.a = torch.nn.Linear(2, 2), torch.nn.Linear(3, 3)
    ours = torch.nn.Sequential()
    ours.a, ours.b = torch.nn.Linear(3, 3), torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(theirs.parameters())
    sum(p.square().sum() for p in theirs.parameters()).backward()
    optimizer.step()
    torch.save({"params": theirs.state_dict()}, tmp_path / "w.pth")
    mapped = in_our_order(optimizer.state_dict(), ours, tmp_path / "w.pth")
    target = torch.optim.Adam(ours.parameters())
    target.load_state_dict(mapped)
    expected = {name: optimizer.state[p]["exp_avg"] for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(target.state[parameter]["exp_avg"], expected[name])


def test_a_state_of_another_network_is_refused_with_the_way_out(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    model = basicsr_model(tmp_path / "theirs")
    model.save(0, 4)
    state = torch.load(tmp_path / "theirs/training_states/4.state", weights_only=True)
    state["optimizers"][0]["param_groups"][0]["params"].pop()
    torch.save(state, tmp_path / "theirs/training_states/4.state")
    path = {"experiments_root": str(tmp_path / "e"), "resume_state": str(tmp_path / "theirs/training_states/4.state")}
    with pytest.raises(MtkdError, match=r"leave path\.resume_state out"):
        train(run_options(tmp_path, images=images, train=TRAIN, path=path))
    assert not (tmp_path / "e").exists()
