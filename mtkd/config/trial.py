"""Try what an option file describes, for almost nothing: networks without memory, an optimizer on one number."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.runtime import given

MAX_PARAMETERS = 2_000_000_000
MAX_MODULES = 10_000
"""The largest published super-resolution networks have 0.1 billion parameters in about 2,000 modules."""
MAX_ARGUMENT = 1_000_000
"""Largest whole number that a network of ours takes: a loop over it must end."""


_TRIED: dict[tuple[Any, str], str | None] = {}
"""(class, arguments) -> what was found: the files of a folder share their teachers."""


def network(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Why network `name` cannot be built with `arguments`; None when it can.

    It is built on the meta device, which holds no values, and given up when it grows beyond `MAX_PARAMETERS` or
    `MAX_MODULES`. A class from outside may need values to be built: it is then built on the CPU, within the same
    bounds. The catalog has checked that it makes networks.

    Raises:
        MtkdError: there is nothing of that name.
    """
    cls = catalog.get("arch", name)
    key = cls, json.dumps(arguments, sort_keys=True, default=repr)
    if key not in _TRIED:
        _TRIED[key] = _try_network(name, arguments)
    return _TRIED[key]


def _try_network(name: str, arguments: Mapping[str, Any]) -> str | None:
    if name in catalog.ARCHS and (large := _largest(arguments)) > MAX_ARGUMENT:
        return f"{large:,} is beyond what {name} takes ({MAX_ARGUMENT:,})."
    try:
        with torch.device("meta"):
            _bounded(name, arguments)
    except _TooLarge as error:
        return str(error)
    except MtkdError as error:
        if name in catalog.ARCHS:
            return str(error)
        try:
            _bounded(name, arguments)
        except MtkdError as second:
            return str(second)
    return None


class _TooLarge(MtkdError):
    """The network has more parameters or modules than any that can be trained."""


def _bounded(name: str, arguments: Mapping[str, Any]) -> None:
    parameters = modules = 0

    def count_parameter(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > MAX_PARAMETERS:
            raise _TooLarge(f"{name} would have more than {MAX_PARAMETERS:,} parameters.")

    def count_module(module: nn.Module, key: str, child: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MAX_MODULES:
            raise _TooLarge(f"{name} would have more than {MAX_MODULES:,} modules.")

    hooks = [
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(count_module),
    ]
    try:
        with given.errors_of(f"{name} cannot be built with these arguments"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = catalog.make_network(name, arguments)
    finally:
        for hook in hooks:
            hook.remove()
    empty = [key for key, parameter in net.named_parameters() if not parameter.numel()]
    if empty:
        raise MtkdError(f"{name} would have weights without a single value, such as {empty[0]}: a size is 0.")


def _largest(value: Any) -> int:
    if isinstance(value, Mapping):
        return max(map(_largest, value.values()), default=0)
    if isinstance(value, list | tuple):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0


def optimizer(cls: type[torch.optim.Optimizer], lr: float, arguments: Mapping[str, Any]) -> str | None:
    """Why optimizer `cls` cannot be made, or could not step, with `arguments`; None when it can.

    It takes no step, which would start CUDA where there is a GPU.
    """
    if arguments.get("differentiable"):
        return "differentiable: true is for gradients through the optimizer, and a step of training has none."
    make = cast(Callable[..., torch.optim.Optimizer], cls)  # pyright knows the base class, which takes no lr
    try:
        make([nn.Parameter(torch.zeros(1))], lr=lr, **arguments)
    except Exception as error:  # noqa: BLE001  a class from outside may raise anything
        return f"{cls.__name__} refuses these arguments: {' '.join(str(error).split()).rstrip('.')}."
    return None
