"""`mtkd zoo` from the command line, conversion above all."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtkd import catalog
from mtkd.cli import main
from mtkd.commands import zoo as cli
from mtkd.contracts import MtkdError
from mtkd.zoo import ENTRIES, Source, build, read_checkpoint
from tests.zoo.conftest import sha256
from tests.zoo.official import filled, rcan_shapes, run_edsr, run_rcan
from tests.zoo.test_cache import NOWHERE
from tests.zoo.test_download import FILE


def zoo(*words: object) -> int:
    """Run `mtkd zoo WORDS`."""
    parser = argparse.ArgumentParser()
    cli.add(parser.add_subparsers())
    args = parser.parse_args(["zoo", *map(str, words)])
    return args.run(args)


@pytest.fixture
def official(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, tmp_path / "official.pt")
    return tmp_path / "official.pt"


def test_list_shows_every_name_with_its_data(capsys: pytest.CaptureFixture[str], weights_dir: Path) -> None:
    assert zoo("list", "--weights-dir", weights_dir) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == list(ENTRIES)
    assert "data" in head and any("DF2K" in row for row in rows)


def test_list_can_be_narrowed(capsys: pytest.CaptureFixture[str], weights_dir: Path) -> None:
    zoo("list", "--arch", "swinir", "--scale", 4, "--weights-dir", weights_dir)
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["swinir_m_div2k_x4", "swinir_m_df2k_x4", "swinir_s_x4"]
    with pytest.raises(MtkdError, match="EDSR, RCAN, SwinIR"):
        zoo("list", "--arch", "HAT")


def test_info_shows_sources_hash_licence_and_protocol(capsys: pytest.CaptureFixture[str], weights_dir: Path) -> None:
    zoo("info", "rcan_x4", "--weights-dir", weights_dir)
    shown = capsys.readouterr().out
    for said in (
        "num_block=20",
        "RCAN_BIX4.pt",
        "sha256 unknown",
        "not stated",
        "32.63 / 0.9002",
        "PSNR-Y",
        "not there",
    ):
        assert said in shown


def test_where_tells_the_folder_or_the_file(capsys: pytest.CaptureFixture[str], weights_dir: Path) -> None:
    zoo("where", "--weights-dir", weights_dir)
    zoo("where", "rcan_x4", "--weights-dir", weights_dir)
    assert capsys.readouterr().out.splitlines() == [str(weights_dir), str(weights_dir / "rcan_x4.safetensors")]


@pytest.mark.parametrize(
    ("home", "said"), [("~nosuchuser/x", "no user 'nosuchuser'"), ("x" * 300, "too long for a path")]
)
@pytest.mark.parametrize("command", [["zoo", "where"], ["zoo", "verify"], ["zoo", "download", "edsr_m_x4"]])
def test_a_home_that_is_no_path_is_named(
    home: str, said: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MTKD_HOME", home)
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "The environment variable MTKD_HOME names no folder" in told and said in told


def test_download_import_and_verify_from_the_command_line(
    publish, host, capsys: pytest.CaptureFixture[str], weights_dir: Path, tmp_path: Path, body: bytes
) -> None:
    publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    assert zoo("download", "edsr_tiny_x2", "--weights-dir", weights_dir) == 0
    assert zoo("verify", "--weights-dir", weights_dir) == 0
    (tmp_path / FILE).write_bytes(body)
    assert zoo("import", "edsr_tiny_x2", tmp_path / FILE, "--weights-dir", tmp_path / "other") == 0
    assert str(tmp_path / "other" / "edsr_tiny_x2.safetensors") in capsys.readouterr().out
    (weights_dir / "edsr_tiny_x2.safetensors").write_bytes(b"changed")
    assert zoo("verify", "--weights-dir", weights_dir) == 2
    assert "BAD" in capsys.readouterr().out


def test_one_failure_among_several_does_not_stop_the_others(
    publish, host, capsys: pytest.CaptureFixture[str], weights_dir: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.zoo.conftest import tiny_entry

    monkeypatch.setitem(ENTRIES, "broken", tiny_entry(Source(f"{host.url}/none", "none.pt"), name="broken"))
    publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    with pytest.raises(MtkdError, match="1 of 2 could not be fetched: broken"):
        zoo("download", "broken", "edsr_tiny_x2", "--weights-dir", weights_dir)
    assert (weights_dir / "edsr_tiny_x2.safetensors").exists()
    with pytest.raises(MtkdError, match="--all"):
        zoo("download")


def test_verify_of_an_empty_folder_says_so(publish, capsys: pytest.CaptureFixture[str], weights_dir: Path) -> None:
    publish(Source(NOWHERE + FILE, FILE))
    assert zoo("verify", "--weights-dir", weights_dir) == 0
    assert "No converted weights" in capsys.readouterr().out


def test_safetensors_need_nothing_else_to_be_built(
    official: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    target = official.with_name("edsr.safetensors")
    assert zoo("convert", official, target, "--to", "safetensors") == 0
    assert "Assumed, because the file does not show it: res_scale=1.0" in capsys.readouterr().out
    lq = torch.rand(1, 3, 5, 5)
    expected = run_edsr(state, lq, blocks=1, scale=2, res_scale=1.0)
    torch.testing.assert_close(build(target)(lq), expected, atol=1e-4, rtol=1e-4)
    assert read_checkpoint(target).facts["scale"] == 2


def test_what_no_file_shows_can_be_said(official: Path, state: dict[str, Tensor]) -> None:
    target = official.with_name("edsr.safetensors")
    zoo("convert", official, target, "--to", "safetensors", "--arg", "res_scale=0.5")
    lq = torch.rand(1, 3, 5, 5)
    expected = run_edsr(state, lq, blocks=1, scale=2, res_scale=0.5)
    torch.testing.assert_close(build(target)(lq), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(MtkdError, match="NAME=VALUE"):
        zoo("convert", official, target, "--to", "safetensors", "--arg", "res_scale")


def test_official_to_basicsr_and_back_is_the_same_file_content(official: Path, state: dict[str, Tensor]) -> None:
    basicsr, back = official.with_name("basicsr.pth"), official.with_name("back.pt")
    zoo("convert", official, basicsr, "--to", "basicsr")
    zoo("convert", basicsr, back, "--to", "official")
    content = torch.load(back, weights_only=True)
    assert content.keys() == state.keys()
    assert all(torch.equal(content[name], state[name]) for name in state)


def test_what_is_written_for_basicsr_loads_there_strictly(official: Path, state: dict[str, Tensor]) -> None:
    pytest.importorskip("mtkd.basicsr")
    from basicsr.archs.edsr_arch import EDSR

    target = official.with_name("basicsr.pth")
    zoo("convert", official, target, "--to", "basicsr")
    theirs = EDSR(3, 3, num_feat=8, num_block=1, upscale=2)
    theirs.load_state_dict(torch.load(target, weights_only=True)["params"], strict=True)
    lq = torch.rand(1, 3, 5, 5)
    expected = run_edsr(state, lq, blocks=1, scale=2, res_scale=1.0)
    torch.testing.assert_close(theirs(lq), expected, atol=1e-4, rtol=1e-4)


def test_rcan_for_basicsr_computes_the_same_there(tmp_path: Path) -> None:
    pytest.importorskip("mtkd.basicsr")
    from basicsr.archs.rcan_arch import RCAN

    state = filled(rcan_shapes(8, 2, 3, 4, 3))
    torch.save(state, tmp_path / "rcan.pt")
    zoo("convert", tmp_path / "rcan.pt", tmp_path / "rcan.pth", "--to", "basicsr")
    theirs = RCAN(3, 3, num_feat=8, num_group=2, num_block=3, squeeze_factor=4, upscale=3)
    theirs.load_state_dict(torch.load(tmp_path / "rcan.pth", weights_only=True)["params"], strict=True)
    lq = torch.rand(1, 3, 6, 6)
    expected = run_rcan(state, lq, groups=2, blocks=3, scale=3)
    torch.testing.assert_close(theirs(lq), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("to", ["basicsr", "official"])
def test_swinir_survives_safetensors_and_loads_in_basicsr_strictly(tmp_path: Path, to: str) -> None:
    pytest.importorskip("mtkd.basicsr")
    from basicsr.archs.swinir_arch import SwinIR

    args = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "mlp_ratio": 2, "img_size": 12}
    theirs = SwinIR(**args, upscale=2, upsampler="pixelshuffledirect")
    torch.save({"params": theirs.state_dict()}, tmp_path / "swinir.pth")
    zoo("convert", tmp_path / "swinir.pth", tmp_path / "swinir.safetensors", "--to", "safetensors")
    facts = read_checkpoint(tmp_path / "swinir.safetensors").facts
    assert facts["arch"]["args"]["img_size"] == 12
    zoo("convert", tmp_path / "swinir.safetensors", tmp_path / "again.pth", "--to", to)
    fresh = SwinIR(**args, upscale=2, upsampler="pixelshuffledirect")
    fresh.load_state_dict(torch.load(tmp_path / "again.pth", weights_only=True)["params"], strict=True)
    lq = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(fresh.eval()(lq), theirs.eval()(lq))
    torch.testing.assert_close(build(tmp_path / "swinir.safetensors")(lq), theirs(lq), atol=1e-5, rtol=1e-4)


def test_the_network_of_an_entry_can_be_named(publish, official: Path) -> None:
    publish(Source(NOWHERE + FILE, FILE))
    target = official.with_name("edsr.safetensors")
    zoo("convert", official, target, "--to", "safetensors", "--like", "edsr_tiny_x2")
    facts = read_checkpoint(target).facts
    assert facts["arch"]["args"] == ENTRIES["edsr_tiny_x2"].args
    assert "data" not in facts, "what another network was trained on says nothing about this one"


def test_weights_that_do_not_fit_the_named_network_are_not_converted(official: Path) -> None:
    target = official.with_name("out.safetensors")
    with pytest.raises(MtkdError, match="num_feat 8, your options have 64"):
        zoo("convert", official, target, "--to", "safetensors", "--like", "edsr_m_x2")
    assert not target.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--arch", "EDSR", "--arg", "num_feat=-1"),
            "--arch describes EDSR in a way that cannot be built: RuntimeError",
        ),
        (("--arch", "EDSR", "--arg", "num_feat=10000000"), "num_feat 8, your options have 10000000"),
        (("--arch", "EDSR", "--arg", "num_block=100000000"), "--arch describes a network of too many parts"),
        (("--arch", "EDSR", "--arg", "nonsense=1"), "--arch describes EDSR with arguments it does not take"),
        (
            ("--arch", "PrivilegedTeacher", "--arg", "decoder={'type': 'os:system', 'command': 'ls'}"),
            "is not a network",
        ),
        (("--like", "edsr_m_x2", "--arg", "num_feat=abc"), "--like edsr_m_x2 describes EDSR with arguments"),
        (("--arch", ":"), "':' is not the path of a class"),
        (("--arch", ".x:y"), "'.x:y' is not the path of a class"),
        (("--arch", "builtins:dict"), "is not a network, and was not called"),
        (("--arch", "Nothing"), "No arch is called 'Nothing'"),
    ],
)
def test_a_network_named_wrongly_is_one_paragraph(
    words: tuple[str, ...], said: str, official: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = official.with_name("out.safetensors")
    assert main(["zoo", "convert", str(official), str(target), "--to", "safetensors", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not target.exists()


def test_an_unknown_network_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_USER_MODULES", set())
    torch.save({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, tmp_path / "linear.pth")
    target = tmp_path / "linear.safetensors"
    with pytest.raises(MtkdError, match="not EDSR, RCAN or SwinIR.*--arch"):
        zoo("convert", tmp_path / "linear.pth", target, "--to", "safetensors")
    words = ("--arch", "torch.nn:Linear", "--arg", "in_features=2", "--arg", "out_features=3")
    zoo("convert", tmp_path / "linear.pth", target, "--to", "safetensors", *words)
    with pytest.raises(MtkdError, match="For safety a weights file builds no other class.*--import"):
        build(target)
    catalog.import_modules(["torch.nn"])
    assert build(target)(torch.zeros(1, 2)).shape == (1, 3)
    with pytest.raises(MtkdError, match="official naming"):
        zoo("convert", tmp_path / "linear.pth", tmp_path / "x.pth", "--to", "official", *words)


def test_a_target_that_cannot_be_written_is_an_error(official: Path) -> None:
    official.with_name("file").write_text("in the way")
    with pytest.raises(MtkdError, match="cannot be written"):
        zoo("convert", official, official.with_name("file") / "out.pth", "--to", "basicsr")
