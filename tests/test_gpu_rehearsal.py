"""What benchmarks/gpu.py does on a GPU, at toy size on the CPU: parts, records, an end in time, and going on."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtkd.bench import records
from mtkd.bench.records import Record
from mtkd.bench.scores import scores_path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks/gpu.py"


MINUTES = 15
"""What a busy machine may need; an idle one needs less than one."""


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GPU), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60 * MINUTES + 60,
    )  # fmt: skip


@pytest.mark.timeout(60 * MINUTES + 90)
def test_the_rehearsal_checks_and_measures(tmp_path: Path) -> None:
    done = call("--minutes", MINUTES, "--out", tmp_path, "--rehearse", "--parts", "check,speed")
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "table.md").read_text()
    assert table in done.stdout and "failed" not in table.replace("0 failed", ""), table
    outcomes = [json.loads(line) for line in (tmp_path / "check.jsonl").read_text().splitlines()]
    assert sum("test" in line for line in outcomes) > 50 and "environment" in outcomes[-1]
    sections = json.loads((tmp_path / "speed_cpu.json").read_text())
    assert set(sections) == {"stage2", "wavelet"} and all(section["rows"] for section in sections.values())


@pytest.mark.timeout(60 * MINUTES + 90)
def test_the_rehearsal_trains_a_grid_goes_on_and_keeps_it(tmp_path: Path) -> None:
    given = ("--minutes", MINUTES, "--rehearse", "--parts", "train")
    done = call("--out", tmp_path, *given)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "table.md").read_text()
    assert table in done.stdout and "failed" not in table, table
    record = json.loads((tmp_path / "train.json").read_text())
    assert (record["cells"], record["cells left"], record["unfinished"]) == (3, 0, [])
    rows = {row["row"]: row for row in record["finished"]}
    trained = [row for row in rows.values() if "seeds" in row]
    assert len(trained) == 3 and all(5 < row["Set14 psnr"] < 60 and row["seeds"] == 1 for row in trained)
    assert {"bicubic", "hitsr", "vapsr", "craft", "mean of the teachers"} < set(rows)
    files = list(tmp_path.iterdir())
    assert len(files) <= 5 and all(file.stat().st_size < 16 * 2**20 for file in files)
    assert not any(str(tmp_path) in file.read_text(errors="replace") for file in files if file.suffix == ".json")
    again = call("--out", tmp_path / "later", "--state", tmp_path, *given)
    assert again.returncode == 0, again.stderr[-2000:]
    later = json.loads((tmp_path / "later/train.json").read_text())
    assert later["finished"] == record["finished"], "nothing was left to train"
    kept(tmp_path)


def kept(results: Path) -> None:
    """What came back makes the tables of the grid, without weights and images."""
    gpu = importlib.import_module("gpu")
    gpu.keep_grid(results, results / "kept")
    folder = results / "kept/gpu_x4_rehearsed"
    assert len(list((folder / "scores").iterdir())) == 4 and not list(folder.rglob("*.pth"))
    table = (folder / "report/tables.md").read_text()
    assert "our recipe, fused" in table and "not there yet" not in table


@pytest.mark.timeout(60 * MINUTES + 90)
def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yml"
    grid.write_text("name: broken\nnetwork_g: {type: EDSR}\ndatasets: {train: {}, val: {}}\ntrain: {total_iter: 1}\n")
    given = ("--parts", "speed,train", "--only", "wavelet", "--grid", grid)
    done = call("--minutes", MINUTES, "--out", tmp_path / "out", "--rehearse", *given)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed: train: " in done.stdout and "speed, wavelet: " in done.stdout
    assert "=== train failed" in (tmp_path / "out/log.txt").read_text()


@pytest.mark.timeout(60 * MINUTES + 90)
def test_an_end_in_time_loses_nothing(tmp_path: Path) -> None:
    """Minutes that hold no training: the call ends by itself, says what is missing, and leaves a state."""
    done = call("--minutes", 0.4, "--out", tmp_path, "--rehearse", "--parts", "train")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 jobs are not finished" in done.stdout and (tmp_path / "state.tar.0").exists()
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["finished"] == [] and record["cells left"] == 3


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def cells() -> Any:
    return importlib.import_module("measures.cells")


@pytest.fixture
def plan(cells: Any, tmp_path: Path) -> Any:
    return cells.prepare(ROOT / "benchmarks/gpu_x4.yml", tmp_path / "state", data=None)


def write_run(plan: Any, job: Any, *, done: int, size: int, scored: bool = False) -> None:
    """The files of a run that came to iteration `done`, without a network in them."""
    folder = plan.out / "runs" / job.name
    for inside in ("models", "training_states"):
        (folder / inside).mkdir(parents=True)
    for step in (1, done):
        (folder / f"training_states/{step}.state").write_bytes(os.urandom(size))
        (folder / f"models/net_g_{step}.pth").write_bytes(os.urandom(size))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": done, "validation": "Kodak5", "metrics": {"psnr": 30.0}}))
    if not scored:
        return
    (folder / "models/net_g_latest.pth").write_bytes(os.urandom(size))
    records.write_record(plan.out, job, Record(job.digest, done=True, seconds=1.0))
    images = [f"{number}" for number in range(3)]
    sets = {name: {"images": images, "psnr": [30.0, 31.0, 32.0 + done % 7]} for name in ("Set5", "B100")}
    rows = {job.name: {"parameters": 1, "gmacs": 1.0, "sets": sets}}
    here = {"device": "-", "cpu_threads": 1, "platform": "-", "versions": {}, "commit": "-"}
    content = {"measured": job.measured, "environment": here, "threads": "1", "rows": rows}
    path = scores_path(plan.out, job)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_every_row_has_a_seed_before_one_has_two(cells: Any, plan: Any) -> None:
    waiting = cells.waiting(plan)
    rows = 2 * len(plan.grid.rows)
    assert len(waiting) == 3 * rows + 1
    assert [job.cell.seed for job in waiting[:-1]] == [10] * rows + [20] * rows + [30] * rows
    write_run(plan, waiting[0], done=10000, size=1, scored=True)
    assert cells.waiting(plan) == waiting[1:]


def test_a_state_travels_in_small_files(cells: Any, plan: Any, tmp_path: Path) -> None:
    """Runs in training come before weights that are only looked at; of what has no room, nothing is left that would
    stand in the way of a new beginning.
    """
    out = tmp_path / "out"
    out.mkdir()
    ended, going = plan.cells[:5], plan.cells[5:9]
    for job in ended:
        write_run(plan, job, done=10000, size=6 * 2**20, scored=True)
    for number, job in enumerate(going):
        write_run(plan, job, done=50 + number, size=6 * 2**20)
    left = cells.pack(plan, out)
    assert left == [going[0].name], "the one that had come least far"
    parts = sorted(out.iterdir())
    assert len(parts) <= cells.PARTS and all(part.stat().st_size <= cells.PART_BYTES for part in parts)
    there = tmp_path / "there"
    cells.unpack(out, there)
    for number, job in enumerate(going):
        for file in (f"models/net_g_{50 + number}.pth", f"training_states/{50 + number}.state", "metrics.jsonl"):
            kept = Path("runs") / job.name / file
            assert number == 0 or (there / kept).read_bytes() == (plan.out / kept).read_bytes()
        assert not (there / "runs" / job.name / "training_states/1.state").exists()
    assert not (there / "runs" / left[0]).exists()
    again = cells.planned(there)
    assert not {job.name for job in ended} & {job.name for job in cells.waiting(again)}
    assert cells.reached(again)["finished"] == cells.reached(plan)["finished"]


def test_what_was_reached_is_told_of_finished_and_of_unfinished_runs(cells: Any, plan: Any) -> None:
    names = ("scratch_edsr_m_x4_10000_s10", "scratch_edsr_m_x4_10000_s20", "t_mean_edsr_m_x4_10000_s10")
    first, second, third = (plan[name] for name in names)
    write_run(plan, first, done=10000, size=1, scored=True)
    write_run(plan, second, done=10001, size=1, scored=True)
    write_run(plan, third, done=2500, size=1)
    found = cells.reached(plan)
    (row,) = found["finished"]
    assert row["seeds"] == 2 and row["of"] == "edsr_m, x4, 10,000 iterations"
    means = [(30 + 31 + 32 + done % 7) / 3 for done in (10000, 10001)]
    assert row["Set5 psnr"] == pytest.approx(sum(means) / 2)
    assert row["Set5 psnr, deviation"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    (run,) = found["unfinished"]
    assert run == {"run": third.name, "iterations": 2500, "Kodak5 psnr": 30.0, "measured at": 2500}
    assert (found["cells"], found["cells left"]) == (60, 58)
