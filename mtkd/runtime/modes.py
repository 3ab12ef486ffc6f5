"""Networks in train and eval mode, and as they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within the block `net` is in eval mode: no dropout, no new statistics. The modes of all modules come back."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def deployed(net: nn.Module) -> nn.Module:
    """`net` as it is used: what `deployable()` gives of one that trains more weights than it keeps, else itself."""
    fold = getattr(net, "deployable", None)
    if not callable(fold):
        return net
    folded = fold()
    assert isinstance(folded, nn.Module)
    return folded
