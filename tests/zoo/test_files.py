"""Reading checkpoints of every kind, and refusing what is none."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from mtkd.contracts import MtkdError
from mtkd.zoo import read_checkpoint, write_safetensors

A, B = {"w": torch.zeros(2)}, {"w": torch.ones(2)}


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def first(path: Path, **options: object) -> float:
    return read_checkpoint(path, **options).state["w"][0].item()


@pytest.mark.parametrize(
    "key", ["params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net"]
)
def test_wrapped_state_dicts_are_found(tmp_path: Path, key: str) -> None:
    assert first(saved(tmp_path / "a.pth", {key: B, "epoch": 3})) == 1


def test_bare_state_dicts_are_found(tmp_path: Path) -> None:
    assert first(saved(tmp_path / "a.pt", OrderedDict(B))) == 1


def test_the_average_is_preferred_and_the_key_decides(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"params": A, "params_ema": B})
    assert (first(path), first(path, key="params"), first(path, key="params_ema")) == (1, 0, 1)


def test_the_average_falls_back_to_the_weights_as_in_basicsr(tmp_path: Path) -> None:
    assert first(saved(tmp_path / "a.pth", {"params": B}), key="params_ema") == 1


def test_a_missing_key_lists_those_present(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="no entry 'params'; it has generator, epoch"):
        read_checkpoint(saved(tmp_path / "a.pth", {"generator": B, "epoch": 1}), key="params")


def test_a_key_for_a_bare_state_dict_says_what_to_write(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", B)
    with pytest.raises(MtkdError, match="bare state dict: set the key to ~"):
        read_checkpoint(path, key="params")
    assert first(path, key=None) == 1


def test_an_unknown_wrapper_is_named_not_guessed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"generator": B, "epoch": 1})
    with pytest.raises(MtkdError, match="generator, epoch are not tensors"):
        read_checkpoint(path)
    assert first(path, key="generator") == 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    assert first(saved(tmp_path / "a.pth", {"params": {f"{prefix}w": B["w"]}})) == 1


def test_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    assert first(saved(tmp_path / "a.pt", B, _use_new_zipfile_serialization=False)) == 1


def test_facts_of_our_checkpoints_are_returned(tmp_path: Path) -> None:
    facts = {"arch": {"type": "EDSR", "args": {"num_feat": 8}}, "scale": 4, "members": ["a", "b"]}
    assert read_checkpoint(saved(tmp_path / "a.pth", {"params": B, "mtkd": facts})).facts == facts
    assert read_checkpoint(saved(tmp_path / "b.pth", {"params": B})).facts == {}


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_safetensors_carry_facts_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    facts = {"arch": {"type": "EDSR", "args": {}}, "scale": 4}
    write_safetensors(tmp_path / name, B, facts)
    checkpoint = read_checkpoint(tmp_path / name, key="params")
    assert checkpoint.facts == facts
    assert torch.equal(checkpoint.state["w"], B["w"])


def test_the_same_tensors_and_facts_make_the_same_bytes(tmp_path: Path) -> None:
    path, facts = tmp_path / "a.safetensors", {"name": 'é "a"\n', "scale": 4}
    written = set()
    for _ in range(12):
        write_safetensors(path, {**B, "v": torch.ones(2, 3)}, facts)
        written.add(path.read_bytes())
    assert len(written) == 1
    assert read_checkpoint(path).facts == facts and torch.equal(read_checkpoint(path).state["w"], B["w"])


def test_foreign_safetensors_have_no_facts(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(B, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert read_checkpoint(tmp_path / "a.safetensors").facts == {}


def test_writing_leaves_no_half_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", B, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


class Bomb:
    """Creates a file when unpickled the careless way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, new_format: bool) -> None:
    path = saved(
        tmp_path / "a.pth", {"params": B, "x": Bomb(tmp_path / "ran")}, _use_new_zipfile_serialization=new_format
    )
    with pytest.raises(MtkdError, match=r"refused: .*mkdir would have to be run"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(MtkdError):
        read_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "It is empty"),
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", "It is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\x00\x01garbage" * 9, "truncated, damaged, or something else"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_no_checkpoint_is_said_to_be_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    expected = "cannot be read as safetensors" if "garbage" in str(content) and name.endswith("safetensors") else said
    with pytest.raises(MtkdError, match=expected):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_truncated_checkpoint_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save({"params": {"w": torch.zeros(5000)}}, path)
    else:
        write_safetensors(path, {"w": torch.zeros(5000)}, {})
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(MtkdError, match="cannot be read"):
        read_checkpoint(path)


def test_an_archive_of_checkpoints_says_how_to_import_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "models.zip", "w") as archive:
        archive.writestr("RCAN_BIX4.pt", b"weights")
    with pytest.raises(MtkdError, match="archive of several files.*zoo import"):
        read_checkpoint(tmp_path / "models.zip")


def test_no_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="no checkpoint"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(MtkdError, match="It is a folder"):
        read_checkpoint(tmp_path)


def test_a_file_that_is_no_dict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="holds a Tensor"):
        read_checkpoint(saved(tmp_path / "a.pth", torch.zeros(2)))
