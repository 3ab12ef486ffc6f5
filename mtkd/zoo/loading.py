"""Weights into networks: strictly, whatever naming they come in, or with an error that says what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtkd.archs.blocks import DIV2K_MEAN
from mtkd.contracts import MtkdError
from mtkd.zoo import files, keymaps

logger = logging.getLogger("mtkd")


def load_into(net: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True, source: str) -> None:
    """Load `state` into `net` in place, in whichever naming (official or BasicSR's) `net` has.

    `source` names the weights in errors. Mean shifts of official EDSR and RCAN are checked against the network's mean
    and dropped; SwinIR's derived buffers are the network's own. With `strict=False`, names and shapes that do not fit
    are logged and left. Either the whole load happens or none of it. A network with a method
    `adopt(state, *, source)`, whose architecture follows from its weights (type spandrel), gets all of them.

    Raises:
        MtkdError: names or shapes do not fit, the mean or range differs, a value is not finite or no number, or
            nothing fits at all.
    """
    if hasattr(net, "adopt"):
        _adopt(net, state, source)
        return
    net.load_state_dict(fitting(net, state, strict=strict, source=source), strict=False)


def fitting(net: nn.Module, state: Mapping[str, Tensor], *, strict: bool, source: str) -> dict[str, Tensor]:
    """The tensors of `state` that `net` takes, in its naming; `net` may be on the meta device."""
    adapted = _adapted(net, state, source)
    expected = own_tensors(net)
    missing = [name for name in expected if name not in adapted]
    unexpected = [name for name in adapted if name not in expected]
    misshapen = [
        f"{name} is {tuple(adapted[name].shape)}, the network has {tuple(expected[name].shape)}"
        for name in expected
        if name in adapted and adapted[name].shape != expected[name].shape
    ]
    taken = {
        name: adapted[name] for name in expected if name in adapted and adapted[name].shape == expected[name].shape
    }
    if (strict and (misshapen or missing or unexpected)) or (expected and not taken):
        raise MtkdError(_mismatch(net, adapted, source, missing, unexpected, misshapen, total=len(expected)))
    _check_kind(taken, expected, source)
    _check_finite(taken, source)
    if missing or unexpected or misshapen:
        logger.warning(
            "%s was loaded in part, as strict loading is off: %d of %d tensors.%s%s%s",
            source,
            len(taken),
            len(expected),
            f" Not in the file, left as they were: {_few(missing)}." if missing else "",
            f" Of another shape, left as they were: {_few(misshapen)}." if misshapen else "",
            f" Not in the network, ignored: {_few(unexpected)}." if unexpected else "",
        )
    return taken


def own_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, but for those that a network derives itself.

    Not `state_dict`, for which SwinIR makes a mask as large as its `img_size` says.
    """
    tensors = {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in net.named_modules(remove_duplicate=False)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and name not in module._non_persistent_buffers_set
    }
    return {name: tensor for name, tensor in tensors.items() if not _is_derived(name)}


def _adopt(net: Any, state: Mapping[str, Tensor], source: str) -> None:
    _check_finite(state, source)
    layout = keymaps.detect(state)
    if layout is not None and layout.arch == "EDSR":
        described = ", ".join(f"{name} {value}" for name, value in keymaps.infer(state).items())
        raise MtkdError(f"{source} is EDSR ({described}), which spandrel does not read: write `type: EDSR`.")
    if layout is not None and layout.arch == "RCAN":
        state = keymaps.to_official(state)  # the one naming of RCAN that spandrel reads
    net.adopt(state, source=source)


def _check_kind(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in state.items():
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise MtkdError(
                f"{source} cannot be used: {name} is {str(tensor.dtype).removeprefix('torch.')}, the network wants "
                "floating-point numbers. Save the weights as float32 or float16."
            )


def _check_finite(state: Mapping[str, Tensor], source: str) -> None:
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise MtkdError(f"The weights of {source} are not finite (NaN or infinite): {_few(broken)}.")


def _adapted(net: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`state` in the naming of `net`, without what `net` derives itself."""
    own = own_tensors(net)
    theirs, ours = keymaps.detect(state), keymaps.detect(own)
    if theirs and ours and theirs.arch == ours.arch and theirs.naming != ours.naming:
        if ours.naming == "official":
            return keymaps.to_official(state)
        _check_mean_shift(net, state, source)
        state = keymaps.to_basicsr(state)
    widened = getattr(net, "widened", None)  # a network that trains more weights than it keeps
    if widened is not None:
        state = widened(state)
    # A network of which everything stands in one module: reading took the prefix off.
    whole = next((p for p in files.NAMES_OF_THE_WHOLE if own and all(name.startswith(p) for name in own)), "")
    if whole and not any(name.startswith(whole) for name in state):
        state = {whole + name: tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not _is_derived(name)}


def _is_derived(name: str) -> bool:
    return name.rpartition(".")[2] in keymaps.BUFFERS


def _check_mean_shift(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """The shift that the file carries must be the one that the network was built with."""
    stored = keymaps.img_range_of(state)
    if stored is None:
        return
    wanted = getattr(net, "img_range", stored)
    if abs(stored - wanted) > 1e-2:
        raise MtkdError(f"{source} works on values up to {stored:g}, your options have img_range {wanted:g}.")
    mean = getattr(net, "mean", None)
    if (
        isinstance(mean, Tensor)
        and not mean.is_meta
        and not torch.allclose(
            mean.detach().flatten().double().cpu(), torch.tensor(DIV2K_MEAN, dtype=torch.float64), atol=1e-4
        )
    ):
        raise MtkdError(
            f"{source} was trained with rgb_mean {list(DIV2K_MEAN)}, your options have "
            f"{[round(value, 4) for value in mean.flatten().tolist()]}."
        )


def _mismatch(
    net: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
    *,
    total: int,
) -> str:
    parts = [f"{source} does not fit this {type(net).__name__}."]
    difference = _difference(net, state)
    if difference:
        parts.append(difference)
    if missing:
        parts.append(f"{len(missing)} of the network's {total} tensors are not in the file: {_few(missing)}.")
    if unexpected:
        parts.append(f"{len(unexpected)} in the file are not in the network: {_few(unexpected)}.")
    if misshapen:
        parts.append(f"{len(misshapen)} have another shape: {_few(misshapen)}.")
    return " ".join(parts)


def _difference(net: nn.Module, state: Mapping[str, Tensor]) -> str:
    """The network in the file beside that of the option; empty where shapes do not show it."""
    own = own_tensors(net)
    theirs, ours = keymaps.detect(state), keymaps.detect(own)
    if theirs is None:
        return ""
    found = keymaps.infer(state)
    described = ", ".join(f"{name} {value}" for name, value in found.items())
    if ours is None or theirs.arch != ours.arch:
        return f"This is {theirs.arch} ({described}), your options have {type(net).__name__}."
    wanted = keymaps.infer(own)
    differing = [name for name in found if found[name] != wanted.get(name)]
    return " ".join(
        f"This is {theirs.arch} with {name} {found[name]}, your options have {wanted.get(name)}." for name in differing
    )


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
