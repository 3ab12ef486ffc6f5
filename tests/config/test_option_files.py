"""Every recipe under options/ loads at every scale, says what it is, and is written once."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import catalog, zoo
from mtkd.config import Options, TrainSetOptions, load_options, yaml_loader
from mtkd.config.json_schema import json_schema
from mtkd.variants import TEACHERS, VARIANTS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OPTIONS = ROOT / "options"
FILES = sorted(OPTIONS.rglob("*.yml"))
BASES = sorted((OPTIONS / "base").glob("*.yml"))
RUNS = [path for path in FILES if path not in BASES]
RECIPES = sorted((OPTIONS / "train").rglob("*.yml"))
ALL_SCALES = [*RECIPES, OPTIONS / "benchmark.yml"]
SCALES = (2, 3, 4)
STUDENTS = {"edsr_m": "edsr_l", "rcan_lw": "rcan", "swinir_s": "swinir_m_div2k"}
"""Student -> its teacher where a method has one."""
ROWS = {
    "supervised/scratch": "scratch_{}_x{}",
    "OutputKD/kd": "OutputKD_{}_x{}",
    "AT/at": "AT_{}_x{}",
    "FAKD/fakd": "FAKD_{}_x{}",
    "DUKD/dukd": "DUKD_{}_x{}",
    "DCKD/dckd": "DCKD_{}_x{}",
    "MTKD/stage2": "MTKD_{}_x{}",
    "MTKD/stage2_best": "MTKD_{}_x{}_best",
}
"""Rows of the table of methods -> names of their runs. All stand on the protocol."""
PROTOCOL = {
    "optim_g": {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": (0.9, 0.99)},
    "scheduler": {"type": "MultiStepLR", "milestones": [100_000, 200_000], "gamma": 0.1},
}


def ids(path: Path) -> str:
    return path.relative_to(OPTIONS).as_posix()


def recipe(name: str, scale: int, *force: str) -> Options:
    return load_options(OPTIONS / "train" / f"{name}.yml", scale=scale, force=force)


def header(path: Path) -> list[str]:
    """The comment that the file opens with, without the line for editors."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "$schema" not in line]
    return lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]


def test_what_is_written_is_written_once() -> None:
    assert len(FILES) <= 45
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES) <= 1800


def test_all_announced_recipes_are_there() -> None:
    announced = {f"supervised/{name}" for name in ("edsr", "rcan", "swinir_m", "swinir_s", "fsrcnn")}
    announced |= {f"MTKD/{name}" for name in ("stage1_fusion", "stage2", "stage2_best", "stage2_published")}
    announced |= {f"MTKD/ablation_{name}" for name in ("loss", "mean", "two_teachers_stage2")} | set(ROWS)
    assert announced <= {ids(path).removeprefix("train/").removesuffix(".yml") for path in RECIPES}


def test_every_method_has_a_recipe() -> None:
    named = {load_options(path, check=False).model_type for path in RECIPES}
    assert {name for names in named for name in names.split(" + ")} == set(catalog.METHODS)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", ALL_SCALES, ids=ids)
def test_the_file_loads_at_every_scale(path: Path, scale: int) -> None:
    options = load_options(path, scale=scale)
    assert options.notices == [] and options.scale == scale and options.num_gpu == "auto"
    assert options.name.endswith(f"_x{scale}") or f"_x{scale}_" in options.name
    train = options.datasets.train
    assert train is None or (isinstance(train, TrainSetOptions) and train.gt_size % scale == 0)
    folder = train.dataroot_lq if isinstance(train, TrainSetOptions) and train.dataroot_gt else None
    assert folder is None or folder.endswith(f"/X{scale}")
    assert {metric["crop_border"] for metric in options.val.metrics.values()} == {scale}


@pytest.mark.parametrize("path", [path for path in RUNS if path not in ALL_SCALES], ids=ids)
def test_a_file_of_the_demo_loads(path: Path) -> None:
    assert load_options(path).notices == []


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", ROWS)
def test_every_cell_of_the_table_is_two_words_away_and_follows_the_protocol(row: str, scale: int, student: str) -> None:
    options = recipe(row, scale, f"network_g={student}")
    assert options.notices == [] and options.name == ROWS[row].format(student, scale)
    arch, _ = VARIANTS[student]
    assert options.network_g.type == arch and options.network_g.args["upscale"] == scale
    if "teacher" in options.teachers:
        assert options.teachers["teacher"].pretrain == f"zoo:{STUDENTS[student]}_x{scale}"
    else:
        members = () if row == "supervised/scratch" else ("edsr", "swinir", "rcan")
        assert tuple(options.teachers) == members
    settings, data = options.training, options.datasets.train
    assert isinstance(data, TrainSetOptions)
    assert options.path.pretrain_network_g is None
    assert settings.optim_g.arguments() == PROTOCOL["optim_g"]
    assert settings.scheduler.arguments() | PROTOCOL["scheduler"] == settings.scheduler.arguments()
    assert (settings.total_iter, settings.ema_decay, settings.warmup_iter) == (250_000, 0.999, -1)
    assert (data.gt_size, data.batch_size_per_gpu, data.use_hflip, data.use_rot) == (48 * scale, 16, True, True)
    assert (data.dataroot_gt, options.manual_seed) == ("datasets/DIV2K/DIV2K_train_HR", 10)


@pytest.mark.parametrize("student", STUDENTS)
def test_the_published_teachers_fit_their_students(student: str) -> None:
    assert TEACHERS == STUDENTS
    for scale in SCALES:
        assert zoo.entry(f"{TEACHERS[student]}_x{scale}").arch == VARIANTS[student][0]


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_the_students_of_published_mtkd_are_one_word_away(scale: int, student: str) -> None:
    own = f"experiments/{student}_x{scale}/models/net_g_latest.pth"
    force = (f"path:pretrain_network_g={own}",) if student == "rcan_lw" else ()
    options = recipe("MTKD/stage2_published", scale, f"network_g={student}", *force)
    assert options.name == f"MTKD_published_{student}_x{scale}"
    assert options.path.pretrain_network_g == (own if force else f"zoo:{student}_x{scale}")


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_a_recipe_opens_with_a_sentence_and_its_command(path: Path) -> None:
    comment = header(path)
    # `mtkd list recipes` shows the first line.
    assert re.fullmatch(r"# .{20,115}\.", comment[0]) and 2 <= len(comment) <= 7
    assert re.search(rf"mtkd (teach|train) -opt options/{re.escape(ids(path))} --scale 4", "\n".join(comment))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_what_comments_name_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    comments = " ".join(re.findall(r"# (.*)", text))
    for named in re.findall(r"options/[\w/]+\.yml", comments):
        assert (ROOT / named).is_file(), f"{named} is named and missing"
    for named in re.findall(r"(?<![\w/])(\w+(?:/\w+)?\.yml)", comments):
        basicsr = named.startswith("train_")
        places = (path.parent, path.parents[1], OPTIONS / "base")
        assert basicsr or any((place / named).is_file() for place in places), f"{named} is missing"
    for named in re.findall(r"(?<!_)network_g=(\w+)|--student (\w+)", comments):
        assert "".join(named) in VARIANTS


def words(comment: list[str]) -> list[list[str]]:
    """The lists of words after each `--force_yml` of a comment, which may go on in its next line."""
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return [[word for word in shlex.split(part) if "=" in word] for part in text.split("--force_yml ")[1:]]


@pytest.mark.parametrize("path", [path for path in RECIPES if "--force_yml" in path.read_text("utf-8")], ids=ids)
def test_what_comments_change_loads(path: Path) -> None:
    plain = load_options(path, scale=4)
    for force in words(header(path)):
        options = load_options(path, scale=4, force=force)
        assert options.notices == [] and options != plain


def test_the_authors_schedule_of_fakd_is_kept() -> None:
    (force,) = words(header(OPTIONS / "train/FAKD/fakd.yml"))
    settings = recipe("FAKD/fakd", 4, *force).training
    assert settings.total_iter == 200_000 and settings.optim_g.arguments()["betas"] == (0.9, 0.999)
    assert settings.scheduler.args["milestones"] == [150_000] and settings.scheduler.args["gamma"] == 0.5


@pytest.mark.parametrize("path", RUNS, ids=ids)
def test_the_first_line_tells_editors_the_schema(path: Path) -> None:
    key, _, schema = path.read_text(encoding="utf-8").splitlines()[0].partition("=")
    assert key == "# yaml-language-server: $schema"
    assert (path.parent / schema).resolve() == OPTIONS / "schema.json"


def test_the_schema_is_up_to_date() -> None:
    found = json.loads((OPTIONS / "schema.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(json_schema())), "run: mtkd config schema > options/schema.json"


def test_the_bases_say_the_same_of_data_and_measuring() -> None:
    # A base has no base of its own, so these two repeat each other.
    first, second = (yaml_loader.load(OPTIONS / f"base/{name}.yml").data for name in ("div2k", "mtkd"))
    for data in (first, second):
        del data["datasets"]["train"]["gt_size"]
    for key in ("scale", "num_gpu", "manual_seed", "datasets", "val", "logger"):
        assert first[key] == second[key]


def test_no_two_runs_share_a_folder() -> None:
    names = [load_options(path, check=False, scale=scale).name for path in RECIPES for scale in SCALES]
    assert len(names) == len(set(names))


def strings(data: Any) -> list[str]:
    if isinstance(data, dict):
        return [text for value in data.values() for text in strings(value)]
    return [data] if isinstance(data, str) else []


@pytest.mark.parametrize("scale", SCALES)
def test_what_one_recipe_writes_is_what_the_next_one_reads(scale: int) -> None:
    every = [load_options(path, check=False, scale=scale) for path in RECIPES]
    written = {f"experiments/{options.name}/models/net_g_latest.pth" for options in every}
    read = {
        text for options in every for text in strings(options.model_dump()) if re.match(r"experiments/.*pth$", text)
    }
    assert read and read <= written
    assert recipe("supervised/rcan", scale, "network_g=rcan_lw").name == f"rcan_lw_x{scale}"


@pytest.mark.parametrize("scale", SCALES)
def test_the_published_recipe_of_mtkd(scale: int) -> None:
    stage1, stage2 = recipe("MTKD/stage1_fusion", scale), recipe("MTKD/stage2_published", scale)
    assert list(stage1.teachers) == list(stage2.teachers) == ["edsr", "swinir", "rcan"]
    assert stage1.network_g == stage2.fusion.network  # pyright: ignore
    for options, lr, size in ((stage1, 2e-4, 256), (stage2, 2e-5, 128)):
        settings, data = options.train, options.datasets.train
        assert settings is not None and data is not None
        assert settings.optim_g.arguments() == {"type": "Adam", "lr": lr, "weight_decay": 0, "betas": (0.9, 0.999)}
        assert settings.scheduler.args["milestones"] == [250_000, 400_000, 450_000, 475_000]
        assert (settings.scheduler.args["gamma"], settings.total_iter, settings.ema_decay) == (0.5, 500_000, 0.999)
        assert data.batch_size_per_gpu == 16 and abs(data.gt_size - size) <= 1  # pyright: ignore
    assert stage2.train is not None
    weights = {name: term.weight for name, term in stage2.train.terms.items()}
    assert weights == {"pixel": [(0, 0.1)], "target": [(0, 1.0)]}
    assert stage2.train.terms["target"].args == {"type": "WaveletLoss", "wavelet": "haar", "levels": 1}


PARAMETERS = {
    "edsr_m": 1_517_571,
    "edsr_l": 43_089_923,
    "rcan": 15_592_355,
    "rcan_lw": 5_171_315,
    "swinir_m": 11_900_199,
    "swinir_m_df2k": 11_900_199,
    "swinir_s": 929_628,
    "dctswin": 1_335_603,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_networks_have_their_published_sizes(name: str) -> None:
    file = "MTKD/stage1_fusion" if name == "dctswin" else "supervised/edsr"
    network = recipe(file, 4, f"network_g={name}").network_g
    with torch.device("meta"):
        net = catalog.get("arch", network.type)(**network.args)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
