"""The bridge to BasicSR, and the only file that imports it. Importing this module imports basicsr (about a second).

It works in both directions. `adapted` gives mtkd what stands in BasicSR's registries, in the form that mtkd calls.
`register()` enters mtkd's networks, losses and metrics into BasicSR's registries, so that its own `train_pipeline` can
build them; nothing is entered before it is called.

basicsr 1.4.2, the last release, imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 removed.
The one function it wants from there, `rgb_to_grayscale`, is offered under the old name before basicsr is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.runtime.pixels import to_image

_REMOVED = "torchvision.transforms.functional_tensor"


def _offer_removed_torchvision_module() -> None:
    if _REMOVED in sys.modules or importlib.util.find_spec(_REMOVED) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = ModuleType(_REMOVED, "Stands in for the module that torchvision 0.17 removed.")
    module.rgb_to_grayscale = rgb_to_grayscale  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[_REMOVED] = module


try:
    _offer_removed_torchvision_module()
    import basicsr  # noqa: F401  (fills the registries)
    from basicsr.utils import registry as _registry
except ImportError as error:
    raise ImportError(
        f"BasicSR cannot be imported: {error}. It is needed only for names that mtkd itself does not have; install it "
        "with `pip install --no-build-isolation basicsr==1.4.2` (Python 3.12 or older, after torch and torchvision)."
    ) from error

_REGISTRIES = {
    "arch": _registry.ARCH_REGISTRY,
    "loss": _registry.LOSS_REGISTRY,
    "dataset": _registry.DATASET_REGISTRY,
    "metric": _registry.METRIC_REGISTRY,
}


Kind = Literal["arch", "loss", "dataset", "metric"]
SUFFIX = "mtkd"


def registered(kind: Kind, name: str) -> Any | None:
    """The class or function called `name` in BasicSR's registry of that kind, or None.

    Names that other packages registered there before are found too. As in BasicSR, `NAME_basicsr` answers to `NAME`.

    Raises:
        MtkdError: BasicSR has no registry of that kind that mtkd reads.
    """
    if kind not in _REGISTRIES:
        raise MtkdError(f"BasicSR's registries hold {', '.join(_REGISTRIES)}, not {kind!r}.")
    entries = dict(iter(_REGISTRIES[kind]))
    return entries.get(name, entries.get(f"{name}_basicsr"))


def names(kind: Kind) -> list[str]:
    """Names in BasicSR's registry of that kind."""
    return list(_REGISTRIES[kind].keys())


def adapted(kind: Kind, name: str) -> Any | None:
    """`registered`, called as mtkd calls its own.

    Losses are built with `loss_weight=1.0` (the option file's weight is applied once, by the engine), are called
    `(sr, target)` and return one scalar: the parts of a `PerceptualLoss` are added, a loss that looks at `sr` alone
    gets nothing else. Metrics take (N, 3, H, W) RGB tensors in [0, 1] and give (N,) values; inside they get what
    BasicSR gives them, 8-bit BGR arrays, or the tensors where their name ends in `_pt`. Signatures are the originals'.
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


def _loss(cls: Callable[..., Any]) -> Callable[..., ForeignLoss]:
    forward = list(inspect.signature(cls.forward if inspect.isclass(cls) else cls).parameters.values())
    images = [p for p in forward if p.name != "self" and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = images[1] if len(images) > 1 else None
    if second is not None and second.name == "target_is_real":
        raise MtkdError(f"{cls.__name__} judges a critic's answers and does not compare two images.")
    weighted = "loss_weight" in inspect.signature(cls).parameters

    @functools.wraps(cls, updated=())
    def build(**arguments: Any) -> ForeignLoss:
        if weighted:
            arguments["loss_weight"] = 1.0
        return ForeignLoss(cls(**arguments), takes_target=second is not None and second.default is second.empty)

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


def _from_bgr(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)[None].double() / 255


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


def _enter(kind: Kind, name: str, what: Any) -> list[str]:
    registry, long = _REGISTRIES[kind], f"{name}_{SUFFIX}"
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
