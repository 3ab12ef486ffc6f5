"""Losses of a run, kept on the device until they are read, and the guard against NaN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mtkd.contracts import MtkdError


class NotFiniteError(MtkdError):
    """A loss or a weight is not finite, so the weights of the run must not be saved."""


class LossTrace:
    """Losses of the iterations since the last reading, kept on the device until then."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._checked = 0
        # Number of the first rows that are means over ranks already.
        self._averaged = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Remember one iteration's values without reading them."""
        if self._rows and self._names != list(values):
            # Rows of a run with other terms.
            self._rows, self._checked, self._averaged = [], 0, 0
        self._names = list(values)
        self._rows.append(torch.stack(list(values.values())))

    def check(self, done: int) -> None:
        """Stop the run, on all ranks, if a value since the last check is not finite on any.

        Raises:
            MtkdError: the text names the first such iteration and its terms.
        """
        rows = self._rows[self._checked :]
        if not rows:
            return
        table = torch.stack(rows)
        self._checked = len(self._rows)
        bad = (~torch.isfinite(table)).any(dim=1).nonzero()
        if self._fabric.world_size > 1:
            # Ask all ranks: averaged gradients carry the NaN of one rank into the weights of all.
            anywhere = self._fabric.all_reduce((~torch.isfinite(table)).any().float(), reduce_op="sum")
            assert isinstance(anywhere, Tensor)
            if len(bad) == 0 and anywhere.item() > 0:
                raise NotFiniteError(
                    f"A loss term of another process is not finite by iteration {done:,d}; see its error."
                )
        if len(bad) == 0:
            return
        first = int(bad[0])
        row = dict(zip(self._names, table[first].tolist(), strict=True))
        guilty = [name for name, value in row.items() if not np.isfinite(value) and name != "l_total"] or ["l_total"]
        raise NotFiniteError(
            f"{guilty[0]!r} became {row[guilty[0]]} at iteration {done - len(rows) + first + 1:,d} "
            f"({', '.join(f'{name}: {value:.4g}' for name, value in row.items())}). The last good checkpoint is kept; "
            "nothing was saved after it. Lower the learning rate, give the term a warm-up (`loss_weight: [[0, 0.0], "
            "[5000, 1.0]]`), set train.clip_grad_norm, or train in fp32, then continue with --auto_resume."
        )

    def check_weights(self, done: int, parameters: Iterable[nn.Parameter]) -> None:
        """Stop the run, on all ranks, before a parameter that is not finite is saved or validated.

        A loss that was finite can leave weights that are not: the gradient of a square root at 0 is infinite.

        Raises:
            MtkdError: the text names the iteration.
        """
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).all()
        if self._fabric.world_size > 1:
            finite = self._fabric.all_reduce(finite.float(), reduce_op="sum") == self._fabric.world_size
        if not finite:
            raise NotFiniteError(
                f"The weights are not finite after iteration {done:,d}, though its losses are: a gradient was not. "
                "The last good checkpoint is kept; nothing was saved after it. Set train.clip_grad_norm, lower the "
                "learning rate, or train in fp32, then continue with --auto_resume."
            )

    def is_finite(self) -> bool:
        """Whether this process alone has seen no value that is not finite."""
        return not self._rows or bool(torch.stack(self._rows).isfinite().all())

    @property
    def waiting(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._rows)

    def read(self, done: int) -> dict[str, float]:
        """Means since the last `forget`, over all ranks; checks them first."""
        self.check(done)
        # Average over ranks first, then over iterations: restored rows are averaged over ranks already, and the order
        # changes the last bit.
        means = self._over_ranks().mean(dim=0)
        return dict(zip(self._names, means.tolist(), strict=True))

    def forget(self) -> None:
        """Drop what was read: it is logged."""
        self._rows, self._checked, self._averaged = [], 0, 0

    def pending(self, *, alone: bool = False) -> dict[str, Any]:
        """What has not been read yet, for a training state: `names` and `values` (iterations, names) on the CPU.

        Args:
            alone: values of this process alone; else means over ranks, for which every rank must call.
        """
        if not self._rows:
            return {}
        values = torch.stack(self._rows) if alone else self._over_ranks()
        return {"names": list(self._names), "values": values.cpu()}

    def take_up(self, pending: Mapping[str, Any]) -> None:
        """Restore `pending` of a stopped run; the next means include it."""
        if pending:
            self._names = list(pending["names"])
            self._rows = list(pending["values"].float().to(self._fabric.device).unbind())
            self._checked = self._averaged = len(self._rows)

    def _over_ranks(self) -> Tensor:
        """(iterations, names): means over ranks of what has not been read."""
        values = torch.stack(self._rows)
        own = values[self._averaged :]
        if self._fabric.world_size == 1 or len(own) == 0:
            return values
        mean = self._fabric.all_reduce(own, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return torch.cat([values[: self._averaged], mean])
