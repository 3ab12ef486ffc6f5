"""A folder as people have it: sub-folders, spaces, many formats and sizes, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtkd.data.images import read_image, write_image

KODAK = Path(__file__).parents[2] / "datasets" / "demo" / "test"
GOOD = (
    "a photo.png", "b (48,50,3).jpg", "trip 1/c.webp", "trip 1/deep/d.bmp", "trip 2/e.tif", "trip 2/f.png", "g.png",
)  # fmt: skip


def cut(number: int, height: int, width: int) -> np.ndarray:
    """A rectangle of a photograph of Kodak's, another one for each number."""
    names = sorted(path.name for path in KODAK.glob("*.png"))
    image = read_image(KODAK / names[number % len(names)])
    top, left = 40 + 23 * number, 60 + 31 * number
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def make_album(folder: Path) -> Path:
    """Seven photographs that can be used at x2, and six files that cannot."""
    for number, name in enumerate(GOOD):
        write_image(folder / name, cut(number, 56 + 4 * number, 70 - 2 * number))
    write_image(folder / "trip 2" / "tiny.png", cut(8, 20, 90))
    (folder / "broken.jpg").write_bytes((folder / GOOD[1]).read_bytes()[:-200])
    (folder / "no image.png").write_text("no image")
    (folder / "phone.heic").write_bytes(b"ftypheic")
    write_deep(folder / "deep.png")
    (folder / "notes.txt").write_text("not a photograph, and nobody thinks it is")
    write_image(folder / ".thumbnails" / "x.png", cut(9, 60, 60))
    return folder


def write_deep(path: Path) -> None:
    """A PNG of 16 bits."""
    import cv2

    cv2.imwrite(str(path), np.full((64, 64, 3), 40_000, np.uint16))
