"""Runs: exact resuming, files that BasicSR reads, refusals, the NaN guard."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.config import resolved_yaml
from mtkd.contracts import MtkdError, Stopped
from mtkd.training import loop as train_module
from mtkd.training.loop import train
from mtkd.training.run import Run
from tests.runs import FUSION, STUDENT, make_images, make_teachers, run_options

pytestmark = pytest.mark.slow

CONSTANT = {"type": "MultiStepLR", "milestones": [1000]}
VAL = {
    "val_freq": 4,
    "metrics": {
        "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
        "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
    },
}


def content(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same_weights(a: Path, b: Path) -> bool:
    one, two = content(a), content(b)
    return (
        all(torch.equal(one[key][name], two[key][name]) for key in ("params", "params_ema") for name in one[key])
        and one.keys() == two.keys()
    )


def test_run_folder_holds_what_basicsr_users_expect(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    sets = {
        "train": {
            "name": "p",
            "type": "PairedImageDataset",
            "dataroot_gt": str(images),
            "gt_size": 16,
            "batch_size_per_gpu": 2,
        },
        "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)},
    }
    options = run_options(tmp_path, images=images, datasets=sets, val={**VAL, "save_img": True})
    latest = train(options, option_text="name: tiny\n", command="mtkd train -opt tiny.yml")
    root = tmp_path / "experiments" / "tiny"
    assert latest == root / "models" / "net_g_latest.pth"
    assert sorted(p.name for p in (root / "models").iterdir()) == [
        f"net_g_{step}.pth" for step in ("2", "4", "6", "8", "best", "latest")
    ]
    assert sorted(p.name for p in (root / "training_states").iterdir()) == [f"{step}.state" for step in (2, 4, 6, 8)]
    assert (root / "visualization" / "chelsea" / "chelsea_8.png").exists()
    assert "CMD" in (root / "tiny.yml").read_text()
    assert json.loads((root / "environment.json").read_text())["versions"]["torch"] == importlib.metadata.version(
        "torch"
    )
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "losses" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if "metrics" in row] == [4, 8]
    assert {"psnr", "ssim"} == set(rows[-1]["metrics"])
    log = next(root.glob("train_tiny_*.log")).read_text()
    assert "[tiny..][epoch:  4, iter:       8, lr:(5.000e-04,)]" in log


def test_basicsr_loads_our_checkpoint(tmp_path: Path) -> None:
    from basicsr.archs.edsr_arch import EDSR as BasicSREDSR

    latest = train(run_options(tmp_path))
    arguments = {key: value for key, value in STUDENT.items() if key != "type"}
    theirs = BasicSREDSR(num_in_ch=3, num_out_ch=3, **arguments)
    saved = content(latest)
    theirs.load_state_dict(saved["params"], strict=True)
    theirs.load_state_dict(saved["params_ema"], strict=True)
    ours = zoo.build(str(latest))
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_resume_continues_bit_exactly(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    straight = train(run_options(tmp_path / "a", images=images))
    train(run_options(tmp_path / "b", images=images, train={"total_iter": 4}))
    resumed = train(run_options(tmp_path / "b", images=images), auto_resume=True)
    assert same_weights(straight, resumed)
    rows = (tmp_path / "b/experiments/tiny/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6, 8]


def test_resume_after_kill_at_any_moment_is_bit_exact(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    settings = {"train": {"total_iter": 60}, "logger": {"print_freq": 1, "save_checkpoint_freq": 1}}
    straight = train(run_options(tmp_path / "a", images=images, **settings))
    options = run_options(tmp_path / "b", images=images, **settings)
    file = tmp_path / "run.yml"
    file.write_text(resolved_yaml(options))
    command = [sys.executable, "-m", "mtkd", "train", "-opt", str(file), "--auto_resume"]
    states = tmp_path / "b/experiments/tiny/training_states"
    # Sums over threads depend on their number, so both runs need the same.
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 200
        while not (states / "7.state").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "b/experiments/tiny/models/net_g_latest.pth").exists()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, timeout=200)
    assert same_weights(straight, tmp_path / "b/experiments/tiny/models/net_g_latest.pth")


def test_first_ctrl_c_saves_and_a_resume_is_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images")
    straight = train(run_options(tmp_path / "a", images=images))
    real = train_module.train_step

    def interrupted(run, step, batches):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, step, batches)

    monkeypatch.setattr(train_module, "train_step", interrupted)
    with pytest.raises(Stopped) as stopped:
        train(run_options(tmp_path / "b", images=images))
    assert stopped.value.code == 130
    assert (tmp_path / "b/experiments/tiny/training_states/5.state").exists()
    monkeypatch.setattr(train_module, "train_step", real)
    assert same_weights(straight, train(run_options(tmp_path / "b", images=images), auto_resume=True))


def test_a_new_run_never_touches_an_old_one(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    options = run_options(tmp_path, images=images)
    latest = train(options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "experiments").rglob("*")}
    with pytest.raises(MtkdError, match="--auto_resume"):
        train(options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "experiments").rglob("*")} == before
    assert latest.exists()


def test_nothing_is_written_when_something_is_wrong(tmp_path: Path) -> None:
    options = run_options(tmp_path, path={"experiments_root": str(tmp_path / "e"), "pretrain_network_g": "missing.pth"})
    with pytest.raises(MtkdError, match="missing.pth"):
        train(options)
    assert not (tmp_path / "e").exists()


def test_nan_stops_the_run_names_the_term_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train_module.train_step

    def poisoned(run, step, batches):
        if step == 4:
            with torch.no_grad():
                run.method.student.conv_last.bias.fill_(float("nan"))
        return real(run, step, batches)

    monkeypatch.setattr(train_module, "train_step", poisoned)
    with pytest.raises(MtkdError, match=r"'pixel' became nan at iteration 5 .*pixel: nan.*"):
        train(run_options(tmp_path))
    models = tmp_path / "experiments/tiny/models"
    assert sorted(p.name for p in models.iterdir()) == ["net_g_2.pth", "net_g_4.pth"]
    assert all(value.isfinite().all() for value in content(models / "net_g_4.pth")["params"].values())


def test_accumulation_takes_that_many_batches_and_their_mean(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    sgd = {"optim_g": {"type": "SGD", "lr": 1.0}, "scheduler": CONSTANT, "ema_decay": 0.0}
    updates = []
    for accumulate, starts in ((2, (0,)), (1, (0, 1))):
        for start in starts:
            name = f"run{accumulate}{start}"
            options = run_options(tmp_path, images=images, name=name, train={**sgd, "accumulate": accumulate})
            run = train_module.prepare(options)
            run.state.start = start
            before = run.method.student.conv_first.weight.detach().clone()
            train_module.train_step(run, start, run.batches())
            updates.append(run.method.student.conv_first.weight.detach() - before)
            run.close()
    torch.testing.assert_close(updates[0], (updates[1] + updates[2]) / 2, rtol=1e-3, atol=1e-7)


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    sgd = {"type": "SGD", "lr": 1.0}
    options = run_options(
        tmp_path, images=images, train={"optim_g": sgd, "clip_grad_norm": 1e-3, "scheduler": CONSTANT, "ema_decay": 0.0}
    )
    run = train_module.prepare(options)
    before = [p.detach().clone() for p in run.method.student.parameters()]
    train_module.train_step(run, 0, run.batches())
    moved = sum((p.detach() - b).pow(2).sum() for p, b in zip(run.method.student.parameters(), before, strict=True))
    assert 0 < moved.sqrt() <= 1.001e-3
    run.close()


def test_bf16_and_weight_schedules_train(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    options = run_options(
        tmp_path,
        images=images,
        precision="bf16",
        train={"pixel_opt": {"type": "L1Loss", "loss_weight": [[0, 0.0], [4, 1.0]]}},
    )
    rows = []
    latest = train(options)
    rows = [json.loads(r) for r in (tmp_path / "experiments/tiny/metrics.jsonl").read_text().splitlines()]
    assert all(value.isfinite().all() for value in content(latest)["params"].values())
    # Mean weight over iterations 0 and 1 is 0.125, over 6 and 7 it is 1.
    assert rows[0]["losses"]["l_total"] < 0.3 * rows[0]["losses"]["pixel"]
    assert rows[-1]["losses"]["l_total"] == pytest.approx(rows[-1]["losses"]["pixel"])


def test_two_stages_and_the_order_of_teachers(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    teachers = make_teachers(tmp_path / "teachers")
    stage1 = run_options(
        tmp_path, images=images, name="fusion", model_type="MTKDFusion", network_g=FUSION, teachers=teachers
    )
    weights = train(stage1)
    assert content(weights)["mtkd"]["members"] == ["edsr", "rcan"]
    fusion = {"network": FUSION, "pretrain": str(weights)}
    stage2 = run_options(tmp_path, images=images, name="student", model_type="MTKD", teachers=teachers, fusion=fusion)
    student = zoo.build(str(train(stage2)))
    assert isinstance(student, EDSR)

    swapped = dict(reversed(teachers.items()))
    wrong = run_options(tmp_path, images=images, name="wrong", model_type="MTKD", teachers=swapped, fusion=fusion)
    with pytest.raises(MtkdError, match="edsr, rcan"):
        train(wrong)


def test_pretrained_student_starts_where_it_was(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    first = train(run_options(tmp_path, images=images))
    options = run_options(
        tmp_path,
        images=images,
        name="second",
        path={
            "experiments_root": str(tmp_path / "experiments"),
            "pretrain_network_g": str(first),
            "param_key_g": "params_ema",
        },
    )
    run = train_module.prepare(options)
    expected = content(first)["params_ema"]
    for name, value in run.method.student.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    run.close()


def test_curriculum_grows_the_crops_and_resumes_exactly(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    curriculum = {"curriculum": {"gt_size": [[0, 8], [3, 16]]}}
    options = run_options(tmp_path / "a", images=images, train=curriculum)
    run = train_module.prepare(options)
    assert [batch.gt.shape[-1] for batch in run.batches()] == [8, 8, 8, 16, 16, 16, 16, 16]
    run.close()
    straight = train(run_options(tmp_path / "c", images=images, train=curriculum))
    train(run_options(tmp_path / "b", images=images, train={**curriculum, "total_iter": 4}))
    assert same_weights(straight, train(run_options(tmp_path / "b", images=images, train=curriculum), auto_resume=True))
    with pytest.raises(MtkdError, match=r"curriculum.gt_size.*32 must be"):
        run_options(tmp_path, images=images, train={"curriculum": {"gt_size": [[0, 32]]}})


def test_bf16_does_not_round_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images")
    run = train_module.prepare(run_options(tmp_path, images=images, precision="bf16"))
    seen = []
    real = type(run.method).forward

    def forward(self, batch, step):
        seen.append(batch)
        return real(self, batch, step)

    monkeypatch.setattr(type(run.method), "forward", forward)
    train_module.train_step(run, 0, run.batches())
    expected = run.sampler.batch(0)
    assert torch.equal(seen[0].gt, expected.gt) and torch.equal(seen[0].lq, expected.lq)
    run.close()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = train_module.train_step

    def poisoned(run, step, batches):
        values = real(run, step, batches)
        if step == 3:
            with torch.no_grad():
                run.method.student.conv_last.bias[0] = float("inf")
        return values

    monkeypatch.setattr(train_module, "train_step", poisoned)
    with pytest.raises(MtkdError, match="not finite after iteration 4"):
        train(run_options(tmp_path))
    assert [p.name for p in (tmp_path / "experiments/tiny/models").iterdir()] == ["net_g_2.pth"]


def test_a_run_killed_at_its_very_end_is_finished_by_resuming(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    latest = train(run_options(tmp_path, images=images))
    latest.unlink()
    assert train(run_options(tmp_path, images=images), auto_resume=True) == latest
    assert same_weights(latest, latest.with_name("net_g_8.pth"))


def test_the_file_that_says_a_run_is_finished_is_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def deployable(run: Run) -> None:
        seen.append(run.folder.model("latest").exists())

    monkeypatch.setattr(train_module, "save_deployable", deployable)
    latest = train(run_options(tmp_path, train={"total_iter": 2}))
    assert latest.exists() and seen == [False]


def test_a_run_killed_before_its_first_checkpoint_starts_over_without_repeating_lines(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    train(run_options(tmp_path, images=images))
    root = tmp_path / "experiments/tiny"
    for folder in ("models", "training_states"):
        for file in (root / folder).iterdir():
            file.unlink()
    rows = (root / "metrics.jsonl").read_text().splitlines()
    (root / "metrics.jsonl").write_text(rows[0] + "\n" + rows[1][:20])
    train(run_options(tmp_path, images=images), auto_resume=True)
    assert [json.loads(row)["step"] for row in (root / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6, 8]


def test_a_state_knows_the_validation_of_its_iteration(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    plain = run_options(tmp_path, images=images).datasets.model_dump(exclude_none=True)
    sets = {**plain, "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)}}
    train(run_options(tmp_path, images=images, datasets=sets, val=VAL))
    state = content(tmp_path / "experiments/tiny/training_states/4.state")
    assert state["best"]["val"]["psnr"]["iter"] == 4
    assert state["epoch"] == 2


def test_resuming_takes_the_option_files_optimizer_settings_and_refuses_another_seed(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    train(run_options(tmp_path, images=images, train={"total_iter": 4}))
    changed = {"optim_g": {"type": "Adam", "lr": 1e-3, "weight_decay": 0.5}}
    run = train_module.prepare(run_options(tmp_path, images=images, train=changed), auto_resume=True)
    assert run.optimizers["main"].param_groups[0]["weight_decay"] == 0.5
    assert run.optimizers["main"].state_dict()["state"], "the moments must come from the state"
    run.close()
    with pytest.raises(MtkdError, match="manual_seed 3"):
        train(run_options(tmp_path, images=images, manual_seed=4), auto_resume=True)


def test_resuming_an_older_state_never_overwrites_later_checkpoints(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    train(run_options(tmp_path, images=images))
    old = {"experiments_root": str(tmp_path / "experiments")}
    old["resume_state"] = str(tmp_path / "experiments/tiny/training_states/4.state")
    with pytest.raises(MtkdError, match="later checkpoints"):
        train(run_options(tmp_path, images=images, path=old))
    train(run_options(tmp_path, images=images, path=old, name="branch"))
    assert same_weights(
        tmp_path / "experiments/tiny/models/net_g_8.pth", tmp_path / "experiments/branch/models/net_g_8.pth"
    )


def test_the_order_of_teachers_is_checked_wherever_a_fusion_network_is_loaded(tmp_path: Path) -> None:
    from mtkd.build import output_network
    from mtkd.config import make_options

    images = make_images(tmp_path / "images")
    teachers = make_teachers(tmp_path / "teachers")
    swapped = dict(reversed(teachers.items()))
    given = {"images": images, "model_type": "MTKDFusion", "network_g": FUSION}
    weights = train(run_options(tmp_path, **given, teachers=teachers, train={"total_iter": 2}))
    with pytest.raises(MtkdError, match="edsr, rcan"):
        train(run_options(tmp_path, **given, teachers=swapped), auto_resume=True)
    paths = {"experiments_root": str(tmp_path / "experiments"), "pretrain_network_g": str(weights)}
    with pytest.raises(MtkdError, match="edsr, rcan"):
        train(run_options(tmp_path, **given, name="other", teachers=swapped, path=paths))
    test = {
        "name": "t",
        "scale": 2,
        "model_type": "MTKDFusion",
        "network_g": FUSION,
        "datasets": {"test_1": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)}},
        "path": {"pretrain_network_g": str(weights)},
    }
    with pytest.raises(MtkdError, match="edsr, rcan"):
        output_network(make_options({**test, "teachers": swapped}))
    net = output_network(make_options({**test, "teachers": teachers}))
    assert sum(p.numel() for p in net.parameters()) > sum(p.numel() for p in net.fusion.parameters())


def test_a_student_is_tested_under_its_methods_name_without_teachers(tmp_path: Path) -> None:
    from mtkd.build import output_network
    from mtkd.config import make_options

    images = make_images(tmp_path / "images")
    weights = train(run_options(tmp_path, images=images))
    test = {
        "name": "t",
        "scale": 2,
        "network_g": STUDENT,
        "datasets": {"test_1": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)}},
        "path": {"pretrain_network_g": str(weights)},
    }
    for method in ("FAKD", "SRKD", "FitNet", "AT", "PKT", "CRD", "DUKD", "StructuredKD", "MTKD", "OnlineTeacher"):
        assert isinstance(output_network(make_options({**test, "model_type": method})), EDSR)


def test_without_a_seed_one_is_drawn_kept_with_the_run_and_taken_up_again(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    unseeded = {"images": images, "manual_seed": None, "train": {"total_iter": 4}}
    train(run_options(tmp_path, **unseeded))
    seed = content(tmp_path / "experiments/tiny/training_states/4.state")["seed"]
    assert 1 <= seed <= 10000
    assert f"manual_seed: {seed}\n" in (tmp_path / "experiments/tiny/resolved.yml").read_text()
    longer = train_module.prepare(run_options(tmp_path, **{**unseeded, "train": {"total_iter": 6}}), auto_resume=True)
    assert longer.seed == seed
    longer.close()
    seeds = {train_module.prepare(run_options(tmp_path, **unseeded, name=f"run{n}")).seed for n in range(4)}
    assert len(seeds) > 1
