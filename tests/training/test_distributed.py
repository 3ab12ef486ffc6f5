"""Two processes on the CPU, as torchrun starts them: what they compute, write, and how they end."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtkd import zoo
from mtkd.build import open_training_images
from mtkd.cli import main
from mtkd.contracts import Batch
from mtkd.data.paired import PairedImages
from mtkd.data.sampling import CropSampler
from mtkd.inference.evaluate import build_metrics, evaluate
from mtkd.training.loop import step_seed, weighted_total
from mtkd.training.prepare import prepare
from mtkd.training.run import Run
from tests.runs import make_images, make_teachers
from tests.training import two_ranks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Ended:
    """The folder that two ranks left, and how they ended."""

    def __init__(self, folder: Path, code: int, output: str) -> None:
        self.folder, self.code, self.output = folder, code, output


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("ranks")
    make_images(folder / "images")
    (folder / "teachers.json").write_text(json.dumps(make_teachers(folder / "teachers")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MTKD_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(Path(two_ranks.__file__)), str(folder)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    return Ended(folder, done.returncode, done.stdout + done.stderr)


def batch_of_rank(run: Run, rank: int) -> Batch:
    images = open_training_images(run.options)
    assert run.options.datasets.train is not None
    sampler = CropSampler(
        lq=images.lq, gt=images.gt, scale=2, gt_size=16, batch_size=2, use_hflip=True, use_rot=True,
        seed=run.seed, rank=rank, world_size=2,
    )  # fmt: skip
    return sampler.batch(0)


def assert_update(folder: Path, name: str, expected: dict[str, torch.Tensor]) -> None:
    ranks = [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for key, value in expected.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), f"the ranks moved {key} differently"
        torch.testing.assert_close(
            ranks[0][key], value, rtol=1e-3, atol=2e-7, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_the_gradient_of_two_ranks_is_that_of_one_process_on_the_joined_batch(ended: Ended, tmp_path: Path) -> None:
    run = prepare(two_ranks.plain(tmp_path, ended.folder / "images"))
    one, two = (batch_of_rank(run, rank) for rank in (0, 1))
    joined = Batch(torch.cat([one.lq, two.lq]), torch.cat([one.gt, two.gt]), torch.cat([one.index, two.index]))
    assert run.options.train is not None
    weighted_total(run.method(joined, 0), run.options.train.terms, 0).backward()
    run.close()
    assert_update(ended.folder, "plain", {name: p.grad for name, p in run.method.named_parameters()})  # pyright: ignore


def test_where_one_rank_cannot_compile_none_does(ended: Ended) -> None:
    whole, uncompiled = (ended.folder / "experiments" / name for name in ("whole", "uncompiled"))
    log = "".join(file.read_text() for file in uncompiled.glob("train*.log"))
    assert "another process cannot compile its networks, and all run uncompiled" in log
    one, other = (
        torch.load(run / "models/net_g_latest.pth", weights_only=True)["params"] for run in (whole, uncompiled)
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_student_and_critic_get_the_mean_of_the_ranks_gradients(ended: Ended, tmp_path: Path) -> None:
    teachers = json.loads((ended.folder / "teachers.json").read_text())
    run = prepare(two_ranks.critic(tmp_path, ended.folder / "images", teachers))
    assert run.options.train is not None
    expected: dict[str, torch.Tensor] = {}
    for rank in (0, 1):
        # A copy each: the power iteration of spectral normalisation moves at every call.
        method = copy.deepcopy(run.method)
        torch.manual_seed(step_seed(run.seed, 0, rank))
        weighted_total(method(batch_of_rank(run, rank), 0), run.options.train.terms, 0).backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None
            expected[name] = expected.get(name, 0) + parameter.grad / 2
    run.close()
    assert any(name.startswith("critic.") for name in expected)
    assert_update(ended.folder, "critic", expected)


def test_validation_is_shared_out_and_comes_together_as_one_result(ended: Ended) -> None:
    root, images = ended.folder / "experiments/whole", ended.folder / "images"
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    (found,) = [row["metrics"]["psnr"] for row in rows if "metrics" in row]
    psnr = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}
    # zoo.build takes params_ema, as validation does.
    net = zoo.build(str(root / "models/net_g_4.pth"))
    alone = evaluate(net, PairedImages(dataroot_gt=images, scale=2), build_metrics({"p": psnr}), dataset="v")
    assert found == pytest.approx(alone.means()["p"], abs=1e-4)
    assert sorted(p.name for p in (root / "visualization").iterdir()) == sorted(alone.images)


def test_only_rank_0_writes_the_run(ended: Ended) -> None:
    root = ended.folder / "experiments/whole"
    assert len(list(root.glob("train_whole_*.log"))) == 1
    lines = (root / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 4]


def test_a_stop_asked_of_one_rank_stops_all_at_one_iteration_with_everything_saved(ended: Ended) -> None:
    states = sorted(path.name for path in (ended.folder / "experiments/stopped/training_states").iterdir())
    assert states == ["2.state"]
    assert "Stopped at iteration 2" in ended.output
    assert [(ended.folder / f"stopped_{rank}.txt").read_text() for rank in (0, 1)] == ["143", "143"]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_anything_is_saved(ended: Ended) -> None:
    assert "became nan at iteration 4" in (ended.folder / "nan_1.txt").read_text()
    assert "of another process" in (ended.folder / "nan_0.txt").read_text()
    states = [path.name for path in (ended.folder / "experiments/nan/training_states").iterdir()]
    assert states == ["2.state"]


def test_what_keeps_one_rank_from_starting_keeps_all(ended: Ended) -> None:
    told = {path.stem: path.read_text() for path in ended.folder.glob("*_[01].txt")}
    assert told["unprepared_1"] == "rank 1 cannot read its images"
    assert "Another process of this run could not start" in told["unprepared_0"]
    assert not (ended.folder / "experiments/unprepared").exists()
    assert "already holds a run" in told["whole_0"]
    assert "Another process of this run could not start" in told["whole_1"]


def test_a_rank_that_dies_ends_the_run_with_its_error(ended: Ended) -> None:
    assert ended.code != 0
    assert "the disk of rank 1 is gone" in ended.output
    assert not (ended.folder / "experiments/dead/models/net_g_latest.pth").exists()


def test_processes_of_torchrun_that_were_not_told_so_refuse_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtkd.config import resolved_yaml

    (tmp_path / "run.yml").write_text(resolved_yaml(two_ranks.plain(tmp_path, make_images(tmp_path / "images"))))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "-opt", str(tmp_path / "run.yml")]) == 2
    assert "--launcher pytorch" in capsys.readouterr().err
