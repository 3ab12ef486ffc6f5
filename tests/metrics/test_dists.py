"""DISTS against the package of its authors called directly, on a VGG16 with random weights."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import DISTS_pytorch
import pytest
import torch
import torchvision
from torch import Tensor

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.inference.evaluate import build_metrics
from mtkd.metrics.dists import VGG16_FILE, _network, dists
from tests.helpers import photo
from tests.metrics.backbones import save_random_vgg16


def _photo(name: str) -> Tensor:
    return torch.from_numpy(photo(name, (48, 64))).permute(2, 0, 1)[None].float() / 255  # pyright: ignore


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_vgg16(tmp_path_factory.mktemp("weights"))


def test_value_is_that_of_the_package_with_the_weights_of_the_file(
    vgg16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torchvision.models.vgg16

    def from_file(pretrained: bool) -> torch.nn.Module:
        with torch.device("meta"):
            net = whole()
        net.load_state_dict(torch.load(vgg16), strict=False, assign=True)
        return net

    gt = torch.cat([_photo("astronaut"), _photo("coffee")])
    sr = (gt + 0.1 * torch.randn(gt.shape)).clamp(0, 1).mul(255).round() / 255
    # The package looks for its own weights beside Python; they lie in its folder too.
    monkeypatch.setattr(sys, "prefix", str(Path(DISTS_pytorch.__file__).parent))
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patched.setattr(torchvision.models, "vgg16", from_file)
        theirs = DISTS_pytorch.DISTS()
    expected = theirs(sr, gt)
    value = dists(sr, gt, weights=vgg16)
    assert value.shape == (2,) and (value > 0.005).all()
    torch.testing.assert_close(value, expected.double(), rtol=1e-3, atol=2e-6)  # theirs is summed in float32
    precise = theirs.double()(sr.double(), gt.double())
    torch.testing.assert_close(value, precise, rtol=1e-5, atol=1e-8)


def test_the_package_is_left_as_it_was(vgg16: Path) -> None:
    from DISTS_pytorch import DISTS_pt

    _network.cache_clear()
    dists(_photo("astronaut"), _photo("coffee"), weights=vgg16)
    assert DISTS_pt.models is torchvision.models


def test_grey_images_are_measured_as_three_equal_channels(vgg16: Path) -> None:
    gt, sr = _photo("astronaut")[:, :1], _photo("coffee")[:, :1]
    assert dists(sr, gt, weights=vgg16) == dists(sr.expand(-1, 3, -1, -1), gt.expand(-1, 3, -1, -1), weights=vgg16)


def test_weights_are_found_in_the_cache_of_torch_hub_and_in_the_zoos_file(
    vgg16: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    sr, gt = _photo("astronaut"), _photo("coffee")
    expected = dists(sr, gt, weights=vgg16)
    save_file(torch.load(vgg16), tmp_path / "vgg16.safetensors", metadata={"mtkd": "{}"})
    assert dists(sr, gt, weights=tmp_path / "vgg16.safetensors") == expected
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / VGG16_FILE).symlink_to(vgg16)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert dists(sr, gt) == expected


def test_without_weights_it_says_where_they_go_and_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def downloads(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", downloads)
    monkeypatch.setattr(torch.hub, "download_url_to_file", downloads)
    with pytest.raises(MtkdError, match=f"DISTS needs VGG16.*{tmp_path}.*{VGG16_FILE}.*zoo:vgg16"):
        dists(_photo("astronaut"), _photo("coffee"))
    # The zoo's entry is the file that the metric looks for.
    assert zoo.entry("vgg16").sources[0].file == VGG16_FILE


@pytest.mark.parametrize("content", [b"no weights at all", {"features.0.weight": torch.zeros(64, 3, 5, 5)}, [3]])
def test_a_wrong_file_is_an_error_that_names_it(content: object, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(MtkdError, match="other.pth"):
        dists(_photo("astronaut"), _photo("coffee"), weights=path)


def test_measuring_does_not_move_the_random_numbers_of_a_training(vgg16: Path) -> None:
    _network.cache_clear()
    before = torch.get_rng_state()
    dists(_photo("astronaut"), _photo("coffee"), weights=vgg16)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_package_names_the_extra_before_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(zoo, "resolve_inside", fetch)
    monkeypatch.setitem(sys.modules, "DISTS_pytorch.DISTS_pt", None)
    with pytest.raises(MtkdError, match=r"DISTS needs the package DISTS-pytorch.*pip install 'mtkd\[metrics\]'"):
        build_metrics({"dists": {"type": "calculate_dists", "weights": "zoo:vgg16"}})
