"""What is exported: a network as it is deployed, and the facts that its files carry."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import mtkd
from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.runtime.files import sha256
from mtkd.runtime.modes import deployed

NOT_STATED = "not stated"
"""Licence of weights whose file names none."""


@dataclass(frozen=True)
class Subject:
    """A network to be exported: (N, channels, h, w) -> (N, 3, h * factor, w * factor), RGB in [0, 1].

    Attributes:
        net: as it is deployed (folded where the arch folds), on the CPU, in float32 and eval mode.
        arch: {"type", "args"} of the catalog; None where the weights do not say.
        channels: of its input, 3 but for a fusion network, which takes one image of each teacher.
        factor: output side / input side.
        licence: of the weights.
        source: where the weights are from, "" where that is not known.
        sha256: of the file of the weights, None where there is none.
    """

    net: nn.Module
    arch: Mapping[str, Any] | None
    channels: int
    factor: int
    licence: str
    source: str
    sha256: str | None

    @classmethod
    def of(cls, net: nn.Module, facts: Mapping[str, Any] | None = None) -> Subject:
        """`net` as it is deployed.

        Args:
            net: of mtkd; with an `origin`, as `zoo.build` gives it, its file tells `arch` and `licence`.
            facts: what is known beside or instead of that: `arch` as {"type", "args"}, `licence`.

        Raises:
            MtkdError: it is exported already, or its size is not a whole multiple of the input's.
        """
        if getattr(net, "exported_from", None) is not None:
            raise MtkdError(
                f"{net.exported_from} is an exported network. Export from the weights it was made of: a checkpoint, a "
                "run folder or zoo:NAME."
            )
        if 1 in (getattr(one, "image_channels", 3) for one in (net, getattr(net, "net", None))):
            raise MtkdError(
                f"{type(net).__name__} computes Y alone, and exported files take and make RGB. Train one of RGB "
                "(without `color: y`) to export it."
            )
        origin = getattr(net, "origin", None)
        known: dict[str, Any] = {}
        digest = None
        if origin is not None:
            path = zoo.resolve(str(origin.source))
            known, digest = zoo.read_checkpoint(path).facts, sha256(path)
        known |= dict(facts or {})
        deployed = _deployed(net)
        arch = known.get("arch")
        if isinstance(arch, Mapping):
            arch = {"type": arch.get("type"), "args": _own_arguments(deployed, dict(arch.get("args") or {}))}
        channels = _input_channels(deployed)
        licence = known.get("licence")
        return cls(
            net=deployed,
            arch=arch if isinstance(arch, Mapping) else None,
            channels=channels,
            factor=_factor(deployed, channels),
            licence=licence if isinstance(licence, str) and licence else NOT_STATED,
            source=str(origin.source) if origin is not None else "",
            sha256=digest,
        )

    @property
    def name(self) -> str:
        """Of the network, for people."""
        return str(self.arch["type"]) if self.arch else type(self.net).__name__

    @property
    def makes_photos(self) -> bool:
        """Whether it makes an image of an image; a fusion network makes one of several."""
        return self.channels == 3

    @property
    def has_windows(self) -> bool:
        """Whether a module attends inside windows, which not every format can say for free sizes."""
        return any(hasattr(module, "window_size") for module in self.net.modules())

    def metadata(self, **more: str) -> dict[str, str]:
        """What every file says of itself, as text."""
        arch = dict(self.arch) if self.arch else {"type": self.name}
        found = {
            "mtkd_version": mtkd.__version__,
            "arch": json.dumps(arch),
            "scale": str(self.factor),
            "licence": self.licence,
            "input": f"RGB, float32 (N, {self.channels}, H, W) in [0, 1]",
            "output": f"RGB, float32 (N, 3, H * {self.factor}, W * {self.factor}), to be clamped to [0, 1]",
        }
        if self.sha256:
            found["weights_sha256"] = self.sha256
        return found | more


def _deployed(net: nn.Module) -> nn.Module:
    folded = deployed(net)
    return (copy.deepcopy(net) if folded is net else folded).cpu().float().eval().requires_grad_(False)


def _own_arguments(net: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` of the trained network as those of the folded one, which keeps what differs as attributes."""

    def own(name: str, value: Any) -> Any:
        found = getattr(net, name, value)
        return found if type(found) is type(value) and isinstance(found, int | float | str | bool) else value

    return {name: own(name, value) for name, value in arguments.items()}


def _input_channels(net: nn.Module) -> int:
    teachers = getattr(net, "num_teachers", None)
    per_image = getattr(net, "num_out_ch", 3)
    return per_image * teachers if isinstance(teachers, int) and isinstance(per_image, int) else 3


@torch.no_grad()
def _factor(net: nn.Module, channels: int) -> int:
    """By a run, because a fusion network's `scale` is that of its teachers."""
    try:
        made = net(torch.rand(1, channels, 16, 16))
    except Exception as error:
        raise MtkdError(
            f"{type(net).__name__} does not take a map of {channels} channels, as images have them: "
            f"{str(error).splitlines()[0][:200]}"
        ) from error
    if made.ndim != 4 or made.shape[2] != made.shape[3] or made.shape[2] % 16:
        raise MtkdError(
            f"{type(net).__name__} makes {tuple(made.shape)} of a map of 16x16; only networks that enlarge by a whole "
            "number are exported."
        )
    return made.shape[2] // 16
