"""Every file under options/ loads, says how it is run, and differs from its siblings only by the scale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import catalog
from mtkd.config import load_options, yaml_loader
from mtkd.config.json_schema import json_schema

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "options").rglob("*.yml"))
RECIPES = [path for path in FILES if path.relative_to(ROOT / "options").parts[0] in ("train", "test")]
SCALE = re.compile(r"(?<=_x)[234](?=\.yml$|_best\.yml$)")

STUDENTS_AND_TEACHERS = ("EDSR_M", "EDSR_L", "RCAN", "RCAN_lw", "SwinIR_M", "SwinIR_S")


def ids(path: Path) -> str:
    return path.relative_to(ROOT / "options").as_posix()


def test_all_announced_recipes_are_there() -> None:
    found = {ids(path) for path in FILES}
    for scale in (2, 3, 4):
        expected = {f"train/supervised/{name}_x{scale}.yml" for name in STUDENTS_AND_TEACHERS}
        expected |= {f"test/{name}_x{scale}.yml" for name in STUDENTS_AND_TEACHERS}
        expected |= {f"train/MTKD/stage1_fusion_x{scale}.yml"}
        for student in ("edsr_m", "rcan_lw", "swinir_s"):
            expected |= {f"train/MTKD/stage2_{student}_x{scale}{kind}.yml" for kind in ("", "_best")}
        assert expected <= found


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_the_file_loads(path: Path) -> None:
    options = load_options(path)
    assert options.notices == []


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_the_file_opens_with_what_it_is_and_its_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    comment = [line for line in lines[:6] if line.startswith("# ")]
    assert 2 <= len(comment) <= 5 and not lines[len(comment)].startswith("#")
    verb = "test" if ids(path).startswith("test/") else "train"
    assert re.search(rf"mtkd (teach|{verb}) -opt options/{re.escape(ids(path))}\b", comment[-1])
    for named in re.findall(r"options/\S+\.yml", "\n".join(comment)):
        assert (ROOT / named).is_file(), f"{named} is named and missing"
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_the_first_line_tells_editors_the_schema(path: Path) -> None:
    key, _, schema = path.read_text(encoding="utf-8").splitlines()[0].partition("=")
    assert key == "# yaml-language-server: $schema"
    assert (path.parent / schema).resolve() == ROOT / "options/schema.json"


def test_the_schema_is_up_to_date() -> None:
    found = json.loads((ROOT / "options/schema.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(json_schema())), "run: mtkd config schema > options/schema.json"


def test_no_two_runs_share_a_folder() -> None:
    for verb in ("train", "test"):
        names = [load_options(path, check=False).name for path in RECIPES if ids(path).startswith(verb)]
        assert len(names) == len(set(names))


def test_what_one_recipe_writes_is_what_the_next_one_reads() -> None:
    written = {
        f"experiments/{load_options(path, check=False).name}/models/net_g_latest.pth"
        for path in RECIPES
        if ids(path).startswith("train/")
    }
    read = set()
    for path in RECIPES:
        read |= set(re.findall(r"experiments/\S+\.pth", path.read_text(encoding="utf-8")))
    assert read and read <= written


def without_scale(data: Any, scale: int) -> Any:
    """`data` with everything that may depend on the scale put in general terms."""
    if isinstance(data, dict):
        out = {}
        for key, value in data.items():
            if key in ("scale", "crop_border"):
                assert value == scale, f"{key} is {value} at scale {scale}"
                value = "scale"
            out[key] = without_scale(value, scale)
        return out
    if isinstance(data, list):
        return [without_scale(item, scale) for item in data]
    return re.sub(rf"x{scale}\b|x{scale}(?=_)|X{scale}\b", "xS", data) if isinstance(data, str) else data


def siblings() -> list[list[Path]]:
    families: dict[str, list[Path]] = {}
    for path in RECIPES:
        if SCALE.search(path.name):
            families.setdefault(SCALE.sub("S", ids(path)), []).append(path)
    return list(families.values())


@pytest.mark.parametrize("family", siblings(), ids=lambda family: SCALE.sub("S", ids(family[0])))
def test_siblings_differ_only_by_the_scale(family: list[Path]) -> None:
    # Recipes of the compared methods come at x4 alone.
    assert len(family) in (1, 3)
    plain, gt_sizes, lq_sizes = [], [], []
    for path in family:
        found = SCALE.search(path.name)
        assert found
        scale, data = int(found.group()), yaml_loader.load(path).data
        if "train" in data["datasets"]:
            size = data["datasets"]["train"].pop("gt_size")
            gt_sizes.append(size)
            lq_sizes.append(size // scale)
        plain.append(without_scale(data, scale))
    assert all(other == plain[0] for other in plain)
    # One size of lq crops, or one of gt crops, of which x3 takes the nearest that 3 divides.
    assert len(set(lq_sizes)) <= 1 or max(gt_sizes) - min(gt_sizes) <= 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_published_recipe_of_mtkd(scale: int) -> None:
    stage1 = load_options(ROOT / f"options/train/MTKD/stage1_fusion_x{scale}.yml")
    stage2 = load_options(ROOT / f"options/train/MTKD/stage2_edsr_m_x{scale}.yml")
    assert list(stage1.teachers) == list(stage2.teachers) == ["edsr", "swinir", "rcan"]
    assert stage1.network_g == stage2.fusion.network  # pyright: ignore
    for options, lr, size in ((stage1, 2e-4, 256), (stage2, 2e-5, 128)):
        settings, data = options.train, options.datasets.train
        assert settings is not None and data is not None
        assert settings.optim_g.arguments() == {"type": "Adam", "lr": lr, "weight_decay": 0, "betas": (0.9, 0.999)}
        assert settings.scheduler.args["milestones"] == [250_000, 400_000, 450_000, 475_000]
        assert (settings.scheduler.args["gamma"], settings.total_iter, settings.ema_decay) == (0.5, 500_000, 0.999)
        assert data.batch_size_per_gpu == 16 and abs(data.gt_size - size) <= 1
    assert stage2.train is not None
    weights = {name: term.weight for name, term in stage2.train.terms.items()}
    assert weights == {"pixel": [(0, 0.1)], "target": [(0, 1.0)]}
    assert stage2.train.terms["target"].args == {"type": "WaveletLoss", "wavelet": "haar", "levels": 1}


PARAMETERS = {
    "EDSR_M": 1_517_571,
    "EDSR_L": 43_089_923,
    "RCAN": 15_592_355,
    "RCAN_lw": 5_171_315,
    "SwinIR_M": 11_900_199,
    "SwinIR_M_DF2K": 11_900_199,
    "SwinIR_S": 929_628,
    "MTKD_fusion": 1_335_603,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_networks_have_their_published_sizes(name: str) -> None:
    network = load_options(ROOT / f"options/test/{name}_x4.yml").network_g
    with torch.device("meta"):
        net = catalog.get("arch", network.type)(**network.args)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
