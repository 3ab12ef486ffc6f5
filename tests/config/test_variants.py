"""Networks by name: what a name means is what recipes and published weights have."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import catalog, zoo
from mtkd.cli import main
from mtkd.config import load_options, make_options, yaml_loader
from mtkd.variants import VARIANTS, variant
from tests.config.samples import TRAIN, changed, mtkd, only_problem, train

PARAMETERS = {
    "edsr_m": 1_517_571,
    "edsr_l": 43_089_923,
    "rcan": 15_592_355,
    "rcan_lw": 5_171_315,
    "swinir_m": 11_900_199,
    "swinir_m_df2k": 11_900_199,
    "swinir_s": 929_628,
    "dctswin": 1_335_603,
    "fsrcnn": 24_518,
    "tiny": 273_456,  # in training; 16,688 in use
    "small": 476_464,  # 51,760
}
PUBLISHED = {
    "edsr_m": "edsr_m_x4",
    "edsr_l": "edsr_l_x4",
    "rcan": "rcan_x4",
    "swinir_m": "swinir_m_div2k_x4",
    "swinir_m_df2k": "swinir_m_df2k_x4",
    "swinir_s": "swinir_s_x4",
}


def complete(name: str) -> dict[str, Any]:
    """All arguments of a variant at x4, the constructor's defaults included."""
    arch, arguments = VARIANTS[name]
    return with_defaults(arch, {**arguments, "upscale": 4})


def with_defaults(arch: str, arguments: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(catalog.get("arch", arch)).bind(**arguments)
    bound.apply_defaults()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in bound.arguments.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_name_is_its_network_written_out(name: str) -> None:
    named = train({"network_g": name, "scale": 4}).network_g
    assert named == train({"network_g": variant(name), "scale": 4}).network_g
    assert named.args["upscale"] == 4
    with torch.device("meta"):
        net = catalog.make_network(named.type, named.args)
    number = sum(p.numel() for p in net.parameters())
    assert number == PARAMETERS[name] if name in PARAMETERS else number < 200_000


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_a_name_means_the_published_network(name: str, published: str) -> None:
    entry = zoo.entry(published)
    assert entry.arch == VARIANTS[name][0]
    assert with_defaults(entry.arch, entry.args) == complete(name)


def test_a_name_stands_wherever_a_network_does() -> None:
    teachers = {f"teachers.{key}": {"network": key, "pretrain": f"{key}.pth"} for key in ("edsr_l", "rcan")}
    options = mtkd({**teachers, "fusion": {"network": "dctswin", "pretrain": "f.pth"}}, ("teachers.one",))
    assert [teacher.network.type for teacher in options.teachers.values()] == ["EDSR", "RCAN"]
    assert options.fusion.network.args["num_teachers"] == 2  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "near"), [("edsr_x", "edsr_m or edsr_l"), ("EDSR", "edsr_m or edsr_l"), ("swin_ir_s", "swinir_s")]
)
def test_an_unknown_name_lists_the_near_ones(name: str, near: str) -> None:
    problem = only_problem(make_options, changed(TRAIN, {"network_g": name}))
    assert problem.key == "network_g" and f"No network is called {name!r}. Did you mean {near}" in problem.message
    assert "rcan_lw" in problem.message and "{type: ARCH, ...}" in problem.message


def test_a_name_is_set_from_the_command_line_and_over_a_base(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text(yaml_loader.dump(TRAIN))
    (tmp_path / "run.yml").write_text("base: base.yml\nnetwork_g: rcan_demo\n")
    assert load_options(tmp_path / "run.yml").network_g.args["num_feat"] == 28
    assert load_options(tmp_path / "run.yml", force=["network_g=fsrcnn"]).network_g.type == "FSRCNN"


def test_the_list_of_archs_shows_what_names_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "archs"]) == 0
    out = capsys.readouterr().out
    assert "    edsr_m: {num_feat: 64, num_block: 16, " in out
    assert all(f"    {name}: {{" in out for name in VARIANTS)
