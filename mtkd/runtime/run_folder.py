"""Where a run keeps what: `models/net_g_ITER.pth` and `training_states/ITER.state`, BasicSR's layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mtkd.runtime.files import is_temporary

LATEST = "latest"
BEST = "best"
DISTILLED = "student"
"""Name of the run that `mtkd distill` makes in its folder."""
LOCK = ".lock"
"""File in a run folder that the process which trains there holds locked."""


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
        """Validation images, `IMAGE/IMAGE_ITER.png`, in a folder `SET` where there are several sets."""
        return self.root / "visualization"

    @property
    def validation(self) -> Path:
        """Results of the last validation, image by image, as `mtkd test` writes them."""
        return self.root / "validation"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: losses and validation results."""
        return self.root / "metrics.jsonl"

    def make(self) -> None:
        """Create the folders."""
        for folder in (self.models, self.states, self.visualization):
            folder.mkdir(parents=True, exist_ok=True)

    def model(self, step: int | str) -> Path:
        """Weights file of iteration `step`, or LATEST or BEST."""
        return self.models / f"net_g_{step}.pth"

    @property
    def deployable(self) -> Path:
        """The network to deploy, where that is not the student."""
        return self.models / "deployable.pth"

    def state(self, step: int) -> Path:
        """Training state of iteration `step`."""
        return self.states / f"{step}.state"

    def saved_states(self) -> list[int]:
        """Iterations that have a training state, the newest first."""
        return sorted((int(path.stem) for path in self.states.glob("*.state") if _is_number(path.stem)), reverse=True)

    def saved_weights(self) -> list[int]:
        """Iterations that have weights, the newest first."""
        steps = (path.stem.removeprefix("net_g_") for path in self.models.glob("net_g_*.pth"))
        return sorted((int(step) for step in steps if _is_number(step)), reverse=True)

    def starts_leftovers(self, name: str) -> list[Path] | None:
        """The files that a run `name` leaves which ended before its first loss was logged: its lock, logs, and option
        files. None when the folder holds anything else, which a new run must not touch.
        """
        known = {LOCK, f"{name}.yml", "resolved.yml", "environment.json", self.metrics.name}
        found = []
        for path in self.root.iterdir() if self.root.exists() else ():
            if path in (self.models, self.states, self.visualization) and path.is_dir():
                if any(not is_temporary(inside) for inside in path.iterdir()):
                    return None
                found += path.iterdir()
            elif path == self.metrics and path.stat().st_size:
                return None
            elif path.name in known or is_temporary(path) or path.match("train_*_[0-9]*.log"):
                found.append(path)
            else:
                return None
        return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
