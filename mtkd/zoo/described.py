"""The network of a set of weights, by its name in the zoo, by the facts in its file, or by its tensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.zoo import building, cache, conversion, files, loading
from mtkd.zoo.table import entry


@dataclass(frozen=True)
class Described:
    """A network as option files write it out: the arch and its arguments.

    `assumed` are arguments that the file does not show, set as published; empty where the file or the zoo describes the
    network.
    """

    type: str
    args: dict[str, Any]
    assumed: dict[str, Any] = field(default_factory=dict)


def describe(source: str, *, key: str | None = "auto") -> Described:
    """The network of `source`, a file or `zoo:NAME`; nothing is fetched for a name.

    A file is not trusted, as in `build`: only classes of the catalog's table, or those that the user has imported, with
    exactly the tensors of the file. One without facts is EDSR, RCAN or SwinIR by the names of its
    tensors, or what spandrel knows, where spandrel is installed.

    Args:
        key: entry of the file that holds the weights, as for `read_checkpoint`.

    Raises:
        MtkdError: there is no such name or file, it cannot be read or is refused, or its network is unknown.
    """
    if source.startswith("zoo:"):
        item = entry(source)
        if item.scale is None:
            raise MtkdError(f"{source} is not a network that makes images.")
        return Described(item.arch, dict(item.args))
    path = cache.resolve(source)
    checkpoint = files.read_checkpoint(path, key=key)
    if "arch" in checkpoint.facts:
        name, arguments, _ = building.check_described(checkpoint.facts, checkpoint.state, source=str(path))
        return Described(name, arguments)
    guessed, assumed = conversion.guess(checkpoint)
    if guessed:
        name, arguments, _ = building.check_described({"arch": guessed}, checkpoint.state, source=str(path))
        return Described(name, arguments, assumed)
    network_by_spandrel(
        path,
        checkpoint.state,
        remedy="Give the network beside the file: `{network: {type: ARCH, ...}, pretrain: FILE}`.",
    )
    return Described("spandrel", {})


def network_by_spandrel(path: Path, state: Mapping[str, Tensor], *, remedy: str) -> nn.Module:
    """The network of `state`, whose tensors tell all of its arguments, as spandrel knows many.

    Raises:
        MtkdError: spandrel is not there, or does not know it; `remedy` says what else the user can do.
    """
    unknown = f"{path} does not say which network it holds, and is not EDSR, RCAN or SwinIR"
    if importlib.util.find_spec("spandrel") is None:
        raise MtkdError(f"{unknown}. {remedy} More kinds are known where spandrel is: pip install 'mtkd[spandrel]'.")
    net = catalog.get("arch", "spandrel")()
    try:
        loading.load_into(net, state, source=str(path))
    except MtkdError as error:
        raise MtkdError(f"{unknown}. {remedy} {error}") from error
    return net
