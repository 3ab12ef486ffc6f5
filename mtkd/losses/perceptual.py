"""Perceptual features of VGG-19 and the loss on them. Nothing here downloads anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mtkd.contracts import MtkdError
from mtkd.losses.difference import cached_tensor, check_comparable
from mtkd.losses.numerics import check_choice, full_precision, upcast
from mtkd.runtime.files import sha256 as sha256_of
from mtkd.runtime.hidden import Hidden

InputNorm = Literal["imagenet", "255"]
Criterion = Literal["l1", "l2", "fro"]

WEIGHTS_FILE = "vgg19-dcbb9e9d.pth"
WEIGHTS_URL = f"https://download.pytorch.org/models/{WEIGHTS_FILE}"
WEIGHTS_SHA256 = "dcbb9e9d"
"""First digits of the file's SHA-256, which torchvision puts into its name."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CSD_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
"""Convolutions and width of each of VGG-19's blocks."""


def _layer_names() -> tuple[str, ...]:
    names = []
    for block, (convs, _) in enumerate(BLOCKS, 1):
        for conv in range(1, convs + 1):
            names += [f"conv{block}_{conv}", f"relu{block}_{conv}"]
        names.append(f"pool{block}")
    return tuple(names)


LAYERS = _layer_names()
"""Names in the order of torchvision's `vgg19().features`: relu1_1, 2_1, 3_1, 4_1, 5_1 are 1, 6, 11, 20, 29."""


class VGG19Features(Hidden[nn.Sequential]):
    """Images (N, 3, H, W), RGB in [0, 1] -> {layer: feature map} of ImageNet's VGG-19, in the order of `layers`.

    Only as deep as the deepest layer asked for, and `Hidden`: never trained, never saved. Gradients reach the images.
    Nothing works in place, so that a tap before a ReLU keeps its values. Runs under autocast.

    Args:
        weights: path of torchvision's vgg19-dcbb9e9d.pth or of the zoo's vgg19.safetensors, or "random" for a fixed
            random network (He initialisation, the same in every run), which is good for tests and nothing else.
        layers: conv1_1 ... relu5_4, pool1 ... pool5; a conv is the value before its ReLU.
        input_norm: "imagenet" subtracts the mean and divides by the standard deviation the net was trained with;
            "255" multiplies by 255 and does nothing else, as CSD feeds it.
        sha256: first digits the file's SHA-256 must have (a file of the zoo must say that it is vgg19: the zoo checked
            the hash of its original); None accepts any file with VGG-19's tensors.

    Source: Simonyan and Zisserman, arXiv 1409.1556.

    Raises:
        MtkdError: a layer does not exist, the file is missing, is another file, or holds another network, or an image
            is too small for the pooling before the deepest layer.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        layers: Sequence[str] = CSD_LAYERS,
        input_norm: InputNorm = "imagenet",
        sha256: str | None = WEIGHTS_SHA256,
    ) -> None:
        unknown = [name for name in layers if name not in LAYERS]
        if unknown or not layers:
            raise MtkdError(
                f"VGG-19 has no layer {unknown[0] if unknown else '(none given)'}; it has {', '.join(LAYERS)}."
            )
        check_choice("input_norm of VGG-19", input_norm, InputNorm)
        net = _sequential(max(LAYERS.index(name) for name in layers) + 1)
        if weights == "random":
            _initialise(net)
        else:
            _load(net, Path(weights), sha256)
        super().__init__(net)
        self.layers = tuple(layers)
        self.input_norm = input_norm

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        halvings = sum(isinstance(layer, nn.MaxPool2d) for layer in self.net)
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < 2**halvings:
            raise MtkdError(
                f"VGG-19 up to {LAYERS[len(self.net) - 1]} takes images (N, 3, H, W) of {2**halvings} pixels or more a "
                f"side; got {tuple(image.shape)}."
            )
        # Images come in half precision from a network under autocast, and the net may stand outside of it.
        x = image.to(next(self.net.parameters()).dtype)
        if self.input_norm == "imagenet":
            mean, std = (cached_tensor(v, x.dtype, x.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
            x = (x - mean) / std
        else:
            x = x * 255
        features: dict[str, Tensor] = {}
        for name, layer in zip(LAYERS, self.net, strict=False):
            x = layer(x)
            if name in self.layers:
                features[name] = x
        return {name: features[name] for name in self.layers}


class PerceptualLoss(nn.Module):
    """sum over layers of w_j * distance of VGG-19's features of `sr` and `target`.

    BasicSR's `PerceptualLoss` without its style term. Images (N, 3, H, W), RGB in [0, 1], 16 pixels or more a side for
    block 5. The target receives no gradient. Distances are computed in float32.

    The catalog does not list it. The name belongs to BasicSR's registry, and the catalog's losses need no file, take
    images of any size and ignore autocast, which VGG-19 follows. An option file names this one by its path:
    `{type: mtkd.losses.perceptual:PerceptualLoss, weights: zoo:vgg19}`.

    Args:
        weights: path of torchvision's vgg19-dcbb9e9d.pth, or "random" for tests.
        layer_weights: layer -> w_j. The default is ESRGAN's: the last convolution, before its ReLU.
        criterion: mean absolute ("l1") or mean squared ("l2") difference, or "fro", the Frobenius norm of the
            difference of the whole tensor as in BasicSR, with gradient 0 instead of NaN at equality.
        input_norm: see `VGG19Features`.
        sha256: see `VGG19Features`.

    Source: Johnson et al., arXiv 1603.08155; before the activation: Wang et al., ESRGAN, arXiv 1809.00219.
    """

    def __init__(
        self,
        *,
        weights: str | Path,
        layer_weights: Mapping[str, float] | None = None,
        criterion: Criterion = "l1",
        input_norm: InputNorm = "imagenet",
        sha256: str | None = WEIGHTS_SHA256,
    ) -> None:
        super().__init__()
        check_choice("criterion of PerceptualLoss", criterion, Criterion)
        self.layer_weights = dict({"conv5_4": 1.0} if layer_weights is None else layer_weights)
        self.criterion = criterion
        self.vgg = VGG19Features(weights, layers=tuple(self.layer_weights), input_norm=input_norm, sha256=sha256)

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        check_comparable(sr, target)
        features = self.vgg(sr)
        with torch.no_grad():
            wanted = self.vgg(target)
        terms = [w * _distance(features[name], wanted[name], self.criterion) for name, w in self.layer_weights.items()]
        return torch.stack(terms).sum()


@full_precision
def _distance(a: Tensor, b: Tensor, criterion: str) -> Tensor:
    a, b = upcast(a, b)
    if criterion == "fro":
        return torch.linalg.vector_norm(a - b)
    return F.l1_loss(a, b) if criterion == "l1" else F.mse_loss(a, b)


def _sequential(length: int) -> nn.Sequential:
    """First layers of torchvision's `vgg19().features` under its keys, ReLUs out of place, weights not yet set."""
    layers: list[nn.Module] = []
    in_channels = 3
    for convs, width in BLOCKS:
        for _ in range(convs):
            # Without initialisation, which would take its time and numbers from the global random state.
            layers += [skip_init(nn.Conv2d, in_channels, width, 3, padding=1), nn.ReLU()]
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:length])


def _initialise(net: nn.Sequential) -> None:
    generator = torch.Generator().manual_seed(0)
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]


def _load(net: nn.Sequential, path: Path, sha256: str | None) -> None:
    advice = (
        f"Get {WEIGHTS_FILE} (575 MB) from {WEIGHTS_URL}, torchvision's download page, put it for example under "
        f"experiments/pretrained_models/, and give its path as `weights`. Nothing is downloaded during training."
    )
    if not path.is_file():
        raise MtkdError(f"VGG-19's weights are not at {path}. {advice}")
    if path.suffix == ".safetensors":
        state = _zoo_state(path, sha256, advice)
    else:
        state = _torchvision_state(path, sha256, advice)
    # torchvision's file has a classifier and the blocks behind the deepest tap as well; they are not built.
    own = {key: state.get(f"features.{key}") for key in net.state_dict()} if isinstance(state, Mapping) else {}
    wrong = [key for key, value in net.state_dict().items() if getattr(own.get(key), "shape", None) != value.shape]
    if wrong:
        raise MtkdError(
            f"{path} holds no VGG-19: its tensor features.{wrong[0]} is absent or has another shape. {advice}"
        )
    net.load_state_dict(own)


def _torchvision_state(path: Path, sha256: str | None, advice: str) -> object:
    if sha256 is not None:
        found = sha256_of(path)
        if not found.startswith(sha256):
            raise MtkdError(
                f"{path} is not the expected file: its SHA-256 starts with {found[: len(sha256)]}, not with "
                f"{sha256}. {advice} A file of your own is accepted with `sha256: ~`."
            )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MtkdError(f"{path} cannot be read as PyTorch weights ({type(error).__name__}). {advice}") from error


def _zoo_state(path: Path, sha256: str | None, advice: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {}).get("mtkd", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys() if name.startswith("features.")}  # noqa: SIM118
    except Exception as error:
        raise MtkdError(f"{path} cannot be read as safetensors ({type(error).__name__}). {advice}") from error
    if sha256 is not None and (not isinstance(facts, dict) or facts.get("name") != "vgg19"):
        raise MtkdError(
            f"{path} is not the zoo's vgg19: it does not say so. `mtkd zoo download vgg19` fetches and checks it. A "
            "file of your own is accepted with `sha256: ~`."
        )
    return state
