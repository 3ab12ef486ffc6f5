"""LPIPS against the package `lpips`, on an AlexNet with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.metrics.lpips import ALEXNET_FILE, lpips
from tests.helpers import photo
from tests.metrics.backbones import save_random_alexnet


def _photo(name: str) -> Tensor:
    return torch.from_numpy(photo(name, (48, 64))).permute(2, 0, 1)[None].float() / 255  # pyright: ignore


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_alexnet(tmp_path_factory.mktemp("weights"))


def test_value_is_that_of_the_package_with_the_weights_of_the_file(alexnet: Path) -> None:
    from lpips import LPIPS

    gt = torch.cat([_photo("astronaut"), _photo("coffee")])
    sr = (gt + 0.1 * torch.randn(gt.shape)).clamp(0, 1).mul(255).round() / 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(alexnet)
    with torch.no_grad():
        for key, parameter in reference.net.named_parameters():
            parameter.copy_(state["features." + key.split(".", 1)[1]])
        expected = reference(sr, gt, normalize=True).flatten()
    value = lpips(sr, gt, weights=alexnet)
    assert value.shape == (2,)
    assert (value > 0.01).all()
    torch.testing.assert_close(value, expected.double(), rtol=1e-5, atol=1e-7)


def test_is_zero_for_identical_images_and_ignores_the_border(alexnet: Path) -> None:
    gt = _photo("astronaut")
    sr = gt.clone()
    sr[..., :4] = 0
    assert lpips(sr, gt, crop_border=4, weights=alexnet).item() == 0
    assert lpips(sr, gt, crop_border=3, weights=alexnet).item() > 0


def test_weights_are_found_in_the_cache_of_torch_hub(alexnet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / ALEXNET_FILE).symlink_to(alexnet)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    sr, gt = _photo("astronaut"), _photo("coffee")
    assert lpips(sr, gt) == lpips(sr, gt, weights=alexnet)


def test_the_zoos_converted_file_gives_the_same(alexnet: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(alexnet), tmp_path / "alexnet.safetensors", metadata={"mtkd": "{}"})
    sr, gt = _photo("astronaut"), _photo("coffee")
    assert lpips(sr, gt, weights=tmp_path / "alexnet.safetensors") == lpips(sr, gt, weights=alexnet)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(MtkdError, match="broken.safetensors cannot be read"):
        lpips(sr, gt, weights=tmp_path / "broken.safetensors")


def test_without_weights_it_says_where_they_go_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def downloads(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", downloads)
    monkeypatch.setattr(torch.hub, "download_url_to_file", downloads)
    with pytest.raises(MtkdError, match=f"{tmp_path}.*{ALEXNET_FILE}"):
        lpips(_photo("astronaut"), _photo("coffee"))


@pytest.mark.parametrize(
    "content",
    [b"no weights at all", b"1", b"\x80\x02]q\x00.", bytes(999), {"features.0.weight": torch.zeros(64, 3, 3, 3)}, [3]],
    ids=["text", "digit", "pickle", "zeros", "another network", "no dict"],
)
def test_a_wrong_file_is_an_error_that_names_it(content: object, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(MtkdError, match="other.pth"):
        lpips(_photo("astronaut"), _photo("coffee"), weights=path)


def test_measuring_does_not_move_the_random_numbers_of_a_training(alexnet: Path) -> None:
    from mtkd.metrics.lpips import _network

    _network.cache_clear()
    before = torch.get_rng_state()
    lpips(_photo("astronaut"), _photo("coffee"), weights=alexnet)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_too_small_for_alexnet_are_an_error(alexnet: Path) -> None:
    images = torch.rand(2, 1, 3, 31, 31)
    assert lpips(*images, weights=alexnet) > 0
    with pytest.raises(MtkdError, match="31x31"):
        lpips(*images[..., :30], weights=alexnet)


def test_option_files_find_it_under_its_name() -> None:
    assert catalog.get("metric", "calculate_lpips") is lpips
