"""`mtkd bench` from a shell: everything made once, failures that stop nobody, kills that change nothing."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from mtkd.bench import control, estimate, jobs, launchers, records
from mtkd.bench.control import Board, Slots
from mtkd.bench.grid import load_grid
from mtkd.bench.jobs import Job, Plan
from mtkd.bench.records import Record
from mtkd.cli import main
from mtkd.config import make_options
from mtkd.contracts import MtkdError, Stopped
from tests.bench.toy import toy

pytestmark = pytest.mark.slow


def command(path: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "mtkd", "bench", str(path), "--out", str(out), *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def bench(path: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has loaded torch already; its jobs have processes of their own."""
    printed, told = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, environment()), redirect_stdout(printed), redirect_stderr(told):
        code = main(command(path, out, *words)[3:])
    return subprocess.CompletedProcess([], code, printed.getvalue(), told.getvalue())


def planned(path: Path, out: Path) -> Plan:
    return jobs.plan(load_grid(path), out)


def results(out: Path) -> dict[str, str]:
    """What must not depend on how often it was interrupted: scores and weights, without times and places."""
    found = {}
    for file in sorted((out / "scores").glob("*.json")):
        found[file.name] = json.dumps(json.loads(file.read_text())["rows"], sort_keys=True)
    for file in sorted((out / "report").glob("*.csv")):
        found[file.name] = file.read_text()
    for file in sorted((out / "runs").glob("*/models/net_g_latest.pth")):
        state = torch.load(file, weights_only=True)
        weights = next(value for key, value in state.items() if key.startswith("params"))
        found[file.parent.parent.name] = str({name: float(tensor.double().sum()) for name, tensor in weights.items()})
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy grid, made without interruption."""
    folder = tmp_path_factory.mktemp("bench")
    path, out = toy(folder), folder / "out"
    done = bench(path, out, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return path, out


def test_everything_is_there(made: tuple[Path, Path]) -> None:
    path, out = made
    plan = planned(path, out)
    assert all(jobs.is_done(out, job) for job in plan.jobs)
    assert {file.name for file in (out / "report").iterdir()} == {
        "report.html",
        "tables.md",
        "tables.tex",
        "scores.csv",
        "comparisons.csv",
    }
    table = (out / "report/tables.md").read_text()
    for row in ("bicubic", "kept", "live", "mean of the teachers", "fused", "from scratch", "L1 on the fused image"):
        assert row in table
    page = (out / "report/report.html").read_text()
    assert "from scratch" in page and "L1 on the fused image" in page


def test_rows_share_their_start_and_their_batches(made: tuple[Path, Path]) -> None:
    """At the first iteration two rows differ by their loss alone: same weights, same lq."""
    _, out = made
    losses = {}
    for row in ("scratch", "fused"):
        lines = (out / f"runs/{row}_small_x2_4_s1/resolved.yml").read_text()
        options = yaml.safe_load(lines)
        losses[row] = (options["manual_seed"], options["datasets"]["train"], options["network_g"])
    assert losses["scratch"] == losses["fused"]


def test_kept_results_make_the_same_tables(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = made
    kept = tmp_path / "kept"
    assert bench(path, out, "--report_only", "--keep", str(kept)).returncode == 0
    assert not list(kept.rglob("*.pth"))
    (kept / "report/tables.md").unlink()
    done = bench(path, kept, "--report_only")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (kept / "report/tables.md").read_text() == (out / "report/tables.md").read_text()
    assert "The page has no pictures" in done.stdout


def test_a_second_call_makes_nothing(made: tuple[Path, Path]) -> None:
    path, out = made
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/models/*")}
    done = bench(path, out, "--no_report")
    assert done.returncode == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("runs/*/models/*")} == before


def test_killed_again_and_again_it_ends_with_the_same_tables(made: tuple[Path, Path], tmp_path: Path) -> None:
    """SIGKILL to the controller and all its processes at random moments, until a call gets through."""
    path, whole = made
    out, dice, kills = tmp_path / "out", random.Random(7), 0
    for patience in (4, 8, 12, 16):
        process = subprocess.Popen(
            command(path, out, "--jobs", "2"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(dice.uniform(1, patience))
            break
        except subprocess.TimeoutExpired:
            kills += 1
            _kill_all(out)
            process.kill()
            process.wait()
            _kill_all(out)
    done = bench(path, out, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert kills > 1
    assert results(out) == results(whole)


def _kill_all(out: Path) -> None:
    """End every process whose command line names `out`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


def test_what_is_defined_otherwise_is_made_anew_and_the_old_kept(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, whole = made
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    text = path.read_text()
    other = path.with_name("other.yml")
    other.write_text(text.replace("lr: 0.001", "lr: 0.002"))
    done = bench(other, out, "--no_report", "--only", "scratch*_s1")
    assert done.returncode == 0, done.stdout + done.stderr
    archived = list((out / "runs").glob("scratch_small_x2_4_s1_archived_*"))
    assert len(archived) == 1 and (archived[0] / "models/net_g_latest.pth").exists()
    resolved = yaml.safe_load((out / "runs/scratch_small_x2_4_s1/resolved.yml").read_text())
    assert resolved["train"]["optim_g"]["lr"] == 0.002
    # And back again.
    assert bench(path, out, "--no_report").returncode == 0


def test_a_failed_cell_stops_no_other(tmp_path: Path) -> None:
    path = toy(tmp_path)
    for file in (tmp_path / "data/answers/train").iterdir():
        file.unlink()
    done = bench(path, tmp_path / "out", "--jobs", "2", "--only", "*_s1")
    assert done.returncode == 1
    assert "fusion_x2 failed" in done.stdout and "waiting for fusion_x2: target:fused_x2" in done.stdout
    table = (tmp_path / "out/report/tables.md").read_text()
    assert "from scratch" in table and "L1 on the fused image" not in table.split("missing")[0]
    assert "missing: small, x2, 4 iterations: from scratch (1 of 2 seeds), L1 on the fused image (0" in done.stdout


def test_shares_split_the_cells_and_make_what_is_shared_once(tmp_path: Path) -> None:
    imitate = {"model_type": "OutputKD", "target_store": "target:kept"}
    path = toy(
        tmp_path,
        teachers={"kept": {"images": "{data}/answers"}},
        runs={},
        targets={},
        rows={"kd": {**imitate, "train": {"pixel_opt": None, "target_opt": {"type": "L1Loss"}}}},
        baselines=["kd"],
    )
    out = tmp_path / "out"
    shares = [
        subprocess.Popen(
            command(path, out, "--shard", f"{number}/2", "--no_report"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (1, 2)
    ]
    for share in shares:
        text, _ = share.communicate(timeout=600)
        assert share.returncode == 0, text
    plan = planned(path, out)
    assert all(jobs.is_done(out, job) for job in plan.jobs)
    (target,) = (job for job in plan.jobs if job.kind == "target")
    assert control.log_path(out, target).read_text().count("targets: 3 of 3 images") == 1


def test_submitit_runs_the_shares(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    path, out = toy(tmp_path), tmp_path / "out"
    done = bench(path, out, "--launcher", "local", "--jobs", "1", "--only", "scratch*_s1", "--no_report")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = planned(path, out)
    assert all(jobs.is_done(out, job) for job in plan.cells if job.name == "scratch_small_x2_4_s1")


def test_shares_of_this_machine_have_their_own_devices_and_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    said = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(launchers, "python_command", lambda arguments: [sys.executable, "-c", said])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    shares = launchers.submit("local", ["bench"], 3, [], [], folder=tmp_path)
    assert [share.result() for share in shares] == ["3 7", "5 7", "3 7"]


def test_a_stop_saves_what_runs(tmp_path: Path) -> None:
    path, out = toy(tmp_path, iterations=[20000]), tmp_path / "out"
    process = subprocess.Popen(
        command(path, out, "--only", "scratch*_s1", "--no_report"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = out / "runs/scratch_small_x2_20000_s1/metrics.jsonl"
    until = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # SIGINT is ignored where the tests run in a shell's background
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert said == (
        f"mtkd: the grid was stopped with 0 of 1 jobs done, which are kept in {out}. scratch_small_x2_20000_s1 "
        "will go on from what it has saved. The same command goes on.\n"
    )
    states = list((out / "runs/scratch_small_x2_20000_s1/training_states").glob("*.state"))
    assert states, "the run had no time to save"


def test_a_dry_run_trains_nothing(tmp_path: Path) -> None:
    path, out = toy(tmp_path), tmp_path / "out"
    done = bench(path, out, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "fused small x2, 4 iterations: 0 of 2 done" in done.stdout, done.stdout
    assert "needs target:fused_x2" in done.stdout and "of disk" in done.stdout
    assert not list(out.rglob("*.pth"))


# -- without processes ---------------------------------------------------------


def test_a_cost_is_of_the_length_the_validations_and_the_checkpoints_of_its_cell(tmp_path: Path) -> None:
    cost = estimate.Cost(step=1.0, validation=10.0, test=100.0, weights=1000, state=2000)
    path = toy(tmp_path, iterations=[4, 12])
    short, long = (
        next(job for job in planned(path, tmp_path / "out").cells if job.cell and job.cell.iterations == length)
        for length in (4, 12)
    )

    def of(job: Job, **logger: Any) -> tuple[float, int]:
        assert job.cell is not None
        kept = {**job.cell.options, "logger": {"save_checkpoint_freq": 4, **logger}}
        kept["val"] = {**kept["val"], "val_freq": 2}
        return cost.of(make_options(kept))

    assert of(short) == (4 + 2 * 10 + 100, 3000 + 2000)
    assert of(long) == (12 + 6 * 10 + 100, 3 * 3000 + 2000)
    assert of(long, keep_last=2) == (12 + 6 * 10 + 100, 2 * 3000 + 2000)


def test_a_dry_run_times_each_job_as_it_is_and_says_why_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fusion network whose teachers answered the training images alone; a teacher that is a run to come."""
    monkeypatch.setattr(estimate, "MINUTE", 0.0)
    l1 = {"type": "L1Loss"}
    teacher = {"model_type": "OutputKD", "train": {"pixel_opt": None, "target_opt": l1}}
    path = toy(
        tmp_path,
        seeds=[1],
        runs={
            "fusion": {
                "model_type": "MTKDFusion",
                "teachers": ["kept", "live"],
                "network_g": {"type": "DCTSwin", "embed_dim": 8, "depths": [2], "num_heads": [2], "num_feat": 4},
                "train": {"pixel_opt": l1},
                "datasets": {"val": None},
                "val": None,
            },
            "large": {
                "model_type": "SRModel",
                "network_g": {"type": "EDSR", "num_feat": 6, "num_block": 1},
                "train": {"pixel_opt": l1},
            },
        },
        targets={},
        rows={
            "scratch": {"model_type": "SRModel", "train": {"pixel_opt": l1}},
            "kd": {**teacher, "teachers": {"teacher": "run:large"}},
            "absent": {**teacher, "teachers": {"teacher": {"network": {"type": "EDSR"}, "pretrain": "absent.pth"}}},
        },
    )
    shutil.rmtree(tmp_path / "data/answers/Photos")
    plan, timed = planned(path, tmp_path / "out"), []
    monkeypatch.setattr(
        estimate, "_seconds_of_a_step", lambda run, _: timed.append(run.options.network_g.type) or len(timed)
    )
    text = estimate.describe(plan, [*plan.cells, plan["fusion_x2"]], jobs=1)
    about = {line.split()[0]: line for line in text.splitlines() if "iterations:" in line}
    assert timed == ["DCTSwin", "EDSR", "EDSR", "EDSR", "EDSR"]
    assert all("each (" in line for line in about.values()), text
    assert [name for name, line in about.items() if "its student alone" in line] == ["absent"], text
    assert "absent.pth" in text.partition("as it is it cannot be prepared: ")[2].splitlines()[0]
    assert not (tmp_path / "out/runs").exists()

    broken = Job(name="fusion_x2", kind="run", scale=2, cell=plan["fusion_x2"].cell)
    shutil.rmtree(tmp_path / "data/answers")
    text = estimate.describe(Plan(plan.grid, plan.out, (broken,)), [broken], jobs=1)
    assert "0 of 1 done, not timed\n    as it is it cannot be prepared: " in text, text
    assert "without 1 jobs that could not be timed" in text


def test_what_a_failed_job_blocks_is_told(tmp_path: Path) -> None:
    plan = planned(toy(tmp_path), tmp_path / "out")
    board = Board(plan, list(plan.jobs))
    board.failed["fusion_x2"] = "gone"
    assert board.blocked == dict.fromkeys(
        ("teachers_x2", "target:fused_x2", "fused_small_x2_4_s1", "fused_small_x2_4_s2"), "fusion_x2"
    )
    # Also where what is wanted stands in another order than it is made in.
    assert Board(plan, list(plan.jobs)[::-1], failed=board.failed).blocked == board.blocked
    board.done = {"scratch_small_x2_4_s1", "scratch_small_x2_4_s2"}
    assert board.finished() and board.next() is None


def test_at_the_end_of_its_time_what_runs_is_asked_to_save(tmp_path: Path) -> None:
    """Neither done nor failed, in the order that was asked for, and nothing more is begun."""
    plan = planned(toy(tmp_path), tmp_path / "out")
    wanted = [job for job in reversed(plan.cells) if job.cell and job.cell.row == "scratch"]
    script = (
        "import signal, sys, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_text('saved'), sys.exit(143)))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "signal.pause()\n"
    )
    files = {job.name: tmp_path / job.name for job in wanted}
    end = [time.time() + 600]

    def show(board: Board) -> None:
        if any(file.exists() for file in files.values()):
            end[0] = 0.0

    class Until(float):
        """A time that comes when the first process is there, however busy the machine is."""

        def __gt__(self, now: float) -> bool:
            return end[0] > now

    board = control.run(
        plan,
        wanted,
        Slots(1),
        command=lambda job: [sys.executable, "-c", script, str(files[job.name])],
        show=show,
        until=Until(0),
    )
    assert [job.name for job in board.wanted] == [job.name for job in wanted]
    assert files[wanted[0].name].read_text() == "saved" and not files[wanted[1].name].exists()
    assert not board.running and not board.failed and not board.done


def test_a_stop_in_the_midst_of_starting_a_process_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    plan = planned(toy(tmp_path), tmp_path / "out")
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Started)
        with pytest.raises(Stopped) as stopped:
            control.run(plan, plan.cells[:1], Slots(1), command=lambda job: sleep)
    assert "stopped with 0 of 1 jobs done" in stopped.value.kept
    assert [process.returncode for process in started] == [-signal.SIGTERM]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_impossible_shares_are_refused(text: str) -> None:
    with pytest.raises(MtkdError, match="k/n"):
        control.shard([], text)


def test_shares_are_all_cells_once(tmp_path: Path) -> None:
    cells = planned(toy(tmp_path), tmp_path / "out").cells
    shares = [control.shard(cells, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(job.name for share in shares for job in share) == sorted(job.name for job in cells)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_slots_deal_out_devices_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slots = Slots(4, ("3", "5"))
    assert [slots.variables(number)["CUDA_VISIBLE_DEVICES"] for number in range(4)] == ["3", "5", "3", "5"]
    assert int(slots.variables(0)["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in slots.variables(0)


def test_a_damaged_record_counts_as_nothing(tmp_path: Path) -> None:
    plan = planned(toy(tmp_path), tmp_path / "out")
    job = plan.cells[0]
    records.write_record(tmp_path / "out", job, Record(job.digest, done=True))
    assert not jobs.is_done(tmp_path / "out", job)  # the weights are not there
    records.record_path(tmp_path / "out", job).write_text("{")
    assert records.read_record(tmp_path / "out", job) is None
