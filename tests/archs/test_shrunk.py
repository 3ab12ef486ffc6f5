"""A network of a larger scale as a teacher of a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtkd import build, zoo
from mtkd.archs.edsr import EDSR
from mtkd.archs.shrunk import Shrunk
from mtkd.cli import main
from mtkd.config import NetworkOptions, OptionError, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image
from mtkd.data.resize import bicubic_lq, imresize
from mtkd.data.store import ImageStore
from mtkd.metrics.psnr import psnr
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.training.loop import train
from tests.helpers import shared_data
from tests.runs import run_options

LARGE: dict[str, Any] = {"num_feat": 4, "num_block": 1, "upscale": 4}


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(7)
    path = tmp_path / "large.safetensors"
    zoo.write_safetensors(path, EDSR(**LARGE).state_dict(), {"arch": {"type": "EDSR", "args": LARGE}, "scale": 4})
    return str(path)


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_its_image_is_that_of_the_network_made_smaller(scale: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    net = EDSR(**LARGE).to(dtype)
    lq = torch.rand(2, 3, *size, dtype=dtype)
    image = Shrunk(net, scale)(lq)
    assert image.shape == (2, 3, size[0] * scale, size[1] * scale) and image.dtype == dtype
    assert torch.equal(image, imresize(net(lq), scale / 4))


def test_only_a_larger_scale_is_made_smaller() -> None:
    net = EDSR(**LARGE)
    assert build.as_scale(net, 4) is net
    for scale in (4, 5):
        with pytest.raises(MtkdError, match="EDSR that enlarges by 4 cannot teach at x"):
            Shrunk(net, scale)
    shrunk = Shrunk(net, 3)
    assert shrunk.feature_names[0] == f"net.{net.feature_names[0]}"
    assert all(shrunk.get_submodule(tap) is net.get_submodule(tap.removeprefix("net.")) for tap in shrunk.feature_names)


def test_a_run_learns_from_it_live_and_from_its_store(tmp_path: Path, weights: str) -> None:
    teachers = {"large": {"pretrain": weights, "scale": 4}}
    terms: dict[str, Any] = {"pixel_opt": None, "target_opt": {"type": "L1Loss"}}
    options = run_options(tmp_path, model_type="OutputKD", teachers=teachers, train=dict(terms))
    (teacher,) = build.build_teachers(options).values()
    assert isinstance(teacher, Shrunk) and teacher.scale == 2
    assert train(options).is_file()

    file = tmp_path / "run.yml"
    stored = options.model_copy(update={"target_store": str(tmp_path / "targets"), "name": "stored"})
    file.write_text(resolved_yaml(stored))
    assert main(["teach", "-opt", str(file)]) == 0
    images, store = build.open_training_images(options), ImageStore(tmp_path / "targets")
    with torch.no_grad():
        expected = to_image(teacher(to_tensor(images.lq[0])))
    assert np.array_equal(store[0], expected)
    assert main(["train", "-opt", str(file)]) == 0


def test_the_scale_of_a_teacher_is_checked(tmp_path: Path, weights: str) -> None:
    def problem(**teacher: Any) -> str:
        with pytest.raises(OptionError) as caught:
            run_options(tmp_path, model_type="OutputKD", images=tmp_path, teachers={"large": teacher})
        return str(caught.value)

    assert "teachers.large.network.upscale: is 4, and the run's scale is 2" in (said := problem(pretrain=weights))
    assert "or say `scale` beside `pretrain` where the network enlarges by more" in said
    assert "teachers.large.scale: is 1, and the run's scale is 2" in problem(pretrain=weights, scale=1)
    assert "and the teacher's scale is 3" in problem(pretrain=weights, scale=3)
    assert "teachers.large.scale" in problem(pretrain=weights, scale="x4")
    assert "teachers.large.scale" in problem(images=str(tmp_path), scale=4)


@pytest.mark.slow
def test_a_published_network_of_x4_teaches_at_x3() -> None:
    """The published weights, where they are at hand: as good as networks that were made for x3."""
    data = shared_data()
    if data is None or not (data.parent / "weights/CRAFT_x4.pth").is_file():
        pytest.skip("needs CRAFT_x4.pth")
    net = build.build_network(NetworkOptions(type="spandrel"), 4).eval()
    build.load_weights(net, str(data.parent / "weights/CRAFT_x4.pth"))
    gt = read_image(data / "test/Set5/HR/bird.png")[:144, :144]
    with torch.no_grad():
        sr = Shrunk(net, 3)(to_tensor(bicubic_lq(gt, 3)))
    assert float(psnr(sr.clamp(0, 1), to_tensor(gt), crop_border=3, test_y_channel=True)) > 35
