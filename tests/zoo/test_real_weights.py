"""A published network in official naming: the EDSR of 8 blocks where the shared weights are, else one like it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mtkd.zoo import build, conversion, read_checkpoint
from tests.zoo.official import edsr_shapes, filled, run_edsr

pytestmark = pytest.mark.slow

SHARED = Path(os.environ.get("MTKD_SHARED") or Path(__file__).resolve().parents[3] / "shared")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    real = SHARED / "weights" / "EDSR_8b64f_x2.pth"
    if real.is_file():
        return real
    # Kept small, so that 18 random layers do not blow up what the comparison has to resolve.
    state = {
        name: 0.2 * value if "mean" not in name else value for name, value in filled(edsr_shapes(64, 8, 2)).items()
    }
    torch.save(state, tmp_path / "published.pth")
    return tmp_path / "published.pth"


def test_a_published_edsr_converts_and_computes_the_same(tmp_path: Path, published: Path) -> None:
    done = conversion.convert(published, tmp_path / "edsr.safetensors", to="safetensors")
    assert done.arch["type"] == "EDSR"
    shown = {"num_feat": 64, "num_block": 8, "upscale": 2, "img_range": 255.0}
    assert {name: done.arch["args"][name] for name in shown} == shown
    assert done.assumed == {"res_scale": 1.0}
    lq = torch.rand(1, 3, 16, 20)
    with torch.no_grad():
        expected = run_edsr(read_checkpoint(published).state, lq, blocks=8, scale=2, res_scale=1.0)
        torch.testing.assert_close(build(done.path)(lq), expected, atol=1e-5, rtol=1e-5)


def test_a_published_edsr_comes_back_in_its_own_naming(tmp_path: Path, published: Path) -> None:
    converted = conversion.convert(published, tmp_path / "edsr.pth", to="basicsr")
    back = conversion.convert(converted.path, tmp_path / "back.pth", to="official")
    original, again = read_checkpoint(published).state, read_checkpoint(back.path).state
    assert original.keys() == again.keys()
    for name in original:
        torch.testing.assert_close(original[name], again[name], atol=1e-4, rtol=0)
