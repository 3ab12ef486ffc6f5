"""Weights on the Hugging Face hub: a server of the test's own, and the cache without any."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import mtkd
from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.cli import main
from mtkd.config import resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.inference.hub import fetch
from mtkd.inference.load import load_network
from mtkd.inference.named import find_target
from mtkd.inference.publish import push
from tests.inference.hub_stub import COMMIT, Hub, served
from tests.runs import FUSION, make_teachers, run_options

huggingface_hub = pytest.importorskip("huggingface_hub")
ARGUMENTS = {"num_feat": 4, "num_block": 1, "upscale": 2}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with served() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


@pytest.fixture(scope="module")
def net() -> EDSR:
    torch.manual_seed(0)
    return EDSR(**ARGUMENTS).eval()


@pytest.fixture(scope="module")
def weights(net: EDSR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "own.pth"
    facts = {"arch": {"type": "EDSR", "args": ARGUMENTS}, "method": "SRModel", "iteration": 1200}
    torch.save({"params": net.state_dict(), "mtkd": facts}, path)
    return path


def test_what_is_pushed_is_loaded_back_and_upscales(
    hub: Hub, net: EDSR, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(weights), "ann/photos_x2", "--license", "mit"]) == 0
    assert (
        f'{hub.address}/ann/photos_x2 holds it now. In Python: mtkd.load("hf:ann/photos_x2")' in capsys.readouterr().out
    )
    files = hub.repositories["ann/photos_x2"]
    assert sorted(files) == ["README.md", "model.safetensors"]
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: mtkd\n") and "- super-resolution\n" in card
    assert 'mtkd.load("hf:ann/photos_x2")' in card and "by the method SRModel for 1,200 iterations." in card
    loaded = load_network("hf:ann/photos_x2")
    assert loaded.scale == 2
    target = find_target("hf:ann/photos_x2")
    assert target.scale == 2 and target.net is not None
    for (name, ours), theirs in zip(loaded.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    image = np.full((5, 7, 3), 90, np.uint8)
    assert mtkd.load(f"hf:ann/photos_x2@{COMMIT}", device="cpu").upscale(image).shape == (10, 14, 3)


def test_a_card_that_is_there_stays(hub: Hub, weights: Path) -> None:
    hub.repositories["ann/net"] = {"README.md": b"# mine\n"}
    said: list[str] = []
    assert push(str(weights), "hf:ann/net", log=said.append) == f"{hub.address}/ann/net"
    assert (
        hub.repositories["ann/net"]["README.md"] == b"# mine\n" and "model.safetensors" in hub.repositories["ann/net"]
    )
    assert [line.split(" ")[0] for line in said] == ["The", "hf:ann/net"] and "license: other" in said[0]


def test_the_one_file_of_a_foreign_repository_is_taken_and_several_are_named(hub: Hub, weights: Path) -> None:
    hub.repositories["bob/one"] = {"net_x2.pth": weights.read_bytes(), "README.md": b""}
    assert load_network("hf:bob/one").scale == 2
    hub.repositories["bob/two"] = {"a.pth": weights.read_bytes(), "sub/b.pth": weights.read_bytes()}
    with pytest.raises(MtkdError, match="2 files of weights.*hf:bob/two/a.pth, hf:bob/two/sub/b.pth"):
        fetch("hf:bob/two")
    assert load_network("hf:bob/two/sub/b.pth").scale == 2
    hub.repositories["bob/none"] = {"README.md": b""}
    with pytest.raises(MtkdError, match="hf:bob/none holds no weights that can be read here"):
        fetch("hf:bob/none")


def test_what_is_missing_is_named(hub: Hub, weights: Path) -> None:
    with pytest.raises(MtkdError, match="no repository ann/gone, or it is private.*hf auth login"):
        fetch("hf:ann/gone")
    hub.repositories["ann/net"] = {"a.pth": weights.read_bytes()}
    with pytest.raises(MtkdError, match="hf:ann/net has no revision v9"):
        fetch("hf:ann/net@v9")
    with pytest.raises(MtkdError, match="hf:ann/net has no file b.pth"):
        fetch("hf:ann/net/b.pth")
    for wrong in ("hf:net", "hf:ann/net/", "hf:../net", "hf:"):
        with pytest.raises(MtkdError, match="names no repository"):
            fetch(wrong)


def test_a_pickle_from_the_hub_runs_nothing(hub: Hub, tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    hub.repositories["eve/net"] = {"net.pth": pickle.dumps({"params": Evil()})}
    with pytest.raises(MtkdError):
        load_network("hf:eve/net")
    assert not (tmp_path / "ran").exists()


def test_without_a_network_the_cache_serves(hub: Hub, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["ann/pushed"] = {"model.safetensors": b""}
    hub.repositories["ann/foreign"] = {"net.pth": weights.read_bytes()}
    first = fetch("hf:ann/foreign")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch("hf:ann/foreign") == first and first.read_bytes() == weights.read_bytes()
    asked = len(hub.asked)
    with pytest.raises(MtkdError, match="hf:ann/pushed was never fetched, and the hub cannot be reached"):
        fetch("hf:ann/pushed")
    assert len(hub.asked) == asked


def test_a_hub_that_does_not_answer_is_said_in_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub tries several times
    with pytest.raises(MtkdError, match="was never fetched, and the hub cannot be reached"):
        fetch("hf:ann/net")


def test_without_the_extra_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MtkdError, match=r"hf:ann/net needs the package huggingface_hub.*pip install 'mtkd\[hub\]'"):
        mtkd.load("hf:ann/net")


def test_a_run_is_pushed_with_the_weights_that_it_deploys(hub: Hub, weights: Path, tmp_path: Path) -> None:
    options = run_options(tmp_path)
    run = tmp_path / "experiments/tiny"
    (run / "models").mkdir(parents=True)
    (run / "resolved.yml").write_text(resolved_yaml(options))
    with pytest.raises(MtkdError, match="holds no weights yet"):
        push(str(run), "ann/run")
    shutil.copyfile(weights, run / "models/net_g_latest.pth")
    push(str(run), "ann/run")
    latest = hub.repositories["ann/run"]["model.safetensors"]
    assert load_network("hf:ann/run").scale == 2
    torch.save(
        {
            "params": EDSR(num_feat=2, num_block=1, upscale=2).state_dict(),
            "mtkd": {"arch": {"type": "EDSR", "args": {"num_feat": 2, "num_block": 1, "upscale": 2}}},
        },
        run / "models/deployable.pth",
    )
    push(str(run), "ann/run")
    assert len(hub.repositories["ann/run"]["model.safetensors"]) < len(latest)
    # A fused image needs its teachers: no file holds them together.
    fused = run_options(
        tmp_path / "fusion",
        model_type="MTKDFusion",
        network_g=FUSION,
        teachers=make_teachers(tmp_path / "teachers"),
        train={"pixel_opt": {"type": "L1Loss"}},
    )
    (run / "models/deployable.pth").unlink()
    (run / "resolved.yml").write_text(resolved_yaml(fused))
    with pytest.raises(MtkdError, match="trained by MTKDFusion, whose network works with its teachers"):
        push(str(run), "ann/run")


def test_nothing_is_sent_before_all_is_in_order(
    hub: Hub, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MtkdError, match="no run folder or weights file"):
        push("nowhere", "ann/net")
    with pytest.raises(MtkdError, match="more than a repository"):
        push(str(weights), "ann/net@v1")
    zoo.write_safetensors(tmp_path / "bare.safetensors", EDSR(**ARGUMENTS).state_dict(), {})
    (tmp_path / "run").mkdir()
    with pytest.raises(MtkdError, match="run is not the folder of a run"):
        push(str(tmp_path / "run"), "ann/net")
    assert hub.asked == []
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(MtkdError, match="401"):
        push(str(weights), "ann/net")
    assert hub.repositories == {}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(MtkdError, match="hf auth login"):
        push(str(weights), "ann/net")
