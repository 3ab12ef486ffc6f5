"""BasicSR's own classes, built from the option sections that mtkd reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mtkd import basicsr as bridge
from mtkd.config import NetworkOptions

DEFAULTS = {"EDSR": {"num_in_ch": 3, "num_out_ch": 3}, "RCAN": {"num_in_ch": 3, "num_out_ch": 3}}
"""Arguments that BasicSR's classes demand and ours have by themselves."""
SWINIR = "basicsr.archs.swinir_arch:SwinIR"
"""`type` of BasicSR's SwinIR in an option file, where the plain name is ours."""


def arguments(options: NetworkOptions) -> dict[str, Any]:
    """`network_g` as BasicSR wants it."""
    return {"type": options.type, **DEFAULTS.get(options.type, {}), **options.args}


def network(options: NetworkOptions) -> nn.Module:
    """BasicSR's network of that type, freshly initialised."""
    given = arguments(options)
    cls = bridge.registered("arch", given.pop("type"))
    assert cls is not None
    return cls(**given)


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Within the block, CUDA products are computed as torch does when nobody asks for TF32; BasicSR does not ask."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept
