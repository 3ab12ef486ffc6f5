"""VGG-19 features and the perceptual loss: torchvision's layers, normalisation, weights files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses import perceptual
from mtkd.losses.perceptual import CSD_LAYERS, LAYERS, PerceptualLoss, VGG19Features

SHALLOW = ("relu1_1", "relu2_1")


def _images(size: int = 16) -> tuple[Tensor, Tensor]:
    sr, target = torch.rand(2, 2, 3, size, size)
    return sr, target


def _file(folder: Path, layers: int = 6) -> Path:
    """A file in the form of torchvision's, cut short."""
    net = perceptual._sequential(layers)
    perceptual._initialise(net)
    state = {f"features.{key}": value.clone() for key, value in net.state_dict().items()}
    path = folder / "vgg.pth"
    torch.save(state | {"classifier.0.weight": torch.zeros(3)}, path)
    return path


def test_layers_stand_where_torchvision_has_them() -> None:
    assert [LAYERS.index(name) for name in CSD_LAYERS] == [1, 6, 11, 20, 29]
    assert len(LAYERS) == 37


@pytest.mark.slow
def test_taps_are_torchvisions_vgg19() -> None:
    vgg = pytest.importorskip("torchvision.models.vgg")
    theirs = vgg.make_layers(vgg.cfgs["E"]).eval()
    ours = VGG19Features("random", layers=LAYERS)
    assert [type(a) for a in ours.net] == [type(b) for b in theirs]
    theirs.load_state_dict(ours.net.state_dict())
    x = torch.rand(1, 3, 32, 32)
    found = ours(x)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert tuple(found) == LAYERS
    for name, layer in zip(LAYERS, theirs, strict=True):
        # Their ReLUs work in place, so what ours tapped before must be compared before they run.
        expected = layer(expected.clone())
        torch.testing.assert_close(found[name], expected)


def test_a_tap_before_a_relu_keeps_its_negative_values() -> None:
    features = VGG19Features("random", layers=("conv1_1", "relu1_1"))(_images()[0])
    assert (features["conv1_1"] < 0).any()
    torch.testing.assert_close(features["relu1_1"], features["conv1_1"].relu())


def test_csd_feeds_the_net_with_0_to_255() -> None:
    net = VGG19Features("random", layers=("conv1_1",), input_norm="255")
    x = _images()[0]
    torch.testing.assert_close(net(x)["conv1_1"], net.net(255 * x))
    assert tuple(VGG19Features("random")(_images()[0])) == CSD_LAYERS


def test_random_weights_are_the_same_in_every_run_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first = VGG19Features("random", layers=SHALLOW)
    second = VGG19Features("random", layers=("relu3_1",))
    assert torch.equal(torch.get_rng_state(), before)
    x = _images()[0]
    torch.testing.assert_close(first(x)["relu1_1"], VGG19Features("random", layers=("relu1_1",))(x)["relu1_1"])
    for key, value in first.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[key])


def test_is_frozen_and_outside_the_state_but_follows_the_device_and_dtype() -> None:
    loss = PerceptualLoss(weights="random", layer_weights={"relu1_1": 1.0})
    assert not list(loss.parameters())
    assert not list(loss.buffers())
    assert not loss.state_dict()
    assert all(not p.requires_grad for p in loss.vgg.net.parameters())
    loss.train()
    assert not loss.vgg.net.training
    loss.double()
    assert loss.vgg.net[0].weight.dtype == torch.float64
    assert loss(*_images()).dtype == torch.float64
    again = copy.deepcopy(loss)
    assert again.vgg.net is not loss.vgg.net
    assert pickle.loads(pickle.dumps(loss))(*_images()).isfinite()


def test_file_is_read_without_the_layers_that_are_not_needed(tmp_path: Path) -> None:
    path = _file(tmp_path, layers=10)
    features = VGG19Features(path, layers=SHALLOW, sha256=None)
    assert len(features.net) == 7
    state = torch.load(path, weights_only=True)
    assert torch.equal(features.net[5].weight, state["features.5.weight"])


def test_missing_file_says_which_where_from_and_where_to(tmp_path: Path) -> None:
    with pytest.raises(MtkdError) as caught:
        VGG19Features(tmp_path / "nothing.pth")
    text = str(caught.value)
    for part in ("nothing.pth", "vgg19-dcbb9e9d.pth", "https://download.pytorch.org/models/", "experiments/"):
        assert part in text
    assert "\n" not in text


def test_another_file_another_network_and_no_weights_are_errors(tmp_path: Path) -> None:
    path = _file(tmp_path)
    with pytest.raises(MtkdError, match="SHA-256 starts with"):
        VGG19Features(path, layers=SHALLOW)
    with pytest.raises(MtkdError, match=r"features\.7\.weight is absent"):
        VGG19Features(path, layers=("relu2_2",), sha256=None)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(MtkdError, match="cannot be read"):
        VGG19Features(path, layers=SHALLOW, sha256=None)
    torch.save([1, 2], path)
    with pytest.raises(MtkdError, match="holds no VGG-19"):
        VGG19Features(path, layers=SHALLOW, sha256=None)


def test_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"features.0.weight": Touch()}, tmp_path / "vgg.pth")
    with pytest.raises(MtkdError, match="cannot be read"):
        VGG19Features(tmp_path / "vgg.pth", sha256=None)
    assert not (tmp_path / "ran").exists()


def test_the_files_hash_is_accepted_by_its_first_digits(tmp_path: Path) -> None:
    import hashlib

    path = _file(tmp_path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert VGG19Features(path, layers=("relu1_1",), sha256=digits)(_images()[0])["relu1_1"].isfinite().all()


def test_loss_is_the_weighted_sum_of_the_layers_distances() -> None:
    sr, target = _images()
    weights = {"relu2_1": 0.5, "conv1_2": 2.0}
    net = VGG19Features("random", layers=tuple(weights))
    a, b = net(sr), net(target)
    distances = {"l1": F.l1_loss, "l2": F.mse_loss, "fro": lambda x, y: torch.linalg.vector_norm(x - y)}
    for criterion, distance in distances.items():
        expected = sum(w * distance(a[name], b[name]) for name, w in weights.items())
        loss = PerceptualLoss(weights="random", layer_weights=weights, criterion=criterion)  # pyright: ignore
        torch.testing.assert_close(loss(sr, target), expected)


@pytest.mark.parametrize("criterion", ["l1", "l2", "fro"])
def test_loss_is_zero_at_equality_and_trains_sr_only(criterion: Any) -> None:
    loss = PerceptualLoss(weights="random", layer_weights={"relu2_1": 1.0}, criterion=criterion)
    sr, target = (x.requires_grad_() for x in _images())
    value = loss(sr, target)
    value.backward()
    assert value.shape == ()
    assert sr.grad is not None and sr.grad.abs().sum() > 0
    assert target.grad is None
    same = target.detach().clone().requires_grad_()
    value = loss(same, target)
    value.backward()
    assert value.item() == 0
    assert same.grad is not None and (same.grad == 0).all()


def test_gradient_agrees_with_finite_differences() -> None:
    loss = PerceptualLoss(weights="random", layer_weights={"conv1_1": 1.0, "relu1_1": 1.0}, criterion="l2").double()
    sr, target = torch.rand(2, 1, 3, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (sr.requires_grad_(), target))


def test_default_is_esrgans_layer() -> None:
    loss = PerceptualLoss(weights="random")
    assert loss.layer_weights == {"conv5_4": 1.0}
    assert loss(*_images(32)).isfinite()


def test_half_precision_images_are_compared_in_float32() -> None:
    loss = PerceptualLoss(weights="random", layer_weights={"relu2_1": 1.0})
    sr, target = _images()
    expected = loss(sr, target)
    half = sr.bfloat16().requires_grad_()
    value = loss(half, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(half, target)
    for found in (value, cast):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected.item(), rel=2e-2)
    cast.backward()
    assert half.grad is not None and half.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_works_after_a_first_call_under_inference_mode_and_compiled() -> None:
    loss = PerceptualLoss(weights="random", layer_weights={"relu2_1": 1.0})
    sr, target = _images()
    with torch.inference_mode():
        expected = loss(sr, target).item()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(sr.requires_grad_(), target)
    compiled.backward()
    assert compiled.item() == pytest.approx(expected, rel=1e-5)
    assert sr.grad is not None and sr.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: VGG19Features("random", layers=("relu6_1",)), "relu6_1"),
        (lambda: VGG19Features("random", layers=()), "no layer"),
        (lambda: VGG19Features("random", input_norm="none"), "input_norm"),  # pyright: ignore[reportArgumentType]
        (lambda: PerceptualLoss(weights="random", criterion="L1"), "criterion"),  # pyright: ignore[reportArgumentType]
        (lambda: VGG19Features("random")(torch.rand(1, 3, 15, 40)), "16 pixels or more"),
        (lambda: VGG19Features("random", layers=("relu1_1",))(torch.rand(1, 1, 16, 16)), r"\(1, 1, 16, 16\)"),
        (
            lambda: PerceptualLoss(weights="random", layer_weights={"relu1_1": 1.0})(*(_images()[0], _images(8)[0])),
            "same shape",
        ),
    ],
)
def test_wrong_options_and_images_are_errors(call: Any, text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        call()
