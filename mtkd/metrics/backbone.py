"""ImageNet networks of torchvision that learned metrics stand on, read from disk and never downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mtkd.contracts import MtkdError


@dataclass(frozen=True)
class Backbone:
    """Where a metric finds its network.

    Attributes:
        metric: its name, for messages.
        network: torchvision's name of the network in words.
        file: of torchvision's weights.
        entry: of the zoo.
        megabytes: size of the file.
    """

    metric: str
    network: str
    file: str
    entry: str
    megabytes: int

    def path(self, weights: str | os.PathLike[str] | None) -> Path:
        """`weights`, by default torchvision's file in torch hub's cache.

        Raises:
            MtkdError: it is not there.
        """
        path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / self.file
        if not path.is_file():
            raise MtkdError(
                f"{self.metric} needs {self.network}'s ImageNet weights, and {path} does not exist. mtkd does not "
                f"download it by itself: fetch https://download.pytorch.org/models/{self.file} ({self.megabytes} MB) "
                "to that path, name a copy with `weights: PATH` in the metric's options, or let `weights: "
                f"zoo:{self.entry}` there fetch it."
            )
        return path

    def state(self, path: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The tensors of `path` that `shapes` names.

        Raises:
            MtkdError: the file cannot be read, or a tensor is absent or has another shape.
        """
        state = _read(path)
        wrong = [name for name, shape in shapes.items() if getattr(state.get(name), "shape", None) != shape]
        if wrong:
            raise MtkdError(f"{path} holds no torchvision {self.network}: {wrong[0]} is absent or has another shape.")
        return {name: state[name] for name in shapes}


def _read(path: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise any exception
        raise MtkdError(f"{path} cannot be read as weights ({type(error).__name__}). Fetch it again.") from error
    return state if isinstance(state, dict) else {}
