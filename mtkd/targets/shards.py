"""Targets made by several jobs: each writes the images of its shard to a file, and `merge` joins the files.

The jobs run independently, and need no common disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.runtime.device import choose_device
from mtkd.runtime.launch import place_of


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count`, from 1: every `count`-th image. 1 of 1 is the whole."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise MtkdError(f"There is no shard {self}: shards are counted from 1, as in 1/{max(self.count, 1)}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Shard from "3/16"."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise MtkdError(f"--shard {text} is not a shard. Write its number and their count, such as --shard 3/16.")
        if len(text) > 18:
            raise MtkdError(f"--shard {text[:18]}...: the numbers are too large. Write it as 3/16.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def path(self, targets: Path) -> Path:
        """Its file beside the store `targets`."""
        if self.count == 1:
            return targets
        return targets.with_name(f"{targets.name}.shard-{self.number:0{len(str(self.count))}d}-of-{self.count}")

    def indices(self, total: int) -> range:
        """Its images among `total`."""
        if self.count > total:
            raise MtkdError(f"{total} images cannot be shared out over {self.count} jobs; take {total} or fewer.")
        return range(self.number - 1, total, self.count)


WHOLE = Shard()


def launched(launcher: str, options: Options) -> tuple[Shard, torch.device]:
    """This process's share and device when `launcher` ("pytorch" or "slurm") started one process a device: its rank.

    Raises:
        MtkdError: the launcher's environment variables are not there.
    """
    here = place_of(launcher, "teach")
    return Shard(here.rank + 1, here.world_size), choose_device(options.num_gpu, here.local_rank)
