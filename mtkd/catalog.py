"""Everything that exists, by name. Read this first.

One line per arch, method, loss, metric and data set: name -> "module:attribute". Asking for a name imports its module
and nothing else. Names from outside are accepted in three ways, tried in this order:

1. a name in the tables below;
2. a dotted path with a colon, "my_package.my_module:MyClass";
3. a name registered in BasicSR's registries (archs, losses, data sets, metrics), when basicsr is installed.

Our own table always wins over BasicSR's registry, so a network called EDSR is mtkd's EDSR whatever else is imported.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mtkd.contracts import MtkdError

Kind = Literal["arch", "method", "loss", "metric", "dataset"]

ARCHS = {
    "EDSR": "mtkd.archs.edsr:EDSR",
    "RCAN": "mtkd.archs.rcan:RCAN",
    "SwinIR": "mtkd.archs.swinir:SwinIR",
    "DCTSwin": "mtkd.archs.dctswin:DCTSwin",
    "FSRCNN": "mtkd.archs.fsrcnn:FSRCNN",
    "PrivilegedTeacher": "mtkd.archs.privileged:PrivilegedTeacher",
    "spandrel": "mtkd.archs.spandrel:Spandrel",
}

METHODS = {
    "SRModel": "mtkd.methods.supervised:Supervised",
    "SwinIRModel": "mtkd.methods.supervised:Supervised",
    "OutputKD": "mtkd.methods.output_kd:OutputKD",
    "MTKDFusion": "mtkd.methods.mtkd_fusion:MTKDFusion",
    "MTKD": "mtkd.methods.mtkd:MTKD",
    "SRKD": "mtkd.methods.srkd:SRKD",
    "FAKD": "mtkd.methods.fakd:FAKD",
    "FitNet": "mtkd.methods.fitnet:FitNet",
    "AT": "mtkd.methods.at:AT",
    "PKT": "mtkd.methods.pkt:PKT",
    "CRD": "mtkd.methods.crd:CRD",
    "DUKD": "mtkd.methods.dukd:DUKD",
    "StructuredKD": "mtkd.methods.structured:StructuredKD",
    "PISRTeacher": "mtkd.methods.pisr:PISRTeacher",
    "PISR": "mtkd.methods.pisr:PISR",
    "CSD": "mtkd.methods.csd:CSD",
    "OnlineTeacher": "mtkd.methods.online_teacher:OnlineTeacher",
}

LOSSES = {
    "L1Loss": "mtkd.losses.pixel:L1Loss",
    "MSELoss": "mtkd.losses.pixel:MSELoss",
    "CharbonnierLoss": "mtkd.losses.pixel:CharbonnierLoss",
    "WaveletLoss": "mtkd.losses.wavelet:WaveletLoss",
    "DCTLoss": "mtkd.losses.frequency:DCTLoss",
    "FFTLoss": "mtkd.losses.frequency:FFTLoss",
}

METRICS = {
    "calculate_psnr": "mtkd.metrics.psnr:psnr",
    "calculate_ssim": "mtkd.metrics.ssim:ssim",
    "calculate_lpips": "mtkd.metrics.lpips:lpips",
}

DATASETS = {
    "PairedImageDataset": "mtkd.data.paired:PairedImages",
}

TABLES: dict[Kind, dict[str, str]] = {
    "arch": ARCHS,
    "method": METHODS,
    "loss": LOSSES,
    "metric": METRICS,
    "dataset": DATASETS,
}


def names(kind: Kind) -> list[str]:
    """Names of one kind in the order of the table."""
    return list(TABLES[kind])


def get(kind: Kind, name: str) -> Any:
    """Class or function called `name`.

    Raises:
        MtkdError: nothing of that name exists; the text says what was searched and names the nearest matches.
    """
    if name in TABLES[kind]:
        return _attribute(TABLES[kind][name])
    if ":" in name:
        return _attribute(name)
    found = _from_basicsr(kind, name)
    if found is not None:
        return found
    theirs = _names_in_basicsr(kind)
    near = [m for pool in (TABLES[kind], theirs) for m in difflib.get_close_matches(name, pool, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(near))[:3]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    also = f"; BasicSR's registry adds {', '.join(n for n in theirs if n not in TABLES[kind])}" if theirs else ""
    raise MtkdError(
        f"No {kind} is called {name!r}.{hint} mtkd has {', '.join(TABLES[kind])}{also}. A class of your own is named "
        "by its path, 'my_package.my_module:MyClass', or registered in BasicSR's registry by a module named with "
        "--import."
    )


def build_network(name: str, arguments: Mapping[str, Any], *, scale: int | None = None) -> Any:
    """Network `name` built with `arguments`, carrying `scale` and `feature_names` even where its class has neither.

    Args:
        scale: for a class from outside that has no `scale` and no argument `upscale` or `scale` that tells.
    """
    cls = get("arch", name)
    net = cls(**arguments)
    if not hasattr(net, "scale"):
        parameters = inspect.signature(cls).parameters
        for key in ("upscale", "scale"):
            default = parameters[key].default if key in parameters else None
            if isinstance(found := arguments.get(key, default), int):
                scale = found
                break
        if scale is not None:
            net.scale = scale
    if not hasattr(net, "feature_names"):
        net.feature_names = ()
    return net


def import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules (dotted names, also from the working directory), which register what they define.

    Raises:
        MtkdError: one of them cannot be imported; the text says why.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if modules:
        # First, so that `from basicsr... import ARCH_REGISTRY` works beside a current torchvision.
        with contextlib.suppress(ImportError):
            importlib.import_module("mtkd.basicsr")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise MtkdError(
                f"--import {module}: {type(error).__name__}: {error}. The name is dotted (my_package.my_archs), found "
                "from the working directory or PYTHONPATH."
            ) from error


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MtkdError(f"{path!r} cannot be imported: {error}. Is the package installed, or on PYTHONPATH?") from error
    except AttributeError as error:
        raise MtkdError(f"{path!r} cannot be used: {error}.") from error


def _from_basicsr(kind: Kind, name: str) -> Any | None:
    if kind == "method":
        return None
    try:
        from mtkd import basicsr
    except ImportError:
        return None
    return basicsr.adapted(kind, name)


def _names_in_basicsr(kind: Kind) -> list[str]:
    if kind == "method":
        return []
    try:
        from mtkd import basicsr
    except ImportError:
        return []
    return basicsr.names(kind)
