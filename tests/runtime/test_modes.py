"""Eval mode for the time of a block."""

from __future__ import annotations

import pytest
from torch import nn

from mtkd.runtime.modes import evaluating


def test_every_module_gets_its_own_mode_back_also_after_an_error() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3)))
    net.train()
    net[1].eval()
    before = [module.training for module in net.modules()]
    with pytest.raises(ValueError, match="inside"), evaluating(net):
        assert not any(module.training for module in net.modules())
        raise ValueError("inside")
    assert [module.training for module in net.modules()] == before
