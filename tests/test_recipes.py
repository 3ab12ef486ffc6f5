"""Every recipe trains, and every row of the table of methods with every student: three iterations of small networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import catalog, zoo
from mtkd.config import Options, load_options, make_options, resolved_yaml, yaml_loader
from mtkd.runtime.shipped import photographs
from mtkd.training.loop import train

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "options" / "train").rglob("*.yml"))
RECIPES = [path for path in FILES if path.stem != "swinir_m"]
"""SwinIR_M made small is SwinIR_S."""
ROWS = (
    "supervised/scratch",
    "OutputKD/kd",
    "AT/at",
    "FAKD/fakd",
    "DUKD/dukd",
    "DCKD/dckd",
    "MTKD/stage2",
    "MTKD/stage2_best",
)
STUDENTS = ("edsr_m", "rcan_lw", "swinir_s")
SCALES = (2, 3, 4)
CELLS = [(row, student, SCALES[-(i + j) % 3]) for i, row in enumerate(ROWS) for j, student in enumerate(STUDENTS)]
"""Every row meets every student and every scale, and every student every scale."""
SMALL: dict[str, dict[str, Any]] = {
    "EDSR": {"num_feat": 8, "num_block": 4},
    "RCAN": {"num_feat": 8, "num_group": 3, "num_block": 1, "squeeze_factor": 4},
    "SwinIR": {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [2, 2, 2], "img_size": 16},
    "DCTSwin": {"embed_dim": 8, "depths": [1], "num_heads": [2], "num_feat": 4},
    "FSRCNN": {},
    "PrivilegedTeacher": {},
}


@pytest.fixture(scope="module", autouse=True)
def shared_home(tmp_path_factory: pytest.TempPathFactory):
    """The photographs are decoded once for all recipes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTKD_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def small(network: dict[str, Any]) -> dict[str, Any]:
    return {**network, **SMALL[network["type"]]}


def stored(network: dict[str, Any], path: Path, facts: dict[str, Any] | None = None) -> str:
    """Random weights of `network` in a file, as a teacher's `pretrain`."""
    arguments = {key: value for key, value in network.items() if key != "type"}
    net = catalog.get("arch", network["type"])(**arguments)
    zoo.write_safetensors(path, net.state_dict(), facts or {})
    return str(path)


def test_every_method_has_a_recipe() -> None:
    named = {load_options(path, check=False).model_type for path in RECIPES}
    assert {name for names in named for name in names.split(" + ")} == set(catalog.METHODS)


def made_small(recipe: Path, tmp_path: Path, *, scale: int, lq_side: int, student: str | None = None) -> Options:
    """The option file at `scale` with small networks, on small crops of photographs, for three iterations."""
    force = [] if student is None else [f"network_g={student}"]
    plain: dict[str, Any] = yaml_loader.parse(resolved_yaml(load_options(recipe, scale=scale, force=force))).data
    plain["num_gpu"] = 0
    plain["network_g"] = small(plain["network_g"])
    members = plain.get("teachers") or {}
    for name, teacher in members.items():
        teacher["network"] = small(teacher["network"])
        teacher["pretrain"] = stored(teacher["network"], tmp_path / f"{name}.safetensors")
    fusion = plain.get("fusion")
    if isinstance(fusion, dict):
        fusion["network"] = small(fusion["network"])
        path = tmp_path / "fusion.safetensors"
        fusion["pretrain"] = stored(fusion["network"], path, {"members": list(members)})
    plain.pop("target_store", None)
    plain["path"] = {"experiments_root": str(tmp_path / "experiments")}
    images = plain["datasets"]["train"]
    root = "dataroot_lq" if images.get("dataroot_gt") is None else "dataroot_gt"
    for key in ("dataroot_gt", "dataroot_lq", "filename_tmpl"):
        images.pop(key, None)
    images |= {
        root: str(photographs()),
        "meta_info_file": str(ROOT / "datasets/demo/train_photographs.txt"),
        "gt_size": lq_side * scale,
        "batch_size_per_gpu": 2,
    }
    plain["datasets"] = {"train": images}
    plain.pop("val", None)
    plain["train"]["total_iter"] = 3
    if "vgg" in plain.get("method", {}):
        plain["method"]["vgg"] = "random"
    plain["logger"] = {"print_freq": 1, "save_checkpoint_freq": 3}
    return make_options(plain)


def trained(options: Options) -> Path:
    """The weights after three iterations, of which every term had its loss."""
    torch.manual_seed(0)
    weights = train(options)

    rows = [json.loads(line) for line in (weights.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert set(rows[0]["losses"]) >= {*options.training.terms, "l_total"}
    saved = torch.load(weights, weights_only=True)["params"]
    assert all(value.isfinite().all() for value in saved.values())
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipe_trains_on_real_photographs(recipe: Path, tmp_path: Path) -> None:
    options = made_small(recipe, tmp_path, scale=4, lq_side=16)
    weights = trained(options)
    deployable = weights.with_name("deployable.pth")
    assert deployable.exists() == (options.model_type in ("CSD", "PISRTeacher"))
    if deployable.exists():
        assert zoo.build(str(deployable))(torch.rand(1, 3, 5, 7)).shape == (1, 3, 20, 28)


@pytest.mark.parametrize(("row", "student", "scale"), CELLS)
def test_a_cell_of_the_table_trains(row: str, student: str, scale: int, tmp_path: Path) -> None:
    recipe = ROOT / "options/train" / f"{row}.yml"
    # 12 is divided by 2, 3 and 4, as DUKD's smaller lq asks.
    options = made_small(recipe, tmp_path, scale=scale, lq_side=12, student=student)
    assert zoo.build(str(trained(options)))(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)
