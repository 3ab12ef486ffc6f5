"""Learned perceptual distance, through the authors' own package."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.metrics.backbone import Backbone
from mtkd.metrics.better import better
from mtkd.metrics.color import compared
from mtkd.runtime.device import full_float32

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
_ALEXNET = Backbone("LPIPS", "AlexNet", ALEXNET_FILE, "alexnet", 233)
_MINIMUM = 31  # smaller images are empty after AlexNet's second pooling


@better("lower")
@torch.no_grad()
def lpips(sr: Tensor, gt: Tensor, *, crop_border: int = 0, weights: str | os.PathLike[str] | None = None) -> Tensor:
    """LPIPS 0.1 with AlexNet of each image (Zhang et al., CVPR 2018), smaller is nearer, on RGB 8-bit images.

    The `lpips` package brings the linear heads. AlexNet's ImageNet weights are torchvision's; they are read from disk
    and never downloaded.

    Args:
        sr: (N, 3, H, W) floating point RGB in [0, 1], any device; a single image (3, H, W) too.
        gt: shaped as `sr`.
        crop_border: pixels ignored on each side.
        weights: torchvision's AlexNet state dict, `alexnet-owt-7be5be79.pth`, or the zoo's `alexnet.safetensors`
            (`weights: zoo:alexnet` in an option file). By default the former in torch hub's cache.

    Returns:
        (N,) float64 on the images' device, >= 0.

    Raises:
        MtkdError: the weights are not on disk or no AlexNet, the lpips package is missing, shapes differ, or an image
            is smaller than 31x31.
    """
    sr, gt = compared(sr, gt, crop_border=crop_border, test_y_channel=False)
    if min(sr.shape[-2:]) < _MINIMUM:
        raise MtkdError(f"LPIPS needs {_MINIMUM}x{_MINIMUM} pixels or more, and {tuple(sr.shape[-2:])} are left.")
    path = _ALEXNET.path(weights)
    net = _network(str(path.resolve()), path.stat().st_mtime_ns, sr.device)
    with full_float32(sr.device):
        return net(*(image.expand(-1, 3, -1, -1).float() / 127.5 - 1 for image in (sr, gt))).flatten().double()


@lru_cache(maxsize=2)
def _network(path: str, modified: int, device: torch.device) -> nn.Module:
    """LPIPS with the AlexNet of `path`; `modified` distinguishes versions of the file in the cache."""
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise MtkdError(f"The metric LPIPS needs the lpips package ({error}): pip install lpips.") from error
    # The package can only download AlexNet or make a random one; the random one is overwritten in full below. Measuring
    # must not move the training's random numbers.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = LPIPS(net="alex", pnet_rand=True, verbose=False)
    own = net.net.state_dict()
    # slice2.3.weight -> features.3.weight
    names = {key: "features." + key.split(".", 1)[1] for key in own}
    state = _ALEXNET.state(path, {name: own[key].shape for key, name in names.items()})
    net.net.load_state_dict({key: state[name] for key, name in names.items()})
    return net.requires_grad_(False).eval().to(device)
