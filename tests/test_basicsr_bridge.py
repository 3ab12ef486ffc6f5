"""The bridge to BasicSR: it imports, finds names, and says clearly when it cannot."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import nn

from mtkd import catalog
from mtkd.contracts import MtkdError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "name", "module"),
    [
        ("arch", "RRDBNet", "basicsr.archs.rrdbnet_arch"),
        ("arch", "EDSR", "basicsr.archs.edsr_arch"),
        ("loss", "WeightedTVLoss", "basicsr.losses.basic_loss"),
        ("dataset", "PairedImageDataset", "basicsr.data.paired_image_dataset"),
        ("metric", "calculate_psnr", "basicsr.metrics.psnr_ssim"),
    ],
)
def test_registered_finds_basicsr_s_own(kind: str, name: str, module: str) -> None:
    from mtkd import basicsr

    found = basicsr.registered(kind, name)  # pyright: ignore[reportArgumentType]
    assert found.__name__ == name
    assert found.__module__ == module


def test_an_unknown_name_is_none_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from mtkd import basicsr

    assert basicsr.registered("arch", "NoSuchNet") is None
    assert capsys.readouterr().out == ""


def test_names_that_others_registered_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr.utils.registry import ARCH_REGISTRY

    from mtkd import basicsr

    class Outside(nn.Module):
        pass

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Outside", Outside)
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Renamed_basicsr", Outside)
    assert basicsr.registered("arch", "Outside") is Outside
    assert basicsr.registered("arch", "Renamed") is Outside


def test_an_unknown_kind_is_an_error() -> None:
    from mtkd import basicsr

    with pytest.raises(MtkdError, match="arch, loss, dataset, metric"):
        basicsr.registered("model", "SRModel")  # pyright: ignore[reportArgumentType]


def test_the_catalog_prefers_ours_and_falls_back_to_basicsr_s() -> None:
    from mtkd.archs.edsr import EDSR

    assert catalog.get("arch", "EDSR") is EDSR
    net = catalog.get("arch", "SRVGGNetCompact")(num_feat=4, num_conv=1, upscale=2)
    assert net(torch.rand(1, 3, 5, 6)).shape == (1, 3, 10, 12)


def test_absence_of_basicsr_is_an_import_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import mtkd

    for name in [name for name in sys.modules if name == "mtkd.basicsr" or name.startswith("mtkd.basicsr.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(mtkd, "basicsr", raising=False)
    monkeypatch.setitem(sys.modules, "basicsr", None)  # what `import` sees of a package that is not there
    with pytest.raises(ImportError, match=r"pip install .*basicsr==1\.4\.2"):
        importlib.import_module("mtkd.basicsr")
    with pytest.raises(MtkdError, match="No arch is called 'RRDBNet'"):
        catalog.get("arch", "RRDBNet")


def test_the_shim_offers_the_module_that_torchvision_removed() -> None:
    from mtkd import basicsr  # noqa: F401

    removed = importlib.import_module("torchvision.transforms.functional_tensor")
    gray = removed.rgb_to_grayscale(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1))
    assert gray.item() == pytest.approx(0.2989)
