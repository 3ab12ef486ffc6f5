"""From mtkd to BasicSR: networks, losses and metrics of the catalog, entered into its registries.

BasicSR's own `train_pipeline` can then build them. Nothing is entered before `register()` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtkd import catalog
from mtkd.basicsr.shim import REGISTRIES, RegistryKind, registered

SUFFIX = "mtkd"


def register() -> list[str]:
    """Enter mtkd's networks, losses and metrics into BasicSR's registries and return the names given.

    Each is entered as `NAME_mtkd`, and as `NAME` too where BasicSR has nothing of that name: `EDSR` stays BasicSR's,
    `EDSR_mtkd` and `DCTSwin` are ours. Losses take BasicSR's `loss_weight`; metrics take 8-bit BGR arrays. Calling it
    again changes nothing.
    """
    given: list[str] = []
    for name in catalog.ARCHS:
        given += _enter("arch", name, catalog.get("arch", name))
    for name in catalog.LOSSES:
        given += _enter("loss", name, _weighted_loss(name))
    for name in catalog.METRICS:
        given += _enter("metric", name, _array_metric(name))
    return given


def _enter(kind: RegistryKind, name: str, what: Any) -> list[str]:
    registry, long = REGISTRIES[kind], f"{name}_{SUFFIX}"
    if long in registry:
        return [long, name] if registered(kind, name) is registered(kind, long) else [long]
    free = registered(kind, name) is None
    # Not `register`, which takes the name from `__name__`: ours is the catalog's.
    registry._do_register(long, what)
    if free:
        registry._do_register(name, what)
    return [long, name] if free else [long]


def _weighted_loss(name: str) -> type[nn.Module]:
    cls = catalog.get("loss", name)

    class Weighted(nn.Module):
        def __init__(self, loss_weight: float = 1.0, **arguments: Any) -> None:
            super().__init__()
            self.loss_weight, self.loss = loss_weight, cls(**arguments)

        def forward(self, pred: Tensor, target: Tensor, **_: Any) -> Tensor:
            return self.loss_weight * self.loss(pred, target)

    Weighted.__name__ = Weighted.__qualname__ = name
    Weighted.__doc__ = cls.__doc__
    return Weighted


def _array_metric(name: str) -> Callable[..., float]:
    def metric(img: np.ndarray, img2: np.ndarray, **arguments: Any) -> float:
        return float(catalog.get("metric", name)(_from_bgr(img), _from_bgr(img2), **arguments))

    metric.__name__ = metric.__qualname__ = name
    return metric


def _from_bgr(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)[None].double() / 255
