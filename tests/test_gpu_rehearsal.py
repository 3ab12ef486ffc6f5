"""What benchmarks/gpu.py does on a GPU, at toy size on the CPU: parts, records, an end in time, and going on."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks/gpu.py"


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GPU), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_the_rehearsal_runs_all_parts_and_ends_within_its_minutes(tmp_path: Path) -> None:
    began = time.monotonic()
    done = call("--minutes", 4, "--out", tmp_path, "--rehearse")
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.monotonic() - began < 240
    table = (tmp_path / "table.md").read_text()
    assert table in done.stdout and "failed" not in table.replace("0 failed", ""), table
    outcomes = [json.loads(line) for line in (tmp_path / "check.jsonl").read_text().splitlines()]
    assert sum("test" in line for line in outcomes) > 50 and "environment" in outcomes[-1]
    sections = json.loads((tmp_path / "speed_cpu.json").read_text())
    assert set(sections) == {"stage2", "wavelet"} and all(section["rows"] for section in sections.values())
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [row["iterations"] for row in rows] == [4] * 6
    assert all(row["Set5 PSNR-Y"] > 5 for row in rows)
    files = list(tmp_path.iterdir())
    assert len(files) <= 8 and all(file.stat().st_size < 16 * 2**20 for file in files)
    again = call("--minutes", 1, "--out", tmp_path / "later", "--rehearse", "--parts", "train", "--state", tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads((tmp_path / "later/train.json").read_text())["rows"] == rows, "nothing was left to train"
    assert not any(str(tmp_path) in file.read_text(errors="replace") for file in files if file.suffix == ".json")


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yml"
    grid.write_text("name: broken\nnetwork_g: {type: EDSR}\ndatasets: {train: {}, val: {}}\ntrain: {total_iter: 1}\n")
    given = ("--parts", "speed,train", "--only", "wavelet", "--grid", grid)
    done = call("--minutes", 0.8, "--out", tmp_path / "out", "--rehearse", *given)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed: train: " in done.stdout and "speed, wavelet: " in done.stdout
    assert "=== train failed" in (tmp_path / "out/log.txt").read_text()


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("measures.cells")


def write_run(cells: Any, state: Path, cell: Any, *, done: int, size: int) -> None:
    folder = state / "runs" / cell.name
    for inside in ("models", "training_states"):
        (folder / inside).mkdir(parents=True)
    last = done == cells.total(cell)
    for step in (1, done):
        (folder / f"training_states/{step}.state").write_bytes(os.urandom(size))
        (folder / f"models/net_g_{step}.pth").write_bytes(os.urandom(size))
    if last:
        (folder / "models/net_g_latest.pth").write_bytes(os.urandom(size))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": done, "validation": "val", "metrics": {"psnr": 30.0}}))


def test_a_state_travels_in_small_files_and_unfinished_runs_come_first(cells: Any, tmp_path: Path) -> None:
    state, out, there = (tmp_path / name for name in ("state", "out", "there"))
    found = cells.cells(ROOT / "benchmarks/gpu_grid.yml", tmp_path, state)
    out.mkdir()
    for number, cell in enumerate(found[:8]):
        write_run(cells, state, cell, done=10000 if number < 5 else 50, size=6 * 2**20)
    left = cells.pack(found, state, out)
    parts = sorted(out.iterdir())
    assert len(parts) <= cells.PARTS and all(part.stat().st_size <= cells.PART_BYTES for part in parts)
    cells.unpack(out, there)
    for cell in found[5:8]:
        for file in ("models/net_g_50.pth", "training_states/50.state", "metrics.jsonl"):
            kept = Path("runs") / cell.name / file
            assert (there / kept).read_bytes() == (state / kept).read_bytes()
        assert not (there / "runs" / cell.name / "training_states/1.state").exists()
    assert left and set(left) < {cell.name for cell in found[:5]}
    for cell in found[:5]:
        assert cells.last_iteration(there, cell) == 10000
        assert cells.finished(there, cell) == (cell.name not in left)


def test_rows_report_each_set_by_its_name(cells: Any, tmp_path: Path) -> None:
    (cell, *_) = cells.cells(ROOT / "benchmarks/gpu_grid.yml", tmp_path, tmp_path)
    write_run(cells, tmp_path, cell, done=10000, size=1)
    (row,) = cells.table([cell], tmp_path)
    assert row["iterations"] == row["measured at"] == 10000 and row["Set5 PSNR-Y"] == 30.0
