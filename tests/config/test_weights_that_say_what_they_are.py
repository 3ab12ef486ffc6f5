"""Teachers and the fusion network without `network`: told by the zoo, by the file, by its tensors or by spandrel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import build, zoo
from mtkd.archs.dctswin import DCTSwin
from mtkd.archs.edsr import EDSR
from mtkd.archs.fsrcnn import FSRCNN
from mtkd.archs.rcan import RCAN
from mtkd.archs.swinir import SwinIR
from mtkd.cli import main
from mtkd.config import NetworkOptions, Options, make_options, resolved_yaml, yaml_loader
from mtkd.config.diff import flat
from mtkd.targets.store_check import check_facts, completed
from mtkd.training.check import check_data
from mtkd.training.paths import check_paths
from mtkd.zoo import keymaps
from tests.config.samples import TRAIN, changed, mtkd, only_problem
from tests.runs import FUSION, TEACHERS, make_images, make_teachers, run_options

EDSR_ARGS = {"num_feat": 6, "num_block": 2, "upscale": 2}
RCAN_ARGS = {"num_feat": 4, "num_group": 1, "num_block": 1, "squeeze_factor": 2, "upscale": 2}
SWINIR_ARGS = {
    "upscale": 2,
    "img_size": 16,
    "depths": [2, 2],
    "embed_dim": 8,
    "num_heads": [2, 2],
    "window_size": 4,
    "upsampler": "pixelshuffledirect",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def with_teacher(teacher: Any, **changes: Any) -> dict[str, Any]:
    return changed(TRAIN, {"model_type": "MTKD", "teachers.one": teacher, **changes}, ("train.pixel_opt",))


def again(options: Options) -> Options:
    """`options` written out and read."""
    return make_options(yaml_loader.parse(resolved_yaml(options)).data)


def network(teacher: Any, **changes: Any) -> NetworkOptions:
    found = make_options(with_teacher(teacher, **changes)).teachers["one"].network
    assert found is not None
    return found


@pytest.mark.parametrize("name", [name for name, entry in zoo.ENTRIES.items() if entry.scale])
def test_a_name_of_the_zoo_says_its_network(name: str) -> None:
    entry = zoo.entry(name)
    found = network(f"zoo:{name}", scale=entry.scale, **{"datasets.train.gt_size": 24})
    assert found.type == entry.arch and found.args["upscale"] == entry.scale
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in found.args.items()} == entry.args
    assert not Path("home").exists()  # nothing is fetched


def test_a_name_for_every_scale() -> None:
    for scale in (2, 3, 4):
        options = make_options(with_teacher("zoo:edsr_l_x{scale}", scale=scale, **{"datasets.train.gt_size": 24}))
        assert options.teachers["one"].pretrain == f"zoo:edsr_l_x{scale}"


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("zoo:edsr_l_x5", "Did you mean edsr_l_x"),
        ("zoo:vgg19", "not a network that makes images"),
        ("zoo:rcan_x4", "is 4, and the run's scale is 2"),
        (3, "must be a mapping"),
        ({}, "required, and missing"),
        ("", "path is empty"),
    ],
)
def test_what_is_no_teacher(teacher: Any, words: str) -> None:
    assert words in only_problem(make_options, with_teacher(teacher)).message


def test_a_file_of_ours_says_its_network(tmp_path: Path) -> None:
    arch = {"type": "EDSR", "args": {**EDSR_ARGS, "res_scale": 0.3}}
    net = EDSR(**EDSR_ARGS, res_scale=0.3)
    zoo.write_safetensors(tmp_path / "ours.safetensors", net.state_dict(), {"arch": arch, "scale": 2})
    found = network("ours.safetensors")
    assert (found.type, found.args) == ("EDSR", arch["args"])
    assert network({"pretrain": "ours.safetensors", "param_key": "params_ema"}) == found
    options = make_options(with_teacher("ours.safetensors"))
    assert options.notices == [] and flat(options) == flat(again(options))
    built = build.build_teachers(options)["one"]
    torch.testing.assert_close(built.state_dict(), net.state_dict())
    assert built.body[0].res_scale == 0.3  # pyright: ignore


@pytest.mark.parametrize("naming", ["basicsr", "official"])
@pytest.mark.parametrize(
    ("net", "arch", "arguments"),
    [(EDSR, "EDSR", EDSR_ARGS), (RCAN, "RCAN", RCAN_ARGS), (SwinIR, "SwinIR", SWINIR_ARGS)],
)
def test_a_file_that_says_nothing_is_known_by_its_tensors(
    naming: str, net: Any, arch: str, arguments: dict[str, Any]
) -> None:
    state = net(**arguments).state_dict()
    official = naming == "official"
    torch.save(keymaps.to_official(state, img_size=16) if official else {"params": state}, "theirs.pth")
    options = make_options(with_teacher("theirs.pth"))
    found = options.teachers["one"].network
    assert found is not None and found.type == arch
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in found.args.items()}
    assert plain.items() >= arguments.items()
    (line,) = options.notices
    assert line.startswith(f"teachers.one: by its tensors theirs.pth is {arch}; assumed, as no tensor shows it: ")
    assert ("res_scale 1.0" in line) == (arch != "SwinIR") and ("img_range" in line) == (
        not official or arch == "SwinIR"
    )
    assert flat(again(options)) == flat(options) and not any("assumed" in line for line in again(options).notices)
    build.build_teachers(options)


def test_what_spandrel_knows_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spandrel")
    from spandrel.architectures.SPAN import SPAN

    net = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()
    torch.save({"params": net.state_dict()}, "span.pth")
    assert network("span.pth") == NetworkOptions(type="spandrel", args={"upscale": 2})
    torch.save({"params": FSRCNN(upscale=2).state_dict()}, "fsrcnn.pth")
    message = only_problem(make_options, with_teacher("fsrcnn.pth")).message
    assert "does not say which network it holds" in message and "{network: {type: ARCH" in message
    assert network({"network": "fsrcnn", "pretrain": "fsrcnn.pth"}).type == "FSRCNN"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'mtkd[spandrel]'" in only_problem(make_options, with_teacher("span.pth")).message


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ({"type": "subprocess:run", "args": {"args": "touch PWNED"}}, "not one of mtkd's own"),
        ({"type": "EDSR", "args": {**EDSR_ARGS, "num_block": 900}}, "more parts than"),
        ({"type": "EDSR", "args": {**EDSR_ARGS, "num_feat": 8}}, "does not fit"),
        ({"type": "RCAN", "args": RCAN_ARGS}, "more parts than"),
        ({"args": {}}, "lack arch"),
    ],
)
def test_a_file_is_not_believed(tmp_path: Path, arch: dict[str, Any], words: str) -> None:
    zoo.write_safetensors(tmp_path / "crafted.safetensors", EDSR(**EDSR_ARGS).state_dict(), {"arch": arch})
    problem = only_problem(make_options, with_teacher("crafted.safetensors"))
    assert problem.key == "teachers.one.pretrain" and words in problem.message
    assert not (tmp_path / "PWNED").exists()


def test_a_broken_file_is_a_problem_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    assert only_problem(make_options, with_teacher("broken.pth")).key == "teachers.one.pretrain"


def test_weights_that_are_not_there_yet_are_no_fault_of_the_file(tmp_path: Path) -> None:
    options = mtkd({"teachers.one": "later.pth"})
    assert options.teachers["one"].network is None
    assert flat(options) == flat(again(options))
    missing = [problem.key for problem in check_paths(options) if problem.key.startswith("teachers")]
    assert missing == ["teachers.one.pretrain"]
    arch = {"type": "EDSR", "args": EDSR_ARGS}
    zoo.write_safetensors(tmp_path / "later.safetensors", EDSR(**EDSR_ARGS).state_dict(), {"arch": arch})
    (tmp_path / "later.safetensors").rename("later.pth")
    assert isinstance(build.build_teachers(options)["one"], EDSR)


def fused(tmp_path: Path) -> dict[str, Any]:
    """Teachers and fusion by their files alone."""
    teachers = {name: section["pretrain"] for name, section in make_teachers(tmp_path / "teachers").items()}
    arguments = {key: value for key, value in FUSION.items() if key != "type"}
    facts = {"arch": {"type": "DCTSwin", "args": arguments}, "scale": 2, "members": list(teachers)}
    zoo.write_safetensors(tmp_path / "fusion.safetensors", DCTSwin(**arguments).state_dict(), facts)
    return {"model_type": "MTKD", "teachers": teachers, "fusion": "fusion.safetensors"}


def test_fusion_by_its_file_is_fusion_written_out(tmp_path: Path) -> None:
    short = fused(tmp_path)
    images = make_images(tmp_path / "images")
    options = run_options(tmp_path, images=images, **short)
    written = {
        "model_type": "MTKD",
        "teachers": {n: {"network": TEACHERS[n], "pretrain": f} for n, f in short["teachers"].items()},
        "fusion": {"network": FUSION, "pretrain": "fusion.safetensors"},
    }
    assert flat(options) == flat(run_options(tmp_path, images=images, **written))
    assert [problem for problem in check_data(options) if "fusion" in problem.key] == []
    (net,) = build.build_teachers(options).values()
    assert net.names == ("edsr", "rcan")
    problem = only_problem(run_options, tmp_path, images=images, **{**short, "fusion": "meen"})
    assert problem.key == "fusion" and "must be `mean` or weights" in problem.message
    one_more = {**short, "teachers": {**short["teachers"], "third": short["teachers"]["edsr"]}}
    problem = only_problem(run_options, tmp_path, images=images, **one_more)
    assert problem.key == "fusion.network.num_teachers" and "number of teachers is 3" in problem.message


def test_a_whole_run_by_names_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = fused(tmp_path)
    images = make_images(tmp_path / "images")
    plain = yaml_loader.parse(resolved_yaml(run_options(tmp_path, images=images, **short))).data
    base = {key: value for key, value in plain.items() if key not in ("name", "scale", "network_g", "fusion")}
    base["teachers"] = {name: file.replace("teachers", "teachers") for name, file in short["teachers"].items()}
    (tmp_path / "base.yml").write_text(yaml_loader.dump({**base, "target_store": "targets_x{scale}"}))
    (tmp_path / "run.yml").write_text(
        "base: base.yml\nname: short_x{scale}\nnetwork_g: edsr_tiny\nfusion: fusion.safetensors\n"
    )
    assert main(["check", "run.yml", "--scale", "2"]) == 0
    assert main(["teach", "-opt", "run.yml", "--scale", "2"]) == 0
    assert "--force_yml scale=2" in capsys.readouterr().out
    assert main(["train", "-opt", "run.yml", "--scale", "2", "--force_yml", "train:total_iter=2"]) == 0
    resolved = yaml_loader.load(tmp_path / "experiments/short_x2/resolved.yml").data
    assert resolved["scale"] == 2 and resolved["network_g"]["num_feat"] == 16
    assert resolved["teachers"]["edsr"]["network"]["num_feat"] == TEACHERS["edsr"]["num_feat"]
    assert resolved["fusion"]["network"]["type"] == "DCTSwin" and resolved["target_store"] == "targets_x2"


def test_a_store_of_targets_is_the_same_whether_defaults_were_written_out() -> None:
    class Store:
        path = "targets"
        facts = {"teachers": [{"name": "a", "network": {"type": "EDSR", "args": {"num_feat": 64, "res_scale": 1}}}]}

    whole = {"num_in_ch": 3, "num_feat": 64, "num_block": 16, "res_scale": 1.0, "rgb_mean": [0.4488, 0.4371, 0.404]}
    check_facts(Store(), {"teachers": [{"name": "a", "network": {"type": "EDSR", "args": whole}}]}, "")  # pyright: ignore
    other = {"teachers": [{"name": "a", "network": {"type": "EDSR", "args": {**whole, "num_block": 8}}}]}
    with pytest.raises(zoo.files.MtkdError, match="num_block is 16 in the store, 8 here"):
        check_facts(Store(), other, "")  # pyright: ignore
    assert completed({"type": "mine:Net", "args": {"a": 1}}) == {"type": "mine:Net", "args": {"a": 1}}
