"""What a job is made of is what its digest covers: nothing of where things lie, and nothing left out."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtkd.bench import control, gather, jobs, records, work
from mtkd.bench.control import Board
from mtkd.bench.grid import load_grid
from mtkd.bench.jobs import Plan, plan
from mtkd.bench.report import keep, write_report
from mtkd.commands import bench as command
from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from tests.bench.toy import toy
from tests.helpers import photo

ROOT = Path(__file__).parents[2]
L1 = {"type": "L1Loss"}
SCRATCH = {"model_type": "SRModel", "train": {"pixel_opt": L1}}
KD = {"model_type": "OutputKD", "target_store": "target:kept", "train": {"target_opt": L1}}
ALONE: dict[str, Any] = {"seeds": [1], "teachers": {}, "runs": {}, "targets": {}, "rows": {"scratch": SCRATCH}}
"""A grid of one row without teachers."""
STORED: dict[str, Any] = {
    **ALONE,
    "teachers": {"kept": {"images": "{data}/answers"}},
    "rows": {"scratch": SCRATCH, "kd": KD},
}
"""And of one that imitates a store."""


def quiet(_: str) -> None:
    pass


def make(path: Path, out: Path) -> Plan:
    """Every job of the grid at `path`, in this process."""
    made = plan(load_grid(path), out)
    for job in made.jobs:
        work.execute(made, job, log=quiet)
    return made


def scores(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"scores/{name}.json").read_text())["rows"][name]["sets"]


def changed(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | json.loads(json.dumps(changes)), sort_keys=False))
    return path


@pytest.mark.parametrize("out", ["out", "test", "held_out", "."])
@pytest.mark.parametrize("data", ["data", "datasets", "val"])
def test_places_are_replaced_in_paths_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, data: str
) -> None:
    """Words such as datasets and held_out stand in option files for other things."""
    path = toy(tmp_path, **STORED)
    (tmp_path / "data").rename(tmp_path / data)
    monkeypatch.chdir(tmp_path)
    whole = plan(load_grid(path, data=tmp_path / data), tmp_path / "elsewhere")
    short = plan(load_grid(path, data=Path(data)), Path(out))
    assert {job.name: job.measured for job in short.jobs} == {job.name: job.measured for job in whole.jobs}


def test_a_setting_with_images_of_its_own_has_its_own_stores(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("coffee.png\n")
    few = {"datasets": {"train": {"meta_info_file": str(tmp_path / "few.txt")}}}
    path = toy(tmp_path, **STORED, settings={"few": few, "all": {}})
    made = make(path, tmp_path / "out")
    assert {job.name for job in made.jobs if job.kind == "target"} == {"target:kept_x2", "target:kept_few_x2"}
    assert {job.name for job in made.cells if jobs.is_done(tmp_path / "out", job)} == {
        f"{row}_small_{setting}_x2_4_s1" for row in ("scratch", "kd") for setting in ("few", "all")
    }


def test_a_store_is_of_the_images_of_the_protocols_base(tmp_path: Path) -> None:
    path = toy(tmp_path, **STORED)
    protocol = yaml.safe_load(path.read_text())["protocol"]
    train = protocol["datasets"].pop("train")
    base = tmp_path / "base.yml"

    def store(**more: str) -> str:
        base.write_text(yaml.safe_dump({"datasets": {"train": {**train, **more}}}))
        made = plan(load_grid(changed(path, protocol={**protocol, "base": str(base)})), tmp_path / "out")
        return made["target:kept_x2"].digest

    before = store()
    assert store() == before
    assert store(meta_info_file=str(tmp_path / "few.txt")) != before


def test_a_store_is_of_one_precision(tmp_path: Path) -> None:
    path = toy(tmp_path, **STORED)
    protocol = yaml.safe_load(path.read_text())["protocol"]

    def store(**more: str) -> str:
        made = plan(load_grid(changed(path, protocol={**protocol, **more})), tmp_path / "out")
        return made["target:kept_x2"].digest

    assert store() == store(precision="fp32") != store(precision="bf16")


def test_the_protocol_takes_away_what_a_rows_base_says(tmp_path: Path) -> None:
    path = toy(tmp_path, **ALONE)
    data = yaml.safe_load(path.read_text())
    base = tmp_path / "row.yml"
    base.write_text(yaml.safe_dump({**SCRATCH, "datasets": {"val": data["protocol"]["datasets"].pop("val")}}))
    data["protocol"]["datasets"]["val"] = None
    data["protocol"] |= {"val": None}
    data["rows"] = {"scratch": {"base": str(base)}}
    path.write_text(yaml.safe_dump(data))
    (cell,) = plan(load_grid(path), tmp_path / "out").cells
    assert cell.cell is not None and "val" not in cell.cell.options["datasets"]


def test_without_its_record_a_run_is_made_anew_and_kept(tmp_path: Path) -> None:
    """Nothing says of which definition it is."""
    path, out, name = toy(tmp_path, **ALONE), tmp_path / "out", "scratch_small_x2_4_s1"
    make(path, out)
    old = scores(out, name)
    record = out / f"jobs/{name}.json"
    record.write_bytes(record.read_bytes()[:20])
    make(changed(path, rows={"scratch": {**SCRATCH, "train": {"pixel_opt": {"type": "MSELoss"}}}}), out)
    assert scores(out, name) != old
    assert len([*out.glob(f"runs/{name}_archived_*")]) == 1


def test_what_only_finished_jobs_needed_is_not_made_again(tmp_path: Path) -> None:
    path, out = toy(tmp_path, **STORED), tmp_path / "out"
    made = make(path, out)
    (out / "targets/kept_x2.safetensors").unlink()
    needed, done = made.to_make(made.cells)
    assert {job.name for job in needed} == done == {job.name for job in made.cells}
    more = plan(load_grid(changed(path, seeds=[1, 2])), out)
    needed, done = more.to_make(more.cells)
    assert {job.name for job in needed} - done == {
        "target:kept_x2",
        "scratch_small_x2_4_s2",
        "kd_small_x2_4_s2",
    }


def without_weights(out: Path, name: str) -> None:
    """As results are that were kept: scores, record and curve of the run, no weights, no state."""
    for folder in ("models", "training_states"):
        shutil.rmtree(out / "runs" / name / folder)


def test_a_cell_with_scores_is_not_trained_again_for_its_weights(tmp_path: Path) -> None:
    path, out, name = toy(tmp_path, **STORED), tmp_path / "out", "scratch_small_x2_4_s1"
    made = make(path, out)
    without_weights(out, name)
    assert not jobs.is_done(out, made[name]) and jobs.is_measured(out, made[name])
    needed, done = made.to_make(made.cells)
    assert {job.name for job in needed} == done == {job.name for job in made.cells}
    # Other scores are wanted, which only weights can give.
    data = yaml.safe_load(path.read_text())
    data["test"]["metrics"] = {"mine": next(iter(data["test"]["metrics"].values()))}
    other = plan(load_grid(changed(path, test=data["test"])), out)
    needed, done = other.to_make(other.cells)
    assert {job.name for job in needed} - done == {job.name for job in other.cells}


def test_weights_that_another_cell_starts_from_are_made_again(tmp_path: Path) -> None:
    """The folder that came without them holds a curve to its end, which no training writes over."""
    tuned = {**SCRATCH, "path": {"pretrain_network_g": "row:scratch"}}
    path, out, name = toy(tmp_path, **ALONE), tmp_path / "out", "scratch_small_x2_4_s1"
    make(path, out)
    old = scores(out, name)
    without_weights(out, name)
    more = plan(load_grid(changed(path, rows={"scratch": SCRATCH, "tuned": tuned})), out)
    needed, done = more.to_make(more.cells)
    assert not done and [job.name for job in needed] == [name, "tuned_small_x2_4_s1"]
    said: list[str] = []
    for job in needed:
        work.execute(more, job, log=said.append)
    assert scores(out, name) == old
    assert len([*out.glob(f"runs/{name}_archived_*")]) == 1
    assert any("is without its weights" in line for line in said)
    assert all(jobs.is_done(out, job) for job in more.cells)


def test_pictures_are_of_the_cells_whose_weights_are_here(tmp_path: Path) -> None:
    path, out = toy(tmp_path, **STORED), tmp_path / "out"
    made = make(path, out)
    without_weights(out, "scratch_small_x2_4_s1")
    said: list[str] = []
    write_report(made, log=said.append)
    assert any(line.startswith("The page's pictures leave out") and "scratch" in line for line in said)
    assert not any("The page has no pictures" in line for line in said)
    without_weights(out, "kd_small_x2_4_s1")
    said.clear()
    write_report(made, log=said.append)
    assert any("The page has no pictures" in line and "scores alone" in line for line in said)


def test_what_is_kept_is_finished(tmp_path: Path) -> None:
    """The curve of a run that goes on, without its checkpoint, would be refused as a start."""
    path, out, kept = toy(tmp_path, **STORED), tmp_path / "out", tmp_path / "kept"
    made = make(path, out)
    going = made["kd_small_x2_4_s1"]
    records.write_record(out, going, records.Record(going.digest, seconds=1.0))
    keep(made, kept, log=quiet)
    names = {file.stem for file in (kept / "jobs").iterdir()}
    assert names == {"target_kept_x2", "scratch_small_x2_4_s1", "teachers_x2"}
    assert [folder.name for folder in (kept / "runs").iterdir()] == ["scratch_small_x2_4_s1"]
    # And what was kept is an OUT to go on with: all of the one cell, nothing of the other.
    needed, done = plan(load_grid(path), kept).to_make(made.cells)
    assert done == {"scratch_small_x2_4_s1"} and {job.name for job in needed} - done == {"target:kept_x2", going.name}


def test_a_job_that_another_process_holds_is_looked_at_and_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares may wait for hours, and a process that tries takes seconds of a core."""
    monkeypatch.setattr(control, "_ELSEWHERE", 0.0)
    made = plan(load_grid(toy(tmp_path, **ALONE)), tmp_path / "out")
    (job,) = made.cells
    board = Board(made, [job], elsewhere={job.name: 0.0})
    with records.lock_of(made.out, job):
        assert records.is_held(made.out, job)
        assert board.next() is None
        # Nothing is known of it yet: only the process that makes it can tell.
        assert Board(made, [job]).next() == job
    assert not records.is_held(made.out, job)
    assert board.next() == job


def test_what_is_done_is_not_blocked(tmp_path: Path) -> None:
    """Else a call would end before its last cells, and leave them out of its count."""
    made = plan(load_grid(toy(tmp_path, **STORED)), tmp_path / "out")
    wanted = [made["target:kept_x2"], *made.cells]
    board = Board(made, wanted, done={"kd_small_x2_4_s1"}, failed={"target:kept_x2": "why"})
    assert not board.blocked
    assert not board.finished()
    following = board.next()
    assert following is not None and following.name == "scratch_small_x2_4_s1"


def test_shares_have_cells_of_every_row(tmp_path: Path) -> None:
    made = plan(load_grid(toy(tmp_path, **{**STORED, "seeds": [1, 2]})), tmp_path / "out")
    for text in ("1/2", "2/2"):
        share = control.shard(made.cells, text)
        assert {job.cell.row for job in share if job.cell} == {"scratch", "kd"}


def test_a_job_that_is_defined_otherwise_by_now_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was edited while a call ran with it."""
    from mtkd.cli import main

    path, out = toy(tmp_path, **ALONE), tmp_path / "out"
    out.mkdir()
    job = plan(load_grid(path), out).cells[0]
    words = ["bench", str(path), "--out", str(out), "--job", job.name, "--digest"]
    changed(path, rows={"scratch": {**SCRATCH, "train": {"pixel_opt": {"type": "MSELoss"}}}})
    assert main([*words, job.measured]) == control.CHANGED
    assert not (out / "runs").exists()
    board = Board(plan(load_grid(path), out), [job])
    control._ended(board, job, control.CHANGED, quiet)
    assert "was changed meanwhile" in board.failed[job.name]


def test_several_validation_sets_are_not_one_curve(tmp_path: Path) -> None:
    path, out = toy(tmp_path, **ALONE), tmp_path / "out"
    protocol = yaml.safe_load(path.read_text())["protocol"]
    val = protocol["datasets"].pop("val")
    protocol["datasets"] |= {"val_1": val, "val_2": {**val, "name": "others"}}
    made = make(changed(path, protocol=protocol), out)
    (row,) = [row for row in gather.gather(made, 2).rows if row.group]
    (curve,) = row.curves
    assert (list(curve.iterations), curve.dataset) == ([2, 4], "held_out")


def test_a_row_that_changes_the_network_has_costs_of_its_own(tmp_path: Path) -> None:
    rows = {"scratch": SCRATCH, "wide": {**SCRATCH, "network_g": {"num_feat": 16}}}
    write_report(make(toy(tmp_path, **{**ALONE, "rows": rows}), tmp_path / "out"), log=quiet)
    costs = json.loads((tmp_path / "out/costs_x2.json").read_text())
    assert set(costs) == {"small", "small, wide"}
    assert costs["small, wide"]["memory_mib"] > costs["small"]["memory_mib"]


def test_costs_are_of_the_network_that_the_grid_has_now(tmp_path: Path) -> None:
    path, out = toy(tmp_path, **ALONE), tmp_path / "out"
    write_report(make(path, out), log=quiet)
    before = json.loads((out / "costs_x2.json").read_text())["small"]
    write_report(
        make(changed(path, students={"small": {"type": "EDSR", "num_feat": 8, "num_block": 1}}), out), log=quiet
    )
    after = json.loads((out / "costs_x2.json").read_text())["small"]
    assert (before["network"]["num_feat"], after["network"]["num_feat"]) == (4, 8)


@pytest.mark.parametrize("scales", [[2, 4], [4, 2]])
def test_a_scale_without_results_leaves_the_others_their_report(tmp_path: Path, scales: list[int]) -> None:
    path, out = toy(tmp_path, **ALONE), tmp_path / "out"
    make(path, out)
    said: list[str] = []
    folders = write_report(plan(load_grid(changed(path, scales=scales)), out), log=said.append)
    assert [folder.name for folder in folders] == ["report_x2"]
    assert any("missing: No cell of toy at x4" in line for line in said)


def test_pictures_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that was added after the measurement is first in the folder."""
    from mtkd.bench import report as reports

    path, out = toy(tmp_path, **ALONE), tmp_path / "out"
    made = make(path, out)
    shown: list[Any] = []
    monkeypatch.setattr(reports, "write_page", lambda report, *_: shown.append(report.pictures))
    write_report(made, log=quiet)
    write_image(tmp_path / "data/test/aaa.png", photo("astronaut", (40, 40)))
    write_report(made, log=quiet)
    before, after = ({one.image: one.gt.tobytes() for one in pictures} for pictures in shown)
    assert before == after != {}


def test_files_that_were_cut_short_take_no_table_away(tmp_path: Path) -> None:
    path, out = toy(tmp_path, **ALONE), tmp_path / "out"
    made = make(path, out)
    write_report(made, log=quiet)
    table = (out / "report/tables.md").read_text()
    for name in ("costs_x2.json", "runs/scratch_small_x2_4_s1/environment.json"):
        (out / name).write_text('{"half')
    with (out / "runs/scratch_small_x2_4_s1/metrics.jsonl").open("a") as file:
        file.write('["no", "row"]\n')
    write_report(made, log=quiet)
    assert (out / "report/tables.md").read_text() == table
    (out / "scores/scratch_small_x2_4_s1.json").write_text(json.dumps({"measured": made.cells[0].measured}))
    with pytest.raises(MtkdError, match="nothing to report"):
        write_report(made, log=quiet)


def test_a_run_that_is_called_otherwise_has_its_rows_named_so(tmp_path: Path) -> None:
    path = toy(tmp_path)
    before = plan(load_grid(path), tmp_path)["teachers_x2"]
    runs = yaml.safe_load(path.read_text())["runs"]
    runs["fusion"]["title"] = "fused by DCTSwin"
    after = plan(load_grid(changed(path, runs=runs)), tmp_path)["teachers_x2"]
    assert before.digest == after.digest and before.measured != after.measured


def test_test_images_that_are_missing_are_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtkd.cli import main

    path, out = toy(tmp_path, **ALONE), tmp_path / "out"
    (tmp_path / "data/test").rename(tmp_path / "data/moved")
    assert main(["bench", str(path), "--out", str(out)]) == 2
    assert "test.datasets.test_1: " in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("where", ["help", "page"])
def test_the_grids_that_are_shown_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "help":
        commands = argparse.ArgumentParser().add_subparsers()
        command.add(commands)
        said = str(commands.choices["bench"].epilog)
        shown = textwrap.dedent("  name: my_grid" + said.partition("  name: my_grid")[2].partition("\n\n")[0])
    else:
        shown = (ROOT / "docs/bench.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    monkeypatch.chdir(ROOT)
    path = tmp_path / "grid.yml"
    path.write_text(shown, encoding="utf-8")
    assert len(plan(load_grid(path), tmp_path / "out").cells) >= 6
