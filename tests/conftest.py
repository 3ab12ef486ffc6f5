"""What holds for every test: few threads, and the same random numbers whichever tests ran before."""

from __future__ import annotations

import os

import pytest
import torch

if "OMP_NUM_THREADS" not in os.environ:
    # On networks this small more threads only get in each other's way.
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` wait for a device; `benchmarks/gpu.py` runs them all where there is one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
