"""Images that tests can count on: photos of scikit-image's wheel, and the shared data sets where they exist."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_PHOTOS = {"astronaut": "astronaut.png", "chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}


def shared_data() -> Path | None:
    """Folder with the benchmark images (`test/Set5/HR`, ...): $MTKD_SHARED/data or ../shared/data, or None."""
    root = os.environ.get("MTKD_SHARED") or Path(__file__).resolve().parents[2] / "shared"
    data = Path(root) / "data"
    return data if data.is_dir() else None


def photo(
    name: Literal["astronaut", "chelsea", "coffee", "rocket"], size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Real photo as (H, W, 3) uint8 RGB; `size` (height, width) is cut from its middle. No download.

    Whole sizes: astronaut 512x512, chelsea 300x451, coffee 400x600, rocket 427x640.
    """
    from PIL import Image

    # Found without importing scikit-image, which takes a second.
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None, "the tests need scikit-image for its photos"
    with Image.open(Path(spec.origin).parent / "data" / _PHOTOS[name]) as image:
        array = np.array(image.convert("RGB"))
    if size is None:
        return array
    height, width = size
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    assert top >= 0 and left >= 0, f"{name} is only {array.shape[0]}x{array.shape[1]}"
    return np.ascontiguousarray(array[top : top + height, left : left + width])
