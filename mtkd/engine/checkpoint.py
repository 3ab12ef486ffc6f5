"""Run folders, atomic files and exact resuming.

Layout and file formats are BasicSR's: `models/net_g_ITER.pth` with `params` and `params_ema`, which BasicSR loads, and
`training_states/ITER.state`. A state is written after its model file, both by write-and-rename, so a run killed at any
moment leaves only complete checkpoints behind.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError

LATEST = "latest"


def atomic_save(content: Any, path: Path) -> None:
    """`torch.save` that leaves either the old file or the complete new one, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise MtkdError(f"{path} cannot be written: {error.strerror}. The previous checkpoint is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """State dict on the CPU in fp32, as BasicSR stores it (integer buffers keep their type)."""
    return {
        key: (value.float() if value.is_floating_point() else value).detach().cpu()
        for key, value in net.state_dict().items()
    }


@dataclass(frozen=True)
class RunFolder:
    """Folder of one run, `EXPERIMENTS_ROOT/NAME`."""

    root: Path

    @property
    def models(self) -> Path:
        """Weights, `net_g_ITER.pth`."""
        return self.root / "models"

    @property
    def states(self) -> Path:
        """Training states, `ITER.state`."""
        return self.root / "training_states"

    @property
    def visualization(self) -> Path:
        """Validation images, `IMAGE/IMAGE_ITER.png`."""
        return self.root / "visualization"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: losses and validation results."""
        return self.root / "metrics.jsonl"

    def check_new(self, *, resuming: bool) -> None:
        """Refuse to write into an older run.

        Raises:
            MtkdError: the folder holds a run and this one does not resume it.
        """
        if not resuming and self.root.exists() and any(self.root.iterdir()):
            raise MtkdError(
                f"{self.root} already holds a run, and a new run never moves or overwrites an old one. Continue it "
                "with --auto_resume, or give this run another `name`, or move the folder away yourself."
            )

    def make(self) -> None:
        """Create the folders."""
        for folder in (self.models, self.states, self.visualization):
            folder.mkdir(parents=True, exist_ok=True)

    def model(self, step: int | str) -> Path:
        """Weights file of iteration `step`."""
        return self.models / f"net_g_{step}.pth"

    def state(self, step: int) -> Path:
        """Training state of iteration `step`."""
        return self.states / f"{step}.state"

    def newest_state(self) -> Path | None:
        """State of the highest iteration whose weights are there too, or None."""
        steps = sorted((int(path.stem) for path in self.states.glob("*.state") if path.stem.isdigit()), reverse=True)
        for step in steps:
            if self.model(step).exists():
                return self.state(step)
        return None


def save_weights(path: Path, student: nn.Module, ema: nn.Module | None, facts: dict[str, Any]) -> None:
    """Write `params` (and `params_ema`) plus `mtkd`, plain facts that make the file self-describing."""
    content: dict[str, Any] = {"params": plain_state(student)}
    if ema is not None:
        content["params_ema"] = plain_state(ema)
    atomic_save({**content, "mtkd": facts}, path)


def load_state(path: Path) -> dict[str, Any]:
    """Training state on the CPU.

    Raises:
        MtkdError: the file is missing, broken, or no training state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MtkdError(f"There is no training state {path}.") from error
    except Exception as error:
        raise MtkdError(
            f"{path} is not a readable training state ({type(error).__name__}: {error}). Remove it to resume from the "
            "one before."
        ) from error
    if not isinstance(state, dict) or "iter" not in state or "optimizers" not in state:
        raise MtkdError(f"{path} is no training state: it has no `iter` and `optimizers`.")
    return state
