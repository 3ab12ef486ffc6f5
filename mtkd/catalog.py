"""Everything that exists, by name. Read this first.

One line per arch, method, loss, metric and data set: name -> "module:attribute". Asking for a name imports its module
and nothing else. Names from outside are accepted in three ways, tried in this order:

1. a name in the tables below;
2. a dotted path with a colon, "my_package.my_module:MyClass";
3. a name registered in BasicSR's registries (archs, losses, data sets, metrics), when basicsr is installed.

Methods are also named together, "MTKD + FAKD": the class of both (`mtkd.methods.combined`).

Our own table always wins over BasicSR's registry, so a network called EDSR is mtkd's EDSR whatever else is imported.

What a name stands for is checked against its kind before it is called: a network, loss or data set must be a class of
that kind, a metric must take two images. An option file is trusted and may name anything of the right kind. A weights
file is not trusted: for its names `get(..., from_file=True)` searches only the table and the modules that the user has
imported.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mtkd.contracts import MtkdError
from mtkd.runtime.names import closest

Kind = Literal["arch", "method", "loss", "metric", "dataset"]

ARCHS = {
    "EDSR": "mtkd.archs.edsr:EDSR",
    "RCAN": "mtkd.archs.rcan:RCAN",
    "SwinIR": "mtkd.archs.swinir:SwinIR",
    "DCTSwin": "mtkd.archs.dctswin:DCTSwin",
    "FSRCNN": "mtkd.archs.fsrcnn:FSRCNN",
    "PlainSR": "mtkd.archs.plain:PlainSR",
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
    "RKD": "mtkd.methods.rkd:RKD",
    "CRD": "mtkd.methods.crd:CRD",
    "DUKD": "mtkd.methods.dukd:DUKD",
    "DCKD": "mtkd.methods.dckd:DCKD",
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
    "calculate_ms_ssim": "mtkd.metrics.ms_ssim:ms_ssim",
    "calculate_lpips": "mtkd.metrics.lpips:lpips",
    "calculate_dists": "mtkd.metrics.dists:dists",
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


def get(kind: Kind, name: str, *, from_file: bool = False) -> Any:
    """Class or function called `name`.

    Args:
        from_file: the name comes from a weights file, which is not trusted. Only the table and what the user has
            imported (with `import_modules`, or registered in BasicSR's registries) are searched, and nothing is
            imported.

    Raises:
        MtkdError: nothing of that name exists, or it is not of that kind; the text lists what was searched and the
            nearest matches.
    """
    if name in TABLES[kind]:
        return _attribute(TABLES[kind][name])
    if from_file:
        return _imported_by_the_user(kind, name)
    if kind == "method" and "+" in name:
        return _attribute("mtkd.methods.combined:combined")(name)
    if ":" in name:
        return _of_kind(kind, name, _attribute(name))
    found = _from_basicsr(kind, name)
    if found is not None:
        return found
    theirs = _names_in_basicsr(kind)
    # Ours first, even when theirs are nearer.
    near = list(dict.fromkeys([*closest(name, TABLES[kind]), *closest(name, theirs)]))[:3]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    also = f"; BasicSR's registry adds {', '.join(n for n in theirs if n not in TABLES[kind])}" if theirs else ""
    raise MtkdError(
        f"No {kind} is called {name!r}.{hint} mtkd has {', '.join(TABLES[kind])}{also}. A class of your own is named "
        "by its path, 'my_package.my_module:MyClass', or registered in BasicSR's registry by a module named with "
        "--import."
    )


def make_network(name: str, arguments: Mapping[str, Any], *, scale: int | None = None) -> Any:
    """Network `name` built with `arguments`, carrying `scale`, `feature_names` and `image_channels` where its class has
    none.

    Args:
        scale: for a class from outside that has no `scale` and no argument `upscale` or `scale`.
    """
    cls = get("arch", name)
    net = cls(**arguments)
    # Set on the network itself and not on a wrapper: its class and the names of its weights stay the user's.
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
    net.image_channels = image_channels(cls, arguments)
    return net


def image_channels(cls: Any, arguments: Mapping[str, Any]) -> int:
    """Channels of the images that a network of `cls` takes, by its arguments: 1 for networks of Y, else 3.

    Read are BasicSR's names of that argument, `num_in_ch` and `in_chans`, and others in use.
    """
    parameters = inspect.signature(cls).parameters
    names = [key for key in ("num_in_ch", "in_chans", "in_channels", "in_nc") if key in parameters]
    return 1 if any(arguments.get(key, parameters[key].default) == 1 for key in names) else 3


def import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules (dotted names, also from the working directory), which register what they define.

    Raises:
        MtkdError: one of them cannot be imported; the text gives the reason.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if modules:
        # First, so that `from basicsr... import ARCH_REGISTRY` works beside a current torchvision.
        with contextlib.suppress(ImportError):
            importlib.import_module("mtkd.basicsr.shim")
    for module in modules:
        try:
            importlib.import_module(module)
            _USER_MODULES.add(module)
        except (Exception, SystemExit) as error:
            raise MtkdError(
                f"--import {module}: {type(error).__name__}: {error}. The name is dotted (my_package.my_archs), found "
                "from the working directory or PYTHONPATH."
            ) from error


_USER_MODULES: set[str] = set()
"""Modules that the user has named with --import: what they hold may be built for a weights file too."""


def imported(path: str) -> Any:
    """What `package.module:Name` or `package.module.Name` stands for, imported and not called.

    Raises:
        MtkdError: it cannot be imported.
    """
    return _attribute(path if ":" in path else ":".join(path.rpartition(".")[::2]))


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise MtkdError(f"{path!r} is not the path of a class: write my_package.my_module:MyClass.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MtkdError(f"{path!r} cannot be imported: {error}. Is the package installed, or on PYTHONPATH?") from error
    except AttributeError as error:
        raise MtkdError(f"{path!r} cannot be used: {error}.") from error
    except (Exception, SystemExit) as error:
        text = f"{path!r} cannot be imported: {type(error).__name__}: {error}."
        raise MtkdError(f"{text} Correct the module, or try it with `python -c 'import {module}'`.") from error


_WANTED: dict[Kind, tuple[str, str]] = {
    "arch": ("network", "a class of torch.nn.Module, or a function whose annotation says that it returns one"),
    "method": ("method", "a class of mtkd.methods.base.Method"),
    "loss": ("loss", "a class of torch.nn.Module, called (sr, target)"),
    "metric": ("metric", "a function of two images, (sr, gt, ...), from outside Python's standard library"),
    "dataset": ("data set", "a class with __getitem__ and __len__, from outside Python's standard library"),
}


def _of_kind(kind: Kind, name: str, found: Any) -> Any:
    """`found`, which `name` stands for, when it is something of that kind; it is not called."""
    if not callable(found):
        raise MtkdError(f"{name!r} is neither a class nor a function.")
    fits = {
        "arch": _is_network,
        "method": _is_method,
        "loss": _is_module,
        "metric": _is_metric,
        "dataset": _is_data_set,
    }[kind]
    if not fits(found):
        word, wanted = _WANTED[kind]
        raise MtkdError(f"{name!r} is not a {word}, and was not called. Expected: {wanted}.")
    return found


def _is_module(found: Any) -> bool:
    from torch import nn  # imported here, so that reading the tables needs no torch

    return inspect.isclass(found) and issubclass(found, nn.Module)


def _is_network(found: Any) -> bool:
    if not inspect.isfunction(found):
        return _is_module(found)
    try:
        return _is_module(typing.get_type_hints(found).get("return"))
    except Exception:  # annotations may name anything
        return False


def _is_method(found: Any) -> bool:
    # By name: the catalog imports no method before one is needed.
    return _is_module(found) and any(f"{c.__module__}.{c.__name__}" == "mtkd.methods.base.Method" for c in found.mro())


def _is_metric(found: Any) -> bool:
    if inspect.isclass(found) or _is_standard(found):
        return False
    try:
        inspect.signature(found).bind_partial(None, None)
    except TypeError:
        return False
    except ValueError:  # written in C without a signature
        return True
    return True


def _is_data_set(found: Any) -> bool:
    holds_items = inspect.isclass(found) and hasattr(found, "__getitem__") and hasattr(found, "__len__")
    return holds_items and not _is_standard(found)


def _is_standard(found: Any) -> bool:
    """Whether `found` belongs to Python itself: os.system, subprocess.run, dict."""
    inner = inspect.unwrap(getattr(found, "func", found))
    module = getattr(inner, "__module__", None) or getattr(type(inner), "__module__", "")
    return str(module).partition(".")[0] in sys.stdlib_module_names


def _imported_by_the_user(kind: Kind, name: str) -> Any:
    module, _, attribute = name.rpartition(":")
    found = None
    if module in _USER_MODULES:
        found = getattr(sys.modules[module], attribute, None)
    elif not module and "mtkd.basicsr.shim" in sys.modules:
        found = sys.modules["mtkd.basicsr.shim"].registered(kind, name)
        origin = str(getattr(found, "__module__", ""))
        # BasicSR's own networks read files that their arguments name, so they too need the user's import.
        if origin.partition(".")[0] == "basicsr" and not any(
            f"{origin}.".startswith(f"{theirs}.") for theirs in _USER_MODULES
        ):
            found = None
    # A function may do anything with arguments from a file. Files describe classes.
    if inspect.isclass(found):
        return _of_kind(kind, name, found)
    raise MtkdError(
        f"it names the {kind} {name[:80]!r}, which is not one of mtkd's own ({', '.join(TABLES[kind])}). For "
        "safety a weights file builds no other class, unless you import its module yourself (--import "
        "my_package.my_module, --import basicsr). An option file may name any class."
    )


def _from_basicsr(kind: Kind, name: str) -> Any | None:
    if kind == "method":
        return None
    try:
        from mtkd.basicsr import inward
    except ImportError:
        return None
    return inward.adapted(kind, name)


def _names_in_basicsr(kind: Kind) -> list[str]:
    if kind == "method":
        return []
    try:
        from mtkd.basicsr import shim
    except ImportError:
        return []
    return shim.names(kind)
