"""Every recipe trains: two iterations of each at x4 on the demo's photographs, with small networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import catalog, zoo
from mtkd.config import load_options, make_options, resolved_yaml, yaml_loader
from mtkd.demo import photographs
from mtkd.training.loop import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "options" / "train").rglob("*.yml"))
OTHER_STUDENTS = [
    (ROOT / "options/train/MTKD" / f"{name}.yml", student)
    for name in ("stage2", "stage2_best")
    for student in ("rcan_lw", "swinir_s")
]
RECIPES = [*((path, None) for path in FILES if path.stem != "swinir_m"), *OTHER_STUDENTS]
"""Option files, and the student where it is another than the file's own. SwinIR_M made small is SwinIR_S."""
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


def stored(network: dict[str, Any], path: Path, facts: dict[str, Any] | None = None, **extra: Any) -> str:
    """Random weights of `network` in a file, as a teacher's `pretrain`."""
    arguments = {key: value for key, value in network.items() if key != "type"}
    net = catalog.get("arch", network["type"])(**{"upscale": 4, **arguments, **extra})
    zoo.write_safetensors(path, net.state_dict(), facts or {})
    return str(path)


def test_every_method_has_a_recipe() -> None:
    named = {load_options(path, check=False).model_type for path, _ in RECIPES}
    assert {name for names in named for name in names.split(" + ")} == set(catalog.METHODS)


def written_out(recipe: Path, student: str | None) -> dict[str, Any]:
    """The whole option file at x4, whose networks are mappings that can be made small."""
    force = [] if student is None else [f"network_g={student}", "path:pretrain_network_g=~"]
    plain: dict[str, Any] = yaml_loader.parse(resolved_yaml(load_options(recipe, scale=4, force=force))).data
    return plain


@pytest.mark.parametrize(
    ("recipe", "student"), RECIPES, ids=lambda it: f"{it.parent.name}-{it.stem}" if isinstance(it, Path) else it
)
def test_recipe_trains_on_real_photographs(recipe: Path, student: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = written_out(recipe, student)
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
        fusion["pretrain"] = stored(fusion["network"], path, {"members": list(members)}, num_teachers=len(members))
    plain.pop("target_store", None)
    plain["path"] = {"experiments_root": str(tmp_path / "experiments")}
    images = plain["datasets"]["train"]
    for key in ("dataroot_lq", "filename_tmpl"):
        images.pop(key, None)
    images |= {
        "dataroot_gt": str(photographs()),
        "meta_info_file": str(ROOT / "datasets/demo/train_photographs.txt"),
        "gt_size": 64,
        "batch_size_per_gpu": 2,
    }
    plain["datasets"] = {"train": images}
    plain.pop("val", None)
    plain["train"]["total_iter"] = 2
    if "vgg" in plain.get("method", {}):
        plain["method"]["vgg"] = "random"
    plain["logger"] = {"print_freq": 1, "save_checkpoint_freq": 2}
    options = make_options(plain)
    assert options.train is not None
    weights = train(options)

    rows = [json.loads(line) for line in (weights.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert set(rows[0]["losses"]) >= {*options.train.terms, "l_total"}
    deployable = weights.with_name("deployable.pth")
    assert deployable.exists() == (options.model_type in ("CSD", "PISRTeacher"))
    if deployable.exists():
        assert zoo.build(str(deployable))(torch.rand(1, 3, 5, 7)).shape == (1, 3, 20, 28)
    saved = torch.load(weights, weights_only=True)["params"]
    assert all(value.isfinite().all() for value in saved.values())
