"""What one iteration does beside the loss: seeds, clipping, epochs, the ETA, the best so far, torch's switches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtkd.inference.evaluate import Evaluation
from mtkd.runtime.device import set_backends
from mtkd.training import log as log_module
from mtkd.training import loop as train_module
from mtkd.training.log import RunLog
from mtkd.training.loop import step_seed
from mtkd.training.prepare import prepare
from mtkd.training.run import Run
from mtkd.training.validate import validate
from tests.runs import make_images, make_teachers, run_options
from tests.training import two_ranks


@pytest.fixture
def switches() -> Iterator[None]:
    """torch's switches afterwards as they were before."""
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(deterministic)


def test_seeds_are_those_of_every_version_before() -> None:
    """Other numbers here change the dropped paths and the drawn crops of pyramids in runs that are resumed."""
    seeds = [step_seed(*triple) for triple in ((3, 0, 0), (3, 0, 1), (3, 1, 0), (2**62, 999_999, 7))]
    assert seeds == [6233904063939786893, 4854266099512449391, 5712964121383671236, 3551560074166029627]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_draws_from_a_stream_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    run = prepare(run_options(tmp_path))
    batches = run.batches()
    seeded: list[int] = []
    monkeypatch.setattr(type(run.fabric), "global_rank", property(lambda _: rank))
    monkeypatch.setattr(train_module, "_seed", lambda seed, device: seeded.append(seed))
    for step in (0, 5):
        train_module.train_step(run, step, batches)
    assert seeded == [step_seed(3, 0, rank), step_seed(3, 5, rank)]
    monkeypatch.undo()
    run.close()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_step_draws_what_torchs_own_seeding_gives(device: str) -> None:
    torch.manual_seed(6233904063939786893)
    wanted = torch.rand(5), torch.rand(5, device=device)
    torch.manual_seed(1)
    train_module._seed(6233904063939786893, torch.device(device))
    assert torch.equal(torch.rand(5), wanted[0]) and torch.equal(torch.rand(5, device=device), wanted[1])


def test_every_optimizer_is_clipped_on_its_own(tmp_path: Path) -> None:
    largest = 1e-4
    images, teachers = make_images(tmp_path / "images"), make_teachers(tmp_path / "teachers")
    given = {"clip_grad_norm": largest, "total_iter": 1}
    sgd = {"type": "SGD", "lr": 1.0}
    run = prepare(
        run_options(
            tmp_path,
            images=images,
            model_type="StructuredKD",
            teachers={"edsr": teachers["edsr"]},
            method={"critic_feat": 4},
            train={**two_ranks.CRITIC, "optim_g": sgd, "optim_d": sgd, **given},
        )
    )
    trained = {
        name: [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, optimizer in run.optimizers.items()
    }
    before = {name: [parameter.detach().clone() for parameter in those] for name, those in trained.items()}
    train_module.train_step(run, 0, run.batches())
    assert trained.keys() == {"main", "critic"}
    for name, those in trained.items():
        moved = [new.detach() - old for new, old in zip(those, before[name], strict=True)]
        # Plain gradient descent at a rate of 1 moves the weights by the gradient.
        assert torch.cat([move.flatten() for move in moved]).norm().item() == pytest.approx(largest, rel=1e-2), name
    run.close()


@pytest.mark.parametrize(("accumulate", "epochs"), [(1, [0, 1, 1, 2]), (2, [1, 2, 3, 4]), (3, [1, 3, 4, 6])])
def test_an_epoch_counts_every_image_that_was_seen(tmp_path: Path, accumulate: int, epochs: list[int]) -> None:
    # Four images, two a batch.
    run = prepare(run_options(tmp_path, train={"accumulate": accumulate}))
    assert [run.epoch(done) for done in (1, 2, 3, 4)] == epochs
    run.close()


def test_the_eta_is_the_pace_since_the_start_times_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(log_module, "time", SimpleNamespace(perf_counter=lambda: now))
    log = RunLog(None, name="tiny", total_steps=500)
    # Going on from iteration 100: what was done before took none of this run's time.
    log.start_clock(100)
    now = 1050.0
    log.losses(step=110, epoch=1, rate=1e-3, values={}, seconds=5)
    assert "[eta: 0:32:30, time: 5.000]" in capsys.readouterr().out
    now = 1070.0
    log.losses(step=120, epoch=1, rate=1e-3, values={}, seconds=2)
    assert "[eta: 0:22:10, time: 2.000]" in capsys.readouterr().out


def run_that_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: str, values: list[float]) -> Run:
    """A run with one metric, whose validations give `values` one after the other."""
    images = make_images(tmp_path / "images")
    folder: dict[str, Any] = {"type": "PairedImageDataset", "dataroot_gt": str(images)}
    sets = {
        "train": {"name": "t", **folder, "gt_size": 16, "batch_size_per_gpu": 2},
        "val": {"name": "v", **folder},
    }
    metrics = {"score": {"type": "calculate_psnr", "crop_border": 2, "better": better}}
    results = [Evaluation("v", ("one",), {"score": (value,)}) for value in values]
    monkeypatch.setattr("mtkd.training.validate.evaluate_sharded", lambda *_, **__: results.pop(0))
    return prepare(run_options(tmp_path, images=images, datasets=sets, val={"val_freq": 1, "metrics": metrics}))


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("higher", [30.0, 32.0, 31.0, 32.0], [(30.0, 1), (32.0, 2), (32.0, 2), (32.0, 4)]),
        ("lower", [0.4, 0.2, 0.3, 0.2], [(0.4, 1), (0.2, 2), (0.2, 2), (0.2, 4)]),
    ],
)
def test_best_follows_what_is_better_and_the_later_of_equals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    better: str,
    values: list[float],
    best: list[tuple[float, int]],
) -> None:
    run = run_that_measures(tmp_path, monkeypatch, better, values)
    for done, (value, at) in enumerate(best, start=1):
        validate(run, done)
        assert run.state.best == {"val": {"score": {"val": value, "iter": at}}}
        assert f"Best: {value:.4f} @ {at} iter" in capsys.readouterr().out
    run.close()


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_torch_is_told_tf32_and_deterministic(tmp_path: Path, tf32: bool, deterministic: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    torch.use_deterministic_algorithms(not deterministic)
    options = run_options(tmp_path, tf32=tf32, deterministic=deterministic)
    prepare(options).close()
    assert torch.backends.cuda.matmul.allow_tf32 is tf32 and torch.backends.cudnn.allow_tf32 is tf32
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    # Images of all sizes: trying every algorithm on each would take longer than it gains.
    set_backends(tf32=options.tf32, deterministic=options.deterministic, sizes_vary=True)
    assert torch.backends.cudnn.benchmark is False
