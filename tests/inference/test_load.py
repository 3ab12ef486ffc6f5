"""`mtkd.load`: networks from whatever the user has, and images of every kind through them."""

from __future__ import annotations

import copy
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import mtkd
from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.config import resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.data.resize import imresize
from mtkd.inference.load import load_network
from mtkd.inference.tiling import self_ensemble
from mtkd.inference.upscale import upscale
from mtkd.inference.upscaler import Upscaler
from mtkd.runtime.pixels import to_image, to_tensor
from tests.helpers import photo
from tests.runs import run_options

ARGUMENTS = {"num_feat": 4, "num_block": 1, "upscale": 2}
IMAGE = photo("coffee", (14, 20))


@pytest.fixture(scope="module")
def bare() -> EDSR:
    torch.manual_seed(0)
    return EDSR(**ARGUMENTS).eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def file(bare: EDSR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    zoo.write_safetensors(path, bare.state_dict(), {"arch": {"type": "EDSR", "args": ARGUMENTS}})
    return path


@pytest.fixture(scope="module")
def net(file: Path) -> Upscaler:
    return mtkd.load(file, device="cpu")


@pytest.fixture(scope="module")
def expected(bare: EDSR) -> np.ndarray:
    """The image enlarged, (28, 40, 3) float32, not rounded."""
    with torch.no_grad():
        return bare(to_tensor(IMAGE))[0].clamp(0, 1).permute(1, 2, 0).numpy()


def levels(image: np.ndarray, most: int = 255) -> np.ndarray:
    return np.round(image * most)


def test_arrays_of_every_depth_and_shape_come_back_as_they_are(net: Upscaler, expected: np.ndarray) -> None:
    result = net.upscale(IMAGE)
    assert result.dtype == np.uint8 and np.array_equal(result, levels(expected))
    deep = net.upscale(IMAGE.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16 and np.abs(deep - levels(expected, 65535)).max() <= 1
    for dtype in (np.float16, np.float32, np.float64):
        result = net.upscale((IMAGE / 255).astype(dtype))
        assert result.dtype == dtype and np.abs(result - expected).max() < (2e-3 if dtype == np.float16 else 1e-6)
    grey = np.ascontiguousarray(IMAGE[..., 0])
    threefold = net.upscale(np.repeat((grey / 255)[..., None], 3, axis=2))
    for given, shape in ((grey, (28, 40)), (grey[..., None], (28, 40, 1))):
        result = net.upscale(given)
        assert result.shape == shape and result.dtype == np.uint8
        assert np.abs(result.reshape(28, 40) - levels(threefold.mean(-1))).max() <= 1
    alpha = np.linspace(1, 255, grey.size).astype(np.uint8).reshape(grey.shape)
    result = net.upscale(np.dstack([IMAGE, alpha]))
    assert np.array_equal(result, np.dstack([levels(expected), imresize(alpha, 2)]))
    result = net.upscale(np.dstack([IMAGE, alpha]).astype(np.float32) / 255)
    assert result.dtype == np.float32 and np.abs(result[..., 3] - imresize(alpha, 2) / 255.0).max() < 1.5 / 255
    # A view with any strides: what is BGR in OpenCV.
    assert np.array_equal(net.upscale(IMAGE[..., ::-1][..., ::-1]), levels(expected))


def test_tensors_come_back_on_their_device_with_their_shape(net: Upscaler, expected: np.ndarray) -> None:
    lq = torch.from_numpy(IMAGE).permute(2, 0, 1)
    result = net.upscale(lq)
    assert result.dtype == torch.uint8 and np.array_equal(result.permute(1, 2, 0).numpy(), levels(expected))
    batch = torch.stack([lq, lq.flip(-1)]).float() / 255
    result = net.upscale(batch)
    assert result.shape == (2, 3, 28, 40) and result.is_contiguous()
    assert np.abs(result[0].permute(1, 2, 0).numpy() - expected).max() < 1e-6
    assert torch.equal(net.upscale(batch[1]), result[1])
    assert net.upscale(batch[:, :1]).shape == (2, 1, 28, 40)
    assert net.upscale(batch.bfloat16()).dtype == torch.bfloat16


def test_a_path_and_a_pil_image_become_pil_images(net: Upscaler, expected: np.ndarray, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(IMAGE).copy())
    stored.save(tmp_path / "turned.png", icc_profile=profile, exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        for result in (
            net.upscale(tmp_path / "turned.png"),
            net.upscale(str(tmp_path / "turned.png")),
            net.upscale(opened),
        ):
            assert np.array_equal(np.asarray(result), levels(expected)) and result.info["icc_profile"] == profile
    # The same photo, the same pixels as the command writes.
    upscale(net.net, tmp_path / "turned.png", tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), levels(expected))
    colours = Image.fromarray(IMAGE)
    modes = {
        "L": "L",
        "1": "L",
        "P": "RGB",
        "CMYK": "RGB",
        "RGBA": "RGBA",
        "LA": "RGBA",
        "I;16": "I;16",
        "YCbCr": "RGB",
    }
    for mode, wanted in modes.items():
        given = Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 257) if mode == "I;16" else colours.convert(mode)
        result = net.upscale(given)
        assert (result.mode, result.size) == (wanted, (40, 28)), mode
    deep = net.upscale(Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 257))
    assert np.abs(np.asarray(deep) / 257 - np.asarray(net.upscale(colours.getchannel(0)))).max() <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\) is no image"),
        (np.zeros((2, 4, 4, 3), np.uint8), "is no image"),
        (np.zeros((0, 4, 3), np.uint8), "is no image"),
        (np.zeros((4, 4, 3), np.int64), "this array is int64"),
        (np.full((4, 4, 3), 200.0), r"lies in \[0, 1\].*from 200 to 200. Divide by 255"),
        (np.full((4, 4, 3), np.nan), r"lies in \[0, 1\]"),
        (torch.zeros(2, 4, 4), r"shape \(2, 4, 4\) is no image"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "this tensor is int32"),
        (Image.new("F", (4, 4)), "mode F has no known range"),
        ([[1, 2], [3, 4]], "A list is no image: give a path, a PIL image"),
        ("nowhere.png", "nowhere.png cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(net: Upscaler, image: Any, message: str) -> None:
    with pytest.raises(MtkdError, match=message):
        net.upscale(image)


def test_options_are_those_of_the_command(net: Upscaler, bare: EDSR, expected: np.ndarray) -> None:
    tiles = net.upscale(IMAGE, tile=8, tile_pad=8)
    assert np.abs(tiles.astype(int) - levels(expected)).max() <= 1
    with torch.no_grad():
        assert np.array_equal(net.upscale(IMAGE, x8=True), to_image(self_ensemble(bare, to_tensor(IMAGE))))
    half = net.upscale(IMAGE, precision="bf16")
    assert 0 < np.abs(half.astype(int) - levels(expected)).max() <= 6
    for options, message in (({"precision": "int8"}, "no precision 'int8'"), ({"tile": 0}, "tile_size >= 1")):
        with pytest.raises(MtkdError, match=message):
            net.upscale(IMAGE, **options)
    with pytest.raises(MtkdError, match="no device cuda:99"):
        Upscaler(bare, device="cuda:99")

    class Infinite(EDSR):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 0

    with pytest.raises(MtkdError, match="The image: the network's output is not finite"):
        Upscaler(Infinite(**ARGUMENTS), device="cpu").upscale(IMAGE)


def test_threads_share_one_network(net: Upscaler) -> None:
    images = [photo("chelsea", (6 + number, 9)) for number in range(12)]
    alone = [net.upscale(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(net.upscale, images))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert torch.is_grad_enabled()


def test_a_network_says_what_it_is(net: Upscaler, file: Path) -> None:
    assert (net.scale, net.device.type, net.source) == (2, "cpu", str(file))
    assert repr(net) == f"Upscaler('{file}', EDSR x2 on cpu)"
    assert mtkd.Upscaler is Upscaler and "load" in mtkd.__all__
    with pytest.raises(AttributeError, match="no attribute 'unload'"):
        mtkd.unload  # noqa: B018  pyright: ignore[reportAttributeAccessIssue]


def test_files_of_all_kinds_and_runs_are_networks(
    file: Path, bare: EDSR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"arch": {"type": "EDSR", "args": ARGUMENTS}}
    torch.save({"params": bare.state_dict(), "mtkd": facts}, tmp_path / "net.pth")
    shutil.copyfile(tmp_path / "net.pth", tmp_path / "net.pt")
    (tmp_path / "net.onnx").touch()
    onnx = copy.deepcopy(bare)
    onnx.outside_torch = True  # pyright: ignore[reportArgumentType]
    made = SimpleNamespace(OnnxNetwork=lambda path: onnx if path == tmp_path / "net.onnx" else None)
    monkeypatch.setitem(sys.modules, "mtkd.export.onnx_network", made)
    run = tmp_path / "experiments/tiny"
    (run / "models").mkdir(parents=True)
    (run / "resolved.yml").write_text(resolved_yaml(run_options(tmp_path)))
    shutil.copyfile(tmp_path / "net.pth", run / "models/net_g_latest.pth")
    for source in (file, tmp_path / "net.pth", str(tmp_path / "net.pt"), tmp_path / "net.onnx", run):
        loaded = load_network(source, scale=2, device="cpu")
        assert loaded.scale == 2 and not loaded.training
        assert torch.equal(loaded.state_dict()["conv_first.weight"], bare.state_dict()["conv_first.weight"])
    assert load_network(tmp_path / "net.onnx").outside_torch and mtkd.load(tmp_path / "net.onnx").device.type == "cpu"
    with pytest.raises(MtkdError, match="own.safetensors enlarges by 2, and 4 is asked for"):
        load_network(file, scale=4)


def test_what_names_no_network_is_refused_with_a_hint(tmp_path: Path, bare: EDSR) -> None:
    for source, message in (
        ("nowhere.pth", "There are no weights nowhere.pth.*hf:USER/NAME"),
        ("rcan_x", "Did you mean rcan_x"),
        ("zoo:vgg19", "does not enlarge images|has no weights called"),
        (tmp_path, "is not the folder of a run"),
    ):
        with pytest.raises(MtkdError, match=message):
            load_network(source)
    torch.save({"params": bare.state_dict()}, tmp_path / "guessed.pth")
    with pytest.raises(MtkdError, match="By its shapes it is EDSR.*mtkd zoo convert"):
        load_network(tmp_path / "guessed.pth")
    torch.save({"params": {"a.weight": torch.zeros(3, 3)}}, tmp_path / "strange.pth")
    with pytest.raises(MtkdError, match="strange.pth does not say which network it holds.*mtkd zoo convert.*spandrel"):
        load_network(tmp_path / "strange.pth")
