"""Where weights lie, files brought by hand, and checking what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.zoo import Source, build, ensure, home, import_file, resolve, verify, write_safetensors
from tests.zoo.conftest import saved, sha256
from tests.zoo.test_download import FILE, record, zipped

NOWHERE = "http://127.0.0.1:9/"


def test_the_folder_is_the_platforms_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTKD_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "mtkd" in home().parts and home().name == "weights"
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine" / "weights"
    assert home(tmp_path / "given") == tmp_path / "given"


def test_anything_that_is_no_zoo_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(b"x")
    assert resolve("~/a.pth") == tmp_path / "a.pth"
    with pytest.raises(MtkdError, match=r"There is no file .*none\.pth"):
        resolve("none.pth")
    with pytest.raises(MtkdError, match="write zoo:rcan_x4"):
        resolve("rcan_x4")
    with pytest.raises(MtkdError, match="Did you mean rcan_x4"):
        resolve("zoo:rcan_x5")


def test_an_imported_file_is_checked_converted_and_left_alone(
    publish, weights_dir: Path, tmp_path: Path, body: bytes
) -> None:
    item = publish(Source(NOWHERE + FILE, FILE, sha256(body)))
    (tmp_path / "renamed.bin").write_bytes(body)
    path = import_file(item, tmp_path / "renamed.bin", weights_dir=weights_dir)
    assert path == ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["check"] == "full hash"
    assert (tmp_path / "renamed.bin").read_bytes() == body


def test_an_imported_file_with_the_wrong_hash_is_refused(
    publish, weights_dir: Path, tmp_path: Path, body: bytes
) -> None:
    other = saved({"w": torch.zeros(1)})
    item = publish(Source(NOWHERE + FILE, FILE, sha256(body)))
    (tmp_path / "anything.pt").write_bytes(other)
    with pytest.raises(MtkdError) as raised:
        import_file(item, tmp_path / "anything.pt", weights_dir=weights_dir)
    assert sha256(body) in str(raised.value) and sha256(other) in str(raised.value)
    assert (tmp_path / "anything.pt").exists()


def test_a_file_under_a_published_name_must_have_that_files_hash(
    publish, weights_dir: Path, tmp_path: Path, body: bytes
) -> None:
    """A source without a hash beside it is no way around the check."""
    item = publish(Source(NOWHERE + "other.pt", "other.pt"), Source(NOWHERE + FILE, FILE, sha256(b"published")))
    (tmp_path / FILE).write_bytes(body)
    with pytest.raises(MtkdError, match=sha256(b"published")):
        import_file(item, tmp_path / FILE, weights_dir=weights_dir)


@pytest.mark.parametrize("name", ["models.zip", "renamed.zip"])
def test_an_archive_can_be_imported_whole(publish, weights_dir: Path, tmp_path: Path, body: bytes, name: str) -> None:
    item = publish(Source(NOWHERE + "models.zip", "models.zip", member=FILE))
    (tmp_path / name).write_bytes(zipped(**{f"models/{FILE}": body, "other.pt": b"x"}))
    import_file(item, tmp_path / name, weights_dir=weights_dir)
    assert build("edsr_tiny_x2", weights_dir=weights_dir).scale == 2


def test_the_unpacked_member_can_be_imported_too(publish, weights_dir: Path, tmp_path: Path, body: bytes) -> None:
    item = publish(Source(NOWHERE + "models.zip", "models.zip", member=FILE))
    (tmp_path / FILE).write_bytes(body)
    import_file(item, tmp_path / FILE, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["check"] == "pinned"


def test_an_imported_file_of_another_network_is_refused(publish, weights_dir: Path, tmp_path: Path) -> None:
    item = publish(Source(NOWHERE + FILE, FILE))
    (tmp_path / FILE).write_bytes(saved({"w": torch.zeros(1)}))
    with pytest.raises(MtkdError, match="does not fit"):
        import_file(item, tmp_path / FILE, weights_dir=weights_dir)
    assert not (weights_dir / "edsr_tiny_x2.safetensors").exists()


def test_verify_finds_what_changed_and_what_is_missing(publish, weights_dir: Path, tmp_path: Path, body: bytes) -> None:
    item = publish(Source(NOWHERE + FILE, FILE, sha256(body)))
    assert verify(weights_dir=weights_dir) == []
    (tmp_path / FILE).write_bytes(body)
    path = import_file(item, tmp_path / FILE, weights_dir=weights_dir)
    (good,) = verify(weights_dir=weights_dir)
    assert good.ok and "full hash" in good.text
    path.write_bytes(path.read_bytes() + b"\0")
    (bad,) = verify(["edsr_tiny_x2"], weights_dir=weights_dir)
    assert not bad.ok and "has changed" in bad.text
    (absent,) = verify(["rcan_x4"], weights_dir=weights_dir)
    assert not absent.ok and "zoo download rcan_x4" in absent.text


def test_a_network_is_built_from_our_training_checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> None:
    from mtkd.zoo import keymaps

    weights = keymaps.to_basicsr(state)
    args = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}
    facts = {"arch": {"type": "EDSR", "args": args}, "scale": 2}
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save({"params": zeros, "params_ema": weights, "mtkd": facts}, tmp_path / "net_g_10.pth")
    net = build(tmp_path / "net_g_10.pth")
    assert torch.equal(net.state_dict()["conv_first.weight"], weights["conv_first.weight"])


def test_a_file_that_does_not_say_what_it_is_cannot_be_built_but_is_described(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(MtkdError, match="By its shapes it is EDSR .*num_block 1.*zoo convert"):
        build(tmp_path / "a.pt")


def test_facts_with_arguments_that_the_network_does_not_take_are_an_error(tmp_path: Path) -> None:
    facts = {"arch": {"type": "EDSR", "args": {"num_layers": 3}}}
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, facts)
    with pytest.raises(MtkdError, match="num_layers"):
        build(tmp_path / "a.safetensors")
