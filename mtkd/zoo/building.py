"""Networks from a description {"type", "args"}.

Descriptions by the user and by mtkd are trusted (`build_trusted`). That of a weights file is used only if the tensors
of the file match it (`build_described`).
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.zoo.loading import fitting

MOST_TENSORS = 20_000
"""Of a network that the user describes; the largest published ones have a tenth."""

LARGEST_ARGUMENT = 1024
"""Whole number that a file may give as an argument when none of its tensors has a side as long."""

LARGEST = {"upscale": 16, "scale": 16, "img_size": 1024, "window_size": 32}
"""The same for arguments that shapes need not show, and memory grows with."""

LONGEST_LIST = 256


def build_trusted(arch: Mapping[str, Any], *, source: str, scale: int | None = None) -> nn.Module:
    """Network that the user or mtkd itself describes by {"type", "args"}, with its own initial weights.

    Raises:
        MtkdError: the description is not one, or the class does not take these arguments.
    """
    name, arguments = description(arch, source)
    try:
        return catalog.make_network(name, arguments, scale=scale)
    except MtkdError:
        raise
    except Exception as error:
        raise _not_built(source, name, error) from error


def build_named(arch: Mapping[str, Any], state: Mapping[str, Tensor], *, whose: str, source: str) -> nn.Module:
    """Network that the user names by {"type", "args"} for the weights `state` of `source`, which are not loaded yet.

    One of mtkd's own is built without values first, and takes memory only when the weights fit it.

    Args:
        whose: what described the network, for errors: an option of the command.

    Raises:
        MtkdError: the description is not one, the class does not take these arguments, or the weights do not fit.
    """
    name, arguments = description(arch, whose)
    if name in catalog.ARCHS:
        try:
            empty = _empty(name, arguments, None, MOST_TENSORS, f"{whose} describes a network of too many parts.")
        except MtkdError:
            raise
        except Exception as error:
            raise _not_built(whose, name, error) from error
        if not hasattr(empty, "adopt"):
            fitting(empty, state, strict=True, source=source)
    return build_trusted(arch, source=whose)


def build_described(facts: Mapping[str, Any], state: Mapping[str, Tensor], *, source: str) -> nn.Module:
    """Network that a weights file describes by `facts`; `state` are its weights, not loaded yet.

    Raises:
        MtkdError: `check_described` refuses it.
    """
    name, arguments, scale = check_described(facts, state, source=source)
    return build_trusted({"type": name, "args": arguments}, source=source, scale=scale)


def check_described(
    facts: Mapping[str, Any], state: Mapping[str, Tensor], *, source: str
) -> tuple[str, dict[str, Any], int | None]:
    """Arch, arguments and scale of the network that a weights file describes, when its tensors match them.

    The file may come from anywhere, so its facts are not trusted: the class is one of mtkd's own or one that the user
    has imported, its arguments are plain values within bounds, and before any memory is taken, the network is built
    without values, of no more parts than the file has, and must have the very shapes of the file.

    Raises:
        MtkdError: one of these does not hold, or the file does not describe its network.
    """
    scale = facts.get("scale")
    if scale is not None and (type(scale) is not int or not 0 < scale <= LARGEST["scale"]):
        raise MtkdError(f"{source} is refused: its scale is {_shown(scale)}, and not a whole number from 1 to 16.")
    name, arguments = description(facts.get("arch"), source)
    _check_description(name, arguments, _longest_side(state), source, depth=0)
    if name in catalog.ARCHS:
        try:
            too_many = (
                f"it describes a network of more parts than its {len(state)} tensors can fill. {source} does not hold "
                "the weights of what it says it is."
            )
            empty = _empty(name, arguments, scale, len(state), too_many)
        except MtkdError as error:
            raise MtkdError(f"{source} is refused: {error}") from error
        except Exception as error:
            raise _not_built(source, name, error) from error
        if not hasattr(empty, "adopt"):
            fitting(empty, state, strict=True, source=source)
    return name, arguments, scale


def description(arch: Any, source: str) -> tuple[str, dict[str, Any]]:
    """`type` and `args` of a description of a network, whatever it holds.

    Raises:
        MtkdError: it is not a description.
    """
    arguments = arch.get("args", {}) if isinstance(arch, Mapping) else None
    if not isinstance(arch, Mapping) or not isinstance(arch.get("type"), str) or not isinstance(arguments, Mapping):
        raise MtkdError(f"{source} does not say which network it holds: its facts lack arch: {{type, args}}.")
    if not all(isinstance(key, str) for key in arguments):
        raise MtkdError(f"{source} does not say which network it holds: an argument has a name that is not text.")
    return arch["type"], dict(arguments)


def _empty(name: str, arguments: Mapping[str, Any], scale: int | None, most: int, too_many: str) -> nn.Module:
    """A network without values, of at most so many parameters."""
    with torch.device("meta"), _NoInitialValues(), _at_most(most, too_many):
        return catalog.make_network(name, arguments, scale=scale)


def _not_built(source: str, name: str, error: Exception) -> MtkdError:
    if isinstance(error, TypeError):
        return MtkdError(f"{source} describes {name[:80]} with arguments it does not take: {str(error)[:300]}.")
    text = " ".join(str(error).split())[:300]
    return MtkdError(f"{source} describes {name[:80]} in a way that cannot be built: {type(error).__name__}: {text}.")


def _longest_side(state: Mapping[str, Tensor]) -> int:
    return max((side for tensor in state.values() for side in tensor.shape), default=0)


def _check_description(name: str, arguments: Mapping[str, Any], longest: int, source: str, *, depth: int) -> None:
    """A class that a file may name, with arguments of its signature within bounds; networks inside networks too."""
    try:
        cls = catalog.get("arch", name, from_file=True)
    except MtkdError as error:
        raise MtkdError(f"{source} is refused: {error}") from error
    parameters = inspect.signature(cls).parameters.values()
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    limit = max(LARGEST_ARGUMENT, longest)
    for key, value in arguments.items():
        if key not in known and not is_open:
            raise MtkdError(f"{source} describes a {name} with arguments it does not take: {key[:80]}.")
        most = LARGEST.get(key, limit)
        _check_value(value, most, f"{source} is refused: {name}'s {key[:80]}", longest, source, depth)


def _check_value(value: Any, most: int, what: str, longest: int, source: str, depth: int) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if not 0 <= value <= most:
            raise MtkdError(f"{what} is {_shown(value)}; in this file it is a whole number from 0 to {most}.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise MtkdError(f"{what} is {value}, not a finite number.")
    elif isinstance(value, str):
        if len(value) > 100:
            raise MtkdError(f"{what} is a text of {len(value)} characters.")
    elif depth > 3:
        raise MtkdError(f"{what} is nested too deeply.")
    elif isinstance(value, list | tuple):
        whole = [item for item in value if isinstance(item, int)]
        if len(value) > LONGEST_LIST or sum(whole) > max(most, longest):
            raise MtkdError(f"{what} is a list of {len(value)} that is too long or too large for this file.")
        for item in value:
            _check_value(item, most, what, longest, source, depth + 1)
    elif isinstance(value, Mapping) and isinstance(value.get("type"), str):
        arguments = {key: item for key, item in value.items() if key != "type"}
        if not all(isinstance(key, str) for key in arguments):
            raise MtkdError(f"{what} has an argument whose name is not text.")
        _check_description(value["type"], arguments, longest, source, depth=depth + 1)
    else:
        raise MtkdError(
            f"{what} is a {type(value).__name__}; numbers, texts, lists and networks {{type: ...}} are read."
        )


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    return repr(value)[:80] if isinstance(value, int | float | str) else f"a {type(value).__name__}"


class _NoInitialValues(TorchFunctionMode):
    """Do nothing to fill a tensor without values: torch would import its compiler for it, which takes two seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = kwargs or {}, getattr(func, "__name__", "")
        filled = next(iter((*args, *given.values())), None) if name.endswith("_") and not name.endswith("__") else None
        return filled if isinstance(filled, Tensor) and filled.is_meta else func(*args, **given)


@contextmanager
def _at_most(tensors: int, too_many: str) -> Iterator[None]:
    """Stop a constructor, in this thread, that makes more parameters or modules than a file of `tensors` can fill;
    `too_many` is the message.
    """
    thread, parameters, modules = threading.get_ident(), 0, 0
    # A block has one activation or more for each of its layers, and containers around them.
    most_modules = 8 * tensors + 64

    def stop() -> NoReturn:
        raise MtkdError(too_many)

    def count_parameter(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal parameters
        if threading.get_ident() == thread and parameter is not None:
            parameters += 1
            if parameters > tensors:
                stop()

    def count_module(_module: nn.Module, _name: str, _child: Any) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            if modules > most_modules:
                stop()

    from torch.nn.modules.module import (
        register_module_module_registration_hook,
        register_module_parameter_registration_hook,
    )

    hooks = (
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
