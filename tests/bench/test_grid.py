"""Grid files: cells and their option files, links, schedules in parts of a run, and errors before any time is spent."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtkd.bench.cells import cells, runs
from mtkd.bench.grid import load_grid
from mtkd.bench.jobs import Plan, plan
from mtkd.bench.texts import fill
from mtkd.config import OptionError, make_options
from mtkd.contracts import MtkdError
from mtkd.runtime.shipped import photographs
from tests.bench.toy import toy

SCRATCH = {"model_type": "SRModel", "train": {"pixel_opt": {"type": "L1Loss"}}}
PLAIN = {**SCRATCH, "network_g": "edsr_tiny"}


def test_of(**changes: Any) -> dict[str, Any]:
    """A `test` with changes of itself or of its one set."""
    own = {key: changes.pop(key) for key in ("metrics", "teacher_sets") if key in changes}
    one = {"name": "Photos", "type": "PairedImageDataset", "dataroot_gt": "{data}/test", **changes}
    return {"datasets": {"test_1": one}, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}, **own}


test_of.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def planned(path: Path) -> Plan:
    return plan(load_grid(path), path.parent / "out")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{iterations}", 4000),
        ("{5/8}", 2500),
        ("{5/8+1}", 2501),
        ("{1/3}", 1333),
        ("from {1/2} on", "from 2000 on"),
        ("{}x4", "{}x4"),
        ("{scale}", 4),
        ("x{scale}", "x4"),
        (["{1/4}", {"a": "{1/4}"}, 0.5, None, True], [1000, {"a": 1000}, 0.5, None, True]),
    ],
    ids=str,
)
def test_parts_of_a_run_are_numbers(text: Any, filled: Any) -> None:
    assert fill(text, {"iterations": 4000, "scale": 4}) == filled


def test_cells_are_all_combinations(tmp_path: Path) -> None:
    path = toy(tmp_path, iterations=[4, 8], seeds=[1, 2, 3])
    found = list(cells(load_grid(path), tmp_path / "out"))
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * 3
    cell = next(cell for cell in found if cell.name == "fused_small_x2_8_s3")
    options = make_options(cell.options)
    assert cell.needs == ("target:fused_x2",)
    assert (options.manual_seed, options.training.total_iter, options.val.val_freq) == (3, 8, 4)
    assert options.training.scheduler.arguments()["periods"] == [8]
    assert options.target_store == str(tmp_path / "out/targets/fused_x2.safetensors")
    assert options.path.experiments_root == str(tmp_path / "out/runs")


def test_a_cell_stands_on_its_base_then_the_protocol_then_its_row(tmp_path: Path) -> None:
    path = toy(
        tmp_path,
        rows={
            "scratch": {"model_type": "SRModel", "train": {"pixel_opt": {"type": "L1Loss"}}},
            "kd": {
                "base": "recipe:OutputKD/kd",
                "teachers": ["live"],
                "train": {"optim_g": {"lr": 5e-4}, "total_iter": 4},
            },
        },
    )
    found = {cell.row: make_options(cell.options) for cell in cells(load_grid(path), tmp_path / "out")}
    kd = found["kd"]
    # The loss is the recipe's, data and schedule the protocol's, the rate the row's.
    assert set(kd.training.terms) == {"pixel", "target"}
    assert kd.datasets.train is not None and kd.datasets.train.gt_size == 32  # pyright: ignore[reportAttributeAccessIssue]
    assert kd.training.optim_g.lr == 5e-4
    assert list(kd.teachers) == ["live"]


def test_a_row_changes_arguments_of_the_students(tmp_path: Path) -> None:
    l1 = {"pixel_opt": {"type": "L1Loss"}}
    rows = {
        "scratch": {"model_type": "SRModel", "train": l1},
        "wide": {"model_type": "SRModel", "network_g": {"expand": 8}, "train": l1},
    }
    path = toy(tmp_path, rows=rows, students={"tiny": "tiny"}, baselines=["scratch"])
    found = {cell.row: make_options(cell.options).network_g for cell in cells(load_grid(path), tmp_path / "out")}
    assert (found["scratch"].args["expand"], found["wide"].args["expand"]) == (256, 8)
    assert found["wide"].args["num_feat"] == found["scratch"].args["num_feat"] == 16


def test_jobs_come_after_what_they_need(tmp_path: Path) -> None:
    made = planned(toy(tmp_path))
    position = {job.name: number for number, job in enumerate(made.jobs)}
    for job in made.jobs:
        assert all(position[need] < position[job.name] for need in job.needs), job.name
    # The mean is nobody's target here, and is not made.
    assert "target:mean_x2" not in position
    assert position["fusion_x2"] < position["target:fused_x2"] < position["fused_small_x2_4_s1"]
    assert {job.kind for job in made.jobs} == {"target", "run", "cell", "teachers"}


def test_a_teacher_is_a_target_by_its_name(tmp_path: Path) -> None:
    row = {"model_type": "OutputKD", "target_store": "target:kept", "train": {"target_opt": {"type": "L1Loss"}}}
    made = planned(toy(tmp_path, rows={"scratch": {**row, "title": "kept alone"}}))
    assert made["scratch_small_x2_4_s1"].needs == ("target:kept_x2",)


def test_a_row_can_begin_where_another_ended(tmp_path: Path) -> None:
    l1 = {"pixel_opt": {"type": "L1Loss"}}
    path = toy(
        tmp_path,
        rows={
            "later": {"model_type": "SRModel", "path": {"pretrain_network_g": "row:scratch"}, "train": l1},
            "scratch": {"model_type": "SRModel", "train": l1},
        },
    )
    made = planned(path)
    later = made["later_small_x2_4_s2"]
    assert later.needs == ("scratch_small_x2_4_s2",)
    assert later.cell is not None
    assert later.cell.options["path"]["pretrain_network_g"].endswith("scratch_small_x2_4_s2/models/net_g_latest.pth")
    names = [job.name for job in made.cells]
    assert names.index("scratch_small_x2_4_s2") < names.index("later_small_x2_4_s2")


def digests(path: Path) -> dict[str, tuple[str, str]]:
    return {job.name: (job.digest, job.measured) for job in planned(path).jobs}


def test_a_change_reaches_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    path = toy(tmp_path)
    before, text = digests(path), path.read_text()
    path.write_text(text.replace("embed_dim: 8", "embed_dim: 12"))
    changed = {name for name, digest in digests(path).items() if digest != before[name]}
    assert changed == {
        "fusion_x2",
        "target:fused_x2",
        "teachers_x2",
        "fused_small_x2_4_s1",
        "fused_small_x2_4_s2",
    }
    # Another metric leaves the networks as they are, and measures them again.
    path.write_text(text)
    data = yaml.safe_load(text)
    data["test"]["metrics"]["ssim"] = {"type": "calculate_ssim", "crop_border": 2}
    path.write_text(yaml.safe_dump(data))
    after = digests(path)
    assert all(after[name][0] == before[name][0] for name in before)
    assert after["scratch_small_x2_4_s1"][1] != before["scratch_small_x2_4_s1"][1]


def test_moving_the_folder_changes_nothing(tmp_path: Path) -> None:
    grid = load_grid(toy(tmp_path))
    here, there = plan(grid, tmp_path / "here"), plan(grid, tmp_path / "there")
    assert [job.digest for job in here.jobs] == [job.digest for job in there.jobs]
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    moved = plan(load_grid(tmp_path / "toy.yml", data=tmp_path / "elsewhere"), tmp_path / "here")
    assert [job.measured for job in here.jobs] == [job.measured for job in moved.jobs]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": {}}, "rows"),
        ({"seeds": []}, "seeds"),
        ({"sedes": [1]}, "sedes"),
        ({"baselines": ["kd"]}, "kd is no row"),
        ({"targets": {"mean": {"from": ["kept", "nobody"]}}}, "nobody is neither"),
        ({"targets": {"fused": {"run": "nothing"}}}, "nothing is not among `runs`"),
        ({"targets": {"fused": {"run": "fusion", "from": ["kept"]}}}, "not both"),
        ({"targets": {"fused": {}}}, "says neither"),
        ({"targets": {}}, "target:fused, which there is not"),
        (
            {"rows": {"scratch": {"students": ["smal"]}}},
            "rows.scratch.students: names smal, which the grid has not: small",
        ),
        ({"rows": {"scratch": {"settings": ["few"]}}}, "names few, which the grid has not: none"),
        ({"rows": {"scratch": {"iterations": [5]}}}, "names 5, which the grid has not: 4"),
        ({"settings": {"few": {"iterations": [5]}}}, "settings.few.iterations: names 5"),
        ({"students": {"a b": "edsr_m"}}, "letters, digits"),
        ({"rows": {"a": {"model_type": "OutputKD", "teachers": ["nobody"]}}}, "nobody is not among"),
        (
            {"rows": {"a": {"model_type": "SRModel", "train": {"pixel_opt": {"type": "L2Loss"}}}}, "baselines": []},
            "L2Loss",
        ),
        ({"rows": {"a": {"base": "recipe:nothing"}}, "baselines": []}, "No recipe"),
        ({"rows": {"a": {"model_type": "SRModel", "network_g": "edsr_m"}}, "baselines": []}, "under `students`"),
        ({"iterations": [4, 4]}, "iterations: names 4 twice"),
        ({"seeds": [1, 1]}, "seeds: names 1 twice"),
        ({"rows": {"a": {**SCRATCH, "title": "same"}, "b": {**SCRATCH, "title": "same"}}}, '"same" stands twice'),
        ({"rows": {"scratch": {**SCRATCH, "title": "bicubic"}}}, "only measured is called"),
        ({"rows": {"scratch": {**SCRATCH, "title": "live"}}}, "only measured is called"),
        ({"settings": {"a": {"title": "one"}, "b": {"title": "one"}}}, 'the title "one" stands twice'),
        (
            {"students": {"a": "edsr_tiny", "a_b": "edsr_tiny"}, "settings": {"b_c": {}, "c": {}}},
            "a_b_c would be the folder of two",
        ),
        (
            {
                "rows": {"scratch": SCRATCH, "scratch_b": SCRATCH},
                "students": {"small": "edsr_tiny", "b_small": "edsr_tiny"},
            },
            "would be called scratch_b_small_x2_4_s1",
        ),
        ({"runs": {"teachers": PLAIN}, "targets": {}, "rows": {"scratch": SCRATCH}}, "would be called teachers_x2"),
        ({"targets": {"live": {"from": ["kept"]}, "fused": {"from": ["kept"]}}}, "is the name of a teacher"),
        ({"targets": {"fused": {"from": ["kept", "live"], "weights": [1.0]}}}, "1 numbers for the 2 images"),
        ({"targets": {"fused": {"from": ["kept", "live"], "weights": [1.0, -1.0]}}}, "must be above 0"),
        ({"targets": {"fused": {"from": ["kept"], "gt": 1}}}, "ground truth alone"),
        ({"rows": {"scratch": SCRATCH, "kd": {**SCRATCH, "target_store": "targets:fused"}}}, "A link is target:fused"),
        ({"rows": {"scratch": {**SCRATCH, "iterations": 4}}}, "rows.scratch.iterations"),
        ({"rows": {"scratch": {**SCRATCH, "students": "small"}}}, "rows.scratch.students"),
        ({"settings": {"few": {"iterations": 4}}}, "settings.few.iterations"),
        ({"runs": {"fusion": {**PLAIN, "iterations": [2]}}}, "runs.fusion.iterations"),
        (
            {
                "iterations": [4, 8],
                "rows": {
                    "scratch": {**SCRATCH, "iterations": [4]},
                    "tuned": {**SCRATCH, "path": {"pretrain_network_g": "row:scratch"}},
                },
            },
            "tuned_small_x2_8_s1 needs scratch_small_x2_8_s1",
        ),
        ({"rows": {"scratch": {**SCRATCH, "val": {"val_freq": "{1/0}"}}}}, "b above 0"),
        ({"pooled": ["photos"]}, "photos is no test set. There are Photos"),
        ({"pooled": ["Photos", "Photos"]}, "names Photos twice"),
        ({"pictures": {"photos": ["rocket"]}}, "photos is no test set"),
        ({"published": [{"name": "EDSR", "dataset": "Set5", "metric": "psnr"}]}, "published.*value"),
        ({"test": test_of(metrics={"psnr": {"type": "calculate_psnrr"}})}, "calculate_psnrr"),
        ({"test": test_of(metrics={"psnr": {"type": "calculate_psnr", "crop_borders": 2}})}, "crop_borders"),
        ({"test": test_of(teacher_sets=["photos"])}, "photos is no test set"),
        ({"test": test_of(dataroot="nothing")}, "dataroot"),
        ({"test": test_of(name="held_out"), "pooled": ["held_out"]}, "held_out is what .* is validated on"),
        ({"test": test_of(dataroot_gt="{data}/val"), "pooled": ["Photos"]}, "Photos is what .* is validated on"),
        (
            {"rows": {"scratch": {**SCRATCH, "train": {**SCRATCH["train"], "total_iter": 8}}}},
            "scratch_small_x2_4_s1 is called one of 4 iterations, and its train.total_iter is 8",
        ),
        (
            {
                "rows": {"scratch": SCRATCH},
                "targets": {"mean": {"from": ["kept", "live"]}},
                "runs": {"target_mean": {**PLAIN, "iterations": 2}},
            },
            "would be called",
        ),
        (
            {
                "rows": {"scratch": SCRATCH},
                "targets": {},
                "runs": {
                    "early": {
                        **PLAIN,
                        "iterations": 2,
                        "train": {**SCRATCH["train"], "early_stop": {"patience": 1}},
                        "datasets": {"val": {"dataroot_gt": "{data}/test"}},
                    }
                },
            },
            "Photos is what early_x2 is validated on",
        ),
        (
            {
                "scales": [2, 4],
                "published": [{**dict.fromkeys(("name", "dataset", "metric", "source"), "E"), "value": 1}],
            },
            "E: the grid has several scales",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_named_before_anything_runs(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MtkdError, match=words):
        planned(toy(tmp_path, **changes))


def test_the_line_of_the_file_is_named(tmp_path: Path) -> None:
    path = toy(tmp_path, baselines=["kd"])
    line = next(n for n, text in enumerate(path.read_text().splitlines(), start=1) if text.startswith("baselines"))
    with pytest.raises(OptionError, match=f"toy.yml:{line}"):
        load_grid(path)


def test_the_same_mistake_of_many_cells_is_told_once(tmp_path: Path) -> None:
    path = toy(tmp_path, seeds=[1, 2, 3], rows={"a": {"model_type": "SRModel", "train": {"pixl_opt": {}}}})
    with pytest.raises(OptionError) as raised:
        planned(path)
    assert len(raised.value.problems) == 1


def test_targets_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = toy(tmp_path, targets={"one": {"from": ["two"]}, "two": {"from": ["one"]}, "fused": {"from": ["one"]}})
    with pytest.raises(MtkdError, match="need each other"):
        planned(path)


def test_runs_of_two_scales_are_two(tmp_path: Path) -> None:
    path = toy(
        tmp_path,
        scales=[2, 3],
        runs={"plain": {"model_type": "SRModel", "network_g": "edsr_tiny"}},
        targets={},
        rows={"scratch": {"model_type": "SRModel", "train": {"pixel_opt": {"type": "L1Loss"}}}},
    )
    assert [run.name for run in runs(load_grid(path), tmp_path)] == ["plain_x2", "plain_x3"]


def test_settings_make_a_table_each(tmp_path: Path) -> None:
    few = {"title": "two photographs", "iterations": [4], "train": {"optim_g": {"lr": 1e-4}}}
    made = planned(toy(tmp_path, iterations=[4, 8], settings={"all": {}, "few": few}))
    names = {job.name for job in made.cells}
    assert {"scratch_small_all_x2_8_s1", "scratch_small_few_x2_4_s1"} <= names
    assert "scratch_small_few_x2_8_s1" not in names
    cell = made["scratch_small_few_x2_4_s1"].cell
    assert cell is not None and cell.options["train"]["optim_g"] == {"type": "Adam", "lr": 1e-4}
    assert made.grid.subjects()["small_few"].title == "small, two photographs"


def test_a_row_may_stand_in_some_settings_alone(tmp_path: Path) -> None:
    l1 = {"model_type": "SRModel", "train": {"pixel_opt": {"type": "L1Loss"}}}
    rows = {"scratch": l1, "more": {**l1, "settings": ["few"]}}
    made = planned(toy(tmp_path, settings={"all": {}, "few": {}}, rows=rows))
    assert {job.cell.subject for job in made.cells if job.cell and job.cell.row == "more"} == {"small_few"}
    assert {job.cell.subject for job in made.cells if job.cell and job.cell.row == "scratch"} == {
        "small_all",
        "small_few",
    }


def test_the_grid_of_the_docs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs/bench.md").read_text(encoding="utf-8").split("```yaml")[1].split("```")[0]
    path = tmp_path / "grid.yml"
    path.write_text(text)
    monkeypatch.chdir(root)
    grid = load_grid(path)
    assert len(plan(grid, tmp_path / "out").cells) == 4 * 2 * 3 * 3


@pytest.mark.parametrize(
    "name",
    [
        "cpu_x4",
        "cpu_x4_few",
        "demo_x2",
        "gpu_x4",
        "edsr_m_x4",
        "branches_x4",
        "students_x2",
        "students_x3",
        "students_x4",
    ],
)
def test_the_committed_grids_are_sound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    assert planned_in(root / f"benchmarks/{name}.yml", root / "nowhere").cells


def test_the_photographs_of_the_demo_are_a_grids_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy(tmp_path)
    path.write_text(path.read_text().replace(f"data: {tmp_path}/data", "data: demo:photographs"))
    grid = load_grid(path)
    assert Path(grid.data) == photographs() and grid.test.datasets["test_1"]["dataroot_gt"] == f"{grid.data}/test"
    assert load_grid(path, data=tmp_path).data == str(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MtkdError, match=r"pip install 'mtkd\[demo\]'"):
        load_grid(path)


def planned_in(path: Path, out: Path) -> Plan:
    return plan(load_grid(path), out)


def test_a_grid_stands_on_a_base(tmp_path: Path) -> None:
    path = toy(tmp_path)
    whole = load_grid(path)
    data = yaml.safe_load(path.read_text())
    shared = {key: data.pop(key) for key in ("data", "teachers", "test", "rows")}
    shared["rows"]["dropped"] = {"model_type": "SRModel"}
    # A term of the base's row is switched off, which is more than left out: the row's own base may have it.
    shared["rows"]["fused"] = {**shared["rows"]["fused"], "train": {"pixel_opt": {"type": "L1Loss"}}}
    data |= {"base": "parts/shared.yml", "rows": {"dropped": None, "fused": {"train": {"pixel_opt": None}}}}
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/shared.yml").write_text(yaml.safe_dump(shared))
    path.write_text(yaml.safe_dump(data))
    grid = load_grid(path)
    assert grid.rows["fused"]["train"]["pixel_opt"] is None
    assert set(grid.rows) == set(whole.rows)
    assert (grid.data, grid.teachers, grid.test) == (whole.data, whole.teachers, whole.test)


def test_a_mistake_in_the_base_is_told_with_its_line_there(tmp_path: Path) -> None:
    path = toy(tmp_path)
    data = yaml.safe_load(path.read_text())
    del data["baselines"]
    path.write_text(yaml.safe_dump({"base": "shared.yml", **data}))
    (tmp_path / "shared.yml").write_text("pooled: []\nbaselines: [nobody]\n")
    with pytest.raises(OptionError, match=r"shared.yml:2.*nobody is no row"):
        load_grid(path)
