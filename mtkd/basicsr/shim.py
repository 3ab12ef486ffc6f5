"""BasicSR made importable, and its registries read. The only file that imports basicsr.

basicsr 1.4.2, the last release, imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 removed.
The one function it needs from there, `rgb_to_grayscale`, is put under the old name before basicsr is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, Literal

from mtkd.contracts import MtkdError

_REMOVED = "torchvision.transforms.functional_tensor"


def _offer_removed_torchvision_module() -> None:
    if _REMOVED in sys.modules or importlib.util.find_spec(_REMOVED) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = ModuleType(_REMOVED, "Stands in for the module that torchvision 0.17 removed.")
    vars(module)["rgb_to_grayscale"] = rgb_to_grayscale
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

REGISTRIES = {
    "arch": _registry.ARCH_REGISTRY,
    "loss": _registry.LOSS_REGISTRY,
    "dataset": _registry.DATASET_REGISTRY,
    "metric": _registry.METRIC_REGISTRY,
}

RegistryKind = Literal["arch", "loss", "dataset", "metric"]


def registered(kind: RegistryKind, name: str) -> Any | None:
    """The class or function called `name` in BasicSR's registry of that kind, or None.

    Names that other packages registered there are found too, and an entry `NAME_basicsr` is found as `NAME`.

    Raises:
        MtkdError: BasicSR has no registry of that kind that mtkd reads.
    """
    if kind not in REGISTRIES:
        raise MtkdError(f"BasicSR's registries hold {', '.join(REGISTRIES)}, not {kind!r}.")
    entries = dict(iter(REGISTRIES[kind]))
    return entries.get(name, entries.get(f"{name}_basicsr"))


def names(kind: RegistryKind) -> list[str]:
    """Names in BasicSR's registry of that kind."""
    return list(REGISTRIES[kind].keys())
