"""Deep image structure and texture similarity, through the authors' own package."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.resources import files
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from mtkd.metrics.backbone import Backbone
from mtkd.metrics.better import better
from mtkd.metrics.color import compared
from mtkd.metrics.extra import Package, through
from mtkd.runtime.device import full_float32

VGG16_FILE = "vgg16-397923af.pth"
_VGG16 = Backbone("DISTS", "VGG16", VGG16_FILE, "vgg16", 528)
_PACKAGE = Package("DISTS", "DISTS-pytorch", "DISTS_pytorch.DISTS_pt")


@through(_PACKAGE)
@better("lower")
@torch.no_grad()
def dists(sr: Tensor, gt: Tensor, *, crop_border: int = 0, weights: str | os.PathLike[str] | None = None) -> Tensor:
    """DISTS of each image (Ding et al., IEEE TPAMI 2020, arXiv 2004.07728), smaller is nearer, on RGB 8-bit images.

    1 minus the weighted similarity of means (texture) and covariances (structure) of the image and of five stages of
    VGG16 whose pooling is an L2 blur. The package `DISTS-pytorch` (MIT) brings the weights of the sum. VGG16's ImageNet
    weights are torchvision's; they are read from disk and never downloaded.

    Images keep their size; the authors' script can reduce their shorter side to 256 pixels first. Means and covariances
    are summed in float64, so that equal images have 0; the package's float32 leaves 1e-7 of either sign.

    Args:
        sr: (N, 3, H, W) floating point RGB in [0, 1], any device; a single image (3, H, W) and grey ones too.
        gt: shaped as `sr`.
        crop_border: pixels ignored on each side.
        weights: torchvision's VGG16 state dict, `vgg16-397923af.pth`, or the zoo's `vgg16.safetensors` (`weights:
            zoo:vgg16` in an option file). By default the former in torch hub's cache.

    Returns:
        (N,) float64 on the images' device, 0 to about 1.

    Raises:
        MtkdError: the weights are not on disk or no VGG16, the package is missing, or shapes differ.
    """
    sr, gt = compared(sr, gt, crop_border=crop_border, test_y_channel=False)
    path = _VGG16.path(weights)
    net = _network(str(path.resolve()), path.stat().st_mtime_ns, sr.device)
    with full_float32(sr.device):
        return net(*(image.expand(-1, 3, -1, -1).float() / 255 for image in (sr, gt))).reshape(-1)


@lru_cache(maxsize=2)
def _network(path: str, modified: int, device: torch.device) -> nn.Module:
    """DISTS with the VGG16 of `path`; `modified` distinguishes versions of the file in the cache."""
    package = _PACKAGE.load()
    from torchvision.models import vgg16

    with torch.device("meta"):
        backbone = vgg16()
    shapes = {name: value.shape for name, value in backbone.state_dict().items() if name.startswith("features.")}
    backbone.load_state_dict(_VGG16.state(path, shapes), strict=False, assign=True)

    class InFloat64(package.DISTS):
        """Maps leave VGG16 in float32, and are summed in float64."""

        def forward_once(self, x: Tensor) -> list[Tensor]:
            return [one.double() for one in super().forward_once(x)]

    theirs = package.models
    # The package downloads VGG16 when it is built; it gets the one from the file instead. Measuring must not move the
    # training's random numbers.
    package.models = SimpleNamespace(vgg16=lambda **download: backbone)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            net = InFloat64(load_weights=False)
    finally:
        package.models = theirs
    # Not by the package itself, which looks for its file beside Python's own.
    own = torch.load(str(files("DISTS_pytorch") / "weights.pt"), map_location="cpu", weights_only=True)
    for name in ("alpha", "beta"):
        getattr(net, name).data = own[name].detach().double()
    return net.requires_grad_(False).eval().to(device)
