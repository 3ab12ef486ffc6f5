"""CSD: shared weights, the contrast in VGG's features, and the narrow network that is deployed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.archs.slim import Slim, extract
from mtkd.build import build_method, output_network
from mtkd.config import make_options
from mtkd.contracts import MtkdError
from mtkd.losses import perceptual
from mtkd.losses.perceptual import CSD_LAYERS, VGG19Features
from mtkd.methods.base import MethodConfig
from mtkd.methods.csd import CSD
from mtkd.training.loop import train
from tests.methods.setups import TASK, batch, edsr, fsrcnn, rcan
from tests.runs import run_options

BOTH = {"pixel": {}, "teacher_pixel": {}}


def build(student: Any = None, terms: Any = None, **options: Any) -> CSD:
    options = {"width": 0.5, "vgg": "random", **options}
    return CSD(student or edsr(), {}, TASK, MethodConfig(terms=terms, options=options))


def test_terms_are_the_papers() -> None:
    method, given = build(), batch()
    weights = {name: term.weight for name, term in method.terms.items()}
    assert weights == {"pixel": 1.0, "teacher_pixel": 1.0, "contrast": pytest.approx(0.784, abs=1e-3)}
    out = method(given, 0)
    torch.testing.assert_close(out.sr, extract(method.student, 0.5)(given.lq))
    torch.testing.assert_close(out.losses["pixel"], F.l1_loss(out.sr, given.gt))
    torch.testing.assert_close(out.losses["teacher_pixel"], F.l1_loss(method.student(given.lq), given.gt))


@pytest.mark.parametrize("negatives", [1, 2, 10])
def test_contrast_is_the_published_formula(negatives: int) -> None:
    """Written out with every difference materialised, on 0..255 images; K is at most the batch."""
    method, given = build(negatives=negatives), batch(3)
    vgg = VGG19Features("random", layers=CSD_LAYERS).net
    indices = (1, 6, 11, 20, 29)

    def features(image: Tensor) -> list[Tensor]:
        x, found = 255 * image, []
        for index, layer in enumerate(vgg):
            x = layer(x)
            if index in indices:
                found.append(x)
        return found

    with torch.no_grad():
        student = features(Slim(method.student, 0.5)(given.lq))
        teacher = features(method.student(given.lq))
        enlarged = F.interpolate(given.lq, scale_factor=2, mode="bicubic", align_corners=False)
        others = features(enlarged[:negatives])
        expected = torch.zeros(())
        for w, s, t, n in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), student, teacher, others, strict=True):
            assert len(n) == min(negatives, 3)
            expected = expected + w * (t - s).abs().mean() / ((n[:, None] - s).abs().sum(0).mean() + 1e-7)
        torch.testing.assert_close(method(given, 0).losses["contrast"], expected)


def test_teacher_is_a_fixed_target_of_the_contrast() -> None:
    method = build(edsr(8))
    method(batch(), 0).losses["contrast"].backward()
    weight = method.student.body[0].conv1.weight.grad
    assert weight[:4, :4].any()
    assert not weight[4:].any() and not weight[:, 4:].any()


def test_terms_share_one_set_of_weights() -> None:
    method = build(edsr(8), terms=BOTH)
    assert len(list(method.parameters())) == len(list(method.student.parameters()))
    assert set(method.state_dict()) == {f"student.{key}" for key in method.student.state_dict()}
    losses = method(batch(), 0).losses
    sum(losses.values()).backward()
    weight = method.student.body[0].conv1.weight.grad
    assert weight[:4, :4].any() and weight[4:].any()


@pytest.mark.parametrize("student", [edsr, rcan])
def test_deployed_network_stands_alone_and_answers_as_in_training(student: Any) -> None:
    method, given = build(student(), terms=BOTH), batch(2, 7, 5)
    small = method.deployable(method.student)
    sr = method(given, 0).sr
    torch.testing.assert_close(small(given.lq), sr)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.zero_()
    torch.testing.assert_close(small(given.lq), sr)


def test_average_copy_is_deployed_from_its_own_weights() -> None:
    method, lq = build(terms=BOTH), batch().lq
    shadow = copy.deepcopy(method.student).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in shadow.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(method.predictor(shadow)(lq), Slim(shadow, 0.5)(lq))
    assert not torch.allclose(method.predictor(shadow)(lq), method.predictor(method.student)(lq))


def test_training_needs_no_vgg_without_contrast_and_neither_does_testing() -> None:
    assert not hasattr(build(terms=BOTH, vgg=None), "vgg")
    assert not hasattr(build(terms={}, vgg=None), "vgg")
    assert list(build(terms={"pixel": {}}, vgg=None)(batch(), 0).losses) == ["pixel"]


def test_width_travels_with_the_weights() -> None:
    assert build(terms=BOTH).metadata() == {"width": 0.5}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: build(vgg=None), "vgg: zoo:vgg19"),
        (lambda: build(vgg="nowhere/vgg19-dcbb9e9d.pth"), "not at nowhere"),
        (lambda: build(fsrcnn()), "FSRCNN cannot be sliced"),
        (lambda: build(width=0.01), "at least"),
        (lambda: build(negatives=0), "negatives"),
    ],
)
def test_wrong_setups_are_errors(call: Any, text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        call()


def test_vgg_of_the_zoo_is_read(tmp_path: Path) -> None:
    """The zoo writes torchvision's names, with the entry's name beside them."""
    net = perceptual._sequential(30)
    perceptual._initialise(net)
    with torch.no_grad():
        net[0].bias.fill_(0.5)
    state = {f"features.{key}": value for key, value in net.state_dict().items()}
    facts = zoo.entry("zoo:vgg19").facts
    zoo.write_safetensors(tmp_path / "vgg19.safetensors", state | {"classifier.0.bias": torch.zeros(2)}, facts)
    method = build(vgg=str(tmp_path / "vgg19.safetensors"))
    assert torch.equal(method.vgg.net[0].bias, torch.full((64,), 0.5))
    zoo.write_safetensors(tmp_path / "other.safetensors", state, {"name": "alexnet"})
    with pytest.raises(MtkdError, match="not the zoo's vgg19"):
        build(vgg=str(tmp_path / "other.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(MtkdError, match="cannot be read as safetensors"):
        build(vgg=str(tmp_path / "broken.safetensors"))


def test_option_files_name_vgg_by_its_name_in_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training fetches it through the zoo; a test of the trained network needs it not."""
    net = perceptual._sequential(30)
    perceptual._initialise(net)
    state = {f"features.{key}": value for key, value in net.state_dict().items()}
    path = tmp_path / "vgg19.safetensors"
    zoo.write_safetensors(path, state, zoo.entry("vgg19").facts)
    asked: list[str] = []
    monkeypatch.setattr(zoo.cache, "resolve", lambda spec: asked.append(spec) or path)
    options = run_options(
        tmp_path,
        model_type="CSD",
        network_g={"type": "EDSR", "num_feat": 8, "num_block": 1},
        method={"width": 0.5, "vgg": "zoo:vgg19"},
    )
    method = build_method(options, edsr(), {}, TASK)
    assert asked == ["zoo:vgg19"] and method.options.vgg == str(path)
    assert method(batch(), 0).losses["contrast"].isfinite()
    build_method(options.model_copy(update={"train": None}), edsr(), {}, TASK)
    assert len(asked) == 1


def test_a_run_saves_the_wide_network_from_which_the_narrow_one_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    wide = {"type": "EDSR", "num_feat": 8, "num_block": 1}
    options = run_options(
        tmp_path,
        model_type="CSD",
        network_g=wide,
        method={"width": 0.5, "vgg": "random", "negatives": 1},
        train={"total_iter": 2, "ema_decay": 0.5},
    )
    latest = train(options)
    saved = torch.load(latest, weights_only=True)
    assert saved["mtkd"]["width"] == 0.5
    net = EDSR(num_feat=8, num_block=1, upscale=2)
    net.load_state_dict(saved["params_ema"])
    sets = {"test_1": {"name": "s", "type": "PairedImageDataset", "dataroot_gt": str(tmp_path / "images")}}
    tested = {"pretrain_network_g": str(latest), "param_key_g": "params_ema"}
    small = output_network(
        make_options(
            {
                "name": "t",
                "model_type": "CSD",
                "scale": 2,
                "datasets": sets,
                "network_g": wide,
                "method": {"width": 0.5},
                "path": tested,
            }
        )
    )
    assert small.conv_first.out_channels == 4
    lq = torch.rand(1, 3, 5, 5)
    torch.testing.assert_close(small(lq), Slim(net, 0.5)(lq))
