"""One rounding rule, and image <-> tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtkd.runtime.pixels import to_image, to_levels, to_pixels, to_tensor


def test_halves_are_rounded_to_even_and_the_input_stays() -> None:
    values = torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 0.999, 7.0], dtype=torch.float64).float()
    before = values.clone()
    expected = np.clip(np.rint(values.numpy() * np.float32(255)), 0, 255)
    assert np.array_equal(to_levels(values).numpy(), expected)
    assert torch.equal(values, before)


@pytest.mark.parametrize("most", [255, 65535])
def test_every_level_survives_the_way_to_a_float_and_back(most: int) -> None:
    levels = torch.arange(most + 1)
    assert torch.equal(to_levels(levels.float() / most, most).long(), levels)


def test_every_image_survives_the_way_to_a_tensor_and_back() -> None:
    image = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == 0 and tensor.max() == 1
    assert np.array_equal(to_image(tensor), image)
    assert to_pixels(tensor[0]).is_contiguous() and to_pixels(tensor).dtype == torch.uint8
