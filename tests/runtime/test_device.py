"""How torch's backends are set, and set back."""

from __future__ import annotations

import pytest
import torch

from mtkd.runtime.device import full_float32


def test_float32_is_whole_within_the_block_alone() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        one = torch.ones(2, 2)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ZeroDivisionError), full_float32(torch.device("cpu")):
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
            assert (one @ one).dtype == torch.float32
            _ = 1 / 0
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
