"""A network as a program of torch.export, or as safetensors that describe themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.export.onnx_file import quiet
from mtkd.export.subject import Subject

FACTS = "mtkd.json"
"""Extra file inside a `.pt2`, with the metadata of the other formats."""


def write_program(subject: Subject, path: Path) -> None:
    """Write `path` (.pt2): the graph with free batch, height and width, for `torch.export.load`.

    Raises:
        MtkdError: torch cannot export this network with free sizes.
    """
    free = torch.export.Dim.DYNAMIC
    example = torch.rand(2, subject.channels, 19, 27)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(subject.net, (example,), dynamic_shapes=({0: free, 2: free, 3: free},))
            torch.export.save(program, path, extra_files={FACTS: json.dumps(subject.metadata(precision="fp32"))})
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise MtkdError(f"torch.export cannot export {subject.name}: {type(error).__name__}: {text}.") from error


class Program(nn.Module):
    """A `.pt2` as a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        with quiet():
            self.program: Any = torch.export.load(path).module()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W)."""
        return self.program(x)


def write_weights(subject: Subject, path: Path) -> None:
    """Write `path` (.safetensors), which `zoo.build` and `--weights` read.

    Raises:
        MtkdError: the weights do not say which network they are.
    """
    if subject.arch is None:
        raise MtkdError(
            "safetensors need the network's description, and these weights do not carry one. `mtkd zoo convert IN OUT "
            "--to safetensors --arch TYPE` writes it."
        )
    facts: dict[str, Any] = {"arch": dict(subject.arch), "scale": getattr(subject.net, "scale", subject.factor)}
    if subject.licence:
        facts["licence"] = subject.licence
    if subject.sha256:
        facts["weights_sha256"] = subject.sha256
    zoo.write_safetensors(path, subject.net.state_dict(), facts)
