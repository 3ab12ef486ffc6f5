"""Losses of a run, kept on the device until they are read, and the guard against NaN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mtkd.contracts import MtkdError


class LossTrace:
    """Losses of the iterations since the last reading, kept on the device until then."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._checked = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Remember one iteration's values without reading them."""
        self._names = list(values)
        self._rows.append(torch.stack(list(values.values())))

    def check(self, done: int) -> None:
        """Stop the run, on all ranks, if a value since the last check is not finite on any.

        Raises:
            MtkdError: naming the first such iteration and its terms.
        """
        rows = self._rows[self._checked :]
        if not rows:
            return
        table = torch.stack(rows)
        self._checked = len(self._rows)
        bad = (~torch.isfinite(table)).any(dim=1).nonzero()
        if self._fabric.world_size > 1:
            # A rank alone cannot know: averaging has put another's NaN into its weights too.
            anywhere = self._fabric.all_reduce((~torch.isfinite(table)).any().float(), reduce_op="sum")
            assert isinstance(anywhere, Tensor)
            if len(bad) == 0 and anywhere.item() > 0:
                raise MtkdError(f"A loss term of another process is not finite by iteration {done:,d}; see its error.")
        if len(bad) == 0:
            return
        first = int(bad[0])
        row = dict(zip(self._names, table[first].tolist(), strict=True))
        guilty = [name for name, value in row.items() if not np.isfinite(value) and name != "l_total"] or ["l_total"]
        raise MtkdError(
            f"{guilty[0]!r} became {row[guilty[0]]} at iteration {done - len(rows) + first + 1:,d} "
            f"({', '.join(f'{name}: {value:.4g}' for name, value in row.items())}). The last good checkpoint is kept; "
            "nothing was saved after it. Lower the learning rate, give the term a warm-up (`loss_weight: [[0, 0.0], "
            "[5000, 1.0]]`), set train.clip_grad_norm, or train in fp32, then continue with --auto_resume."
        )

    def check_weights(self, done: int, parameters: Iterable[nn.Parameter]) -> None:
        """Stop the run, on all ranks, before a parameter that is not finite is saved or validated.

        A loss that was finite can leave weights that are not: the gradient of a square root at 0 is infinite.

        Raises:
            MtkdError: naming the iteration.
        """
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).all()
        if self._fabric.world_size > 1:
            finite = self._fabric.all_reduce(finite.float(), reduce_op="sum") == self._fabric.world_size
        if not finite:
            raise MtkdError(
                f"The weights are not finite after iteration {done:,d}, though its losses are: a gradient was not. "
                "The last good checkpoint is kept; nothing was saved after it. Set train.clip_grad_norm, lower the "
                "learning rate, or train in fp32, then continue with --auto_resume."
            )

    def read(self, done: int) -> dict[str, float]:
        """Means since the last reading, over all ranks; checks them first."""
        self.check(done)
        means = torch.stack(self._rows).mean(dim=0)
        self._rows, self._checked = [], 0
        if self._fabric.world_size > 1:
            means = self._fabric.all_reduce(means, reduce_op="mean")
            assert isinstance(means, Tensor)
        return dict(zip(self._names, means.tolist(), strict=True))
