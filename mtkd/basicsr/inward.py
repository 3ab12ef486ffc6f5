"""From BasicSR to mtkd: entries of its registries, in the form that mtkd calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.basicsr.shim import RegistryKind, registered
from mtkd.contracts import MtkdError
from mtkd.runtime.pixels import to_image


def adapted(kind: RegistryKind, name: str) -> Any | None:
    """`registered`, called as mtkd calls its own.

    Losses are built with `loss_weight=1.0` (the option file's weight is applied once, by `weighted_total`), are called
    `(sr, target)` and return one scalar: the parts of a `PerceptualLoss` are added, a loss of `sr` alone gets
    only that. Metrics take (N, 3, H, W) RGB tensors in [0, 1] and give (N,) values; inside they get what
    they get in BasicSR, 8-bit BGR arrays, or the tensors where their name ends in `_pt`. Signatures are the originals'.
    """
    found = registered(kind, name)
    if found is None or kind in ("arch", "dataset"):
        return found
    return _loss(found) if kind == "loss" else _metric(found, tensors=name.endswith("_pt"))


class ForeignLoss(nn.Module):
    """A loss of BasicSR's registry as mtkd calls it: `(sr, target) -> scalar`, unweighted."""

    def __init__(self, loss: nn.Module, *, takes_target: bool) -> None:
        super().__init__()
        self.loss, self.takes_target = loss, takes_target

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        value = self.loss(sr, target) if self.takes_target else self.loss(sr)
        parts = [part for part in (value if isinstance(value, tuple | list) else [value]) if part is not None]
        if not parts:
            raise MtkdError(f"{type(self.loss).__name__} returned nothing: all of its weights are zero.")
        return sum(parts[1:], start=parts[0])


def _loss(cls: Any) -> Callable[..., ForeignLoss]:
    forward = list(inspect.signature(cls.forward if isinstance(cls, type) else cls).parameters.values())
    images = [p for p in forward if p.name != "self" and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = images[1] if len(images) > 1 else None
    if second is not None and second.name == "target_is_real":
        raise MtkdError(f"{cls.__name__} scores the output of a critic and does not compare two images.")
    weighted = "loss_weight" in inspect.signature(cls).parameters

    @functools.wraps(cls, updated=())
    def build(**arguments: Any) -> ForeignLoss:
        if weighted:
            arguments["loss_weight"] = 1.0
        try:
            loss = cls(**arguments)
        except URLError as error:  # BasicSR's PerceptualLoss fetches VGG while it is built
            raise MtkdError(
                f"{cls.__name__} fetches weights of torchvision, and their host does not answer ({error.reason}). "
                f"Fetch the file that is named above elsewhere, and put it into {torch.hub.get_dir()}/checkpoints."
            ) from error
        return ForeignLoss(loss, takes_target=second is not None and second.default is second.empty)

    return build


def _metric(function: Callable[..., Any], *, tensors: bool) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def metric(sr: Tensor, gt: Tensor, **arguments: Any) -> Tensor:
        if tensors:
            return torch.as_tensor(function(sr, gt, **arguments)).double().reshape(-1)
        pairs = zip(sr, gt, strict=True)
        values = [float(function(img=_to_bgr(one), img2=_to_bgr(two), **arguments)) for one, two in pairs]
        return torch.tensor(values, dtype=torch.float64)

    return metric


def _to_bgr(image: Tensor) -> np.ndarray:
    array = to_image(image.detach())
    return np.ascontiguousarray(array[..., ::-1])
