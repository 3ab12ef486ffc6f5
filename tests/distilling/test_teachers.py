"""Teachers as people name them: recognised, or refused with a remedy before time is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from mtkd.distilling.teachers import find_teachers, seconds_per_pixel
from tests.distilling.album import cut
from tests.helpers import shared_data

SMALL: dict[str, Any] = {"num_feat": 6, "num_block": 1, "upscale": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights: described, raw (only shapes tell), and of no network."""
    folder = tmp_path_factory.mktemp("weights")
    state = EDSR(**SMALL).state_dict()
    zoo.write_safetensors(folder / "own net.safetensors", state, {"arch": {"type": "EDSR", "args": SMALL}, "scale": 2})
    torch.save({"params": state}, folder / "raw.pth")
    torch.save({"params": {"some.weight": torch.ones(3)}}, folder / "unknown.pth")
    (folder / "net.onnx").write_bytes(b"onnx")
    return folder


def test_files_that_say_what_they_are_and_raw_ones_of_known_networks_teach(weights: Path) -> None:
    own, raw = find_teachers([str(weights / "own net.safetensors"), str(weights / "raw.pth")], 2)
    assert (own.name, own.section, own.notice) == ("own_net", str(weights / "own net.safetensors"), "")
    assert raw.section["network"]["type"] == "EDSR" and raw.section["network"]["num_feat"] == 6
    assert "assumed, as no tensor shows it: res_scale 1.0" in raw.notice
    lq = torch.rand(1, 3, 9, 12)
    assert own.net is not None and raw.net is not None
    assert own.net(lq).shape == raw.net(lq).shape == (1, 3, 18, 24)
    assert seconds_per_pixel([own, raw], torch.device("cpu")) > 0


def test_a_network_of_a_larger_scale_teaches(tmp_path: Path) -> None:
    arguments = {**SMALL, "upscale": 4}
    path = tmp_path / "x4.safetensors"
    zoo.write_safetensors(
        path, EDSR(**arguments).state_dict(), {"arch": {"type": "EDSR", "args": arguments}, "scale": 4}
    )
    for scale, size in ((2, "1/2"), (3, "3/4")):
        (teacher,) = find_teachers([str(path)], scale)
        assert teacher.section == {"pretrain": str(path), "scale": 4}
        assert teacher.about.endswith(f", of x4: its images are made {size} as large")
        assert teacher.net is not None and teacher.net(torch.rand(1, 3, 5, 6)).shape == (1, 3, 5 * scale, 6 * scale)


def test_names_of_teachers_are_all_different_and_words_that_torch_takes(tmp_path: Path, weights: Path) -> None:
    text = (weights / "own net.safetensors").read_bytes()
    for name in ("a/x4-net.safetensors", "b/x4-net.safetensors", "mean.safetensors", "über.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    specs = sorted(str(path) for path in tmp_path.rglob("*.safetensors"))
    assert [teacher.name for teacher in find_teachers(specs, 2)] == ["x4_net", "x4_net_2", "teacher_mean", "ber"]


@pytest.mark.parametrize(
    ("spec", "scale", "text"),
    [
        (
            "own net.safetensors",
            4,
            r"own net\.safetensors is a EDSR that enlarges by 2, and --scale is 4\. .*--scale 2",
        ),
        ("unknown.pth", 2, "does not say which network it holds.*mtkd zoo convert FILE NEW.safetensors"),
        ("net.onnx", 2, "an .onnx file cannot teach as a network.*mtkd upscale"),
        ("zoo:edsr_l_x4", 2, "edsr_l_x4 enlarges by 4, and --scale is 2. Take zoo:edsr_l_x2"),
        ("zoo:alexnet", 2, "zoo:alexnet does not enlarge images"),
        ("zoo:edsr_x9", 2, "edsr_x9"),
        ("empty", 2, "holds no image"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_refused_by_name_with_a_remedy(
    weights: Path, spec: str, scale: int, text: str
) -> None:
    (weights / "empty").mkdir(exist_ok=True)
    named = spec if spec.startswith("zoo:") else str(weights / spec)
    with pytest.raises(MtkdError, match=f"(?s){text}"):
        find_teachers([named], scale)


def test_scales_of_the_zoo_are_compared_before_anything_is_loaded(weights: Path) -> None:
    with pytest.raises(MtkdError, match="zoo:edsr_l_x4 enlarges by 4"):
        find_teachers([str(weights / "unknown.pth"), "zoo:edsr_l_x4"], 2)


def test_a_folder_of_images_is_a_teacher_without_a_network(tmp_path: Path) -> None:
    write_image(tmp_path / "answers" / "one.png", cut(0, 20, 20))
    (teacher,) = find_teachers([str(tmp_path / "answers")], 4)
    assert teacher.net is None and teacher.section == {"images": str(tmp_path / "answers")}


def test_published_weights_as_they_come_teach() -> None:
    data = shared_data()
    if data is None or not (data.parent / "weights" / "CRAFT_x4.pth").exists():
        pytest.skip("the published weights are not here")
    (craft,) = find_teachers([str(data.parent / "weights" / "CRAFT_x4.pth")], 4)
    assert craft.about == "CRAFT_x4: CRAFT, 753,344 parameters" and craft.notice == ""
