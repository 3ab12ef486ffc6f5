"""Makes the picture of the front page and the line below it: `python docs/site/front.py`.

Crops of the demo's photographs as bicubic, the shipped student and the ground truth show them, with PSNR-Y of the whole
photographs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtkd.data.images import read_image
from mtkd.data.resize import bicubic_lq, imresize, modcrop
from mtkd.inference.load import load_network
from mtkd.metrics.psnr import psnr

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/index.md"
PICTURE = ROOT / "docs/assets/front.webp"
BEGIN, END = "<!-- from docs/site/front.py -->", "<!-- end -->"
STUDENT = "tiny_x4"
CROPS = {"kodim05": (150, 420), "kodim23": (120, 480)}
"""Photograph -> top and left of the part that is shown."""

SIZE = (120, 160)
"""Height and width of the part."""

ENLARGED = 2
"""By repeating pixels, so that they are seen as they are."""

GAP, LINE = 8, 42


def main() -> None:
    """Write both, and print what the picture weighs."""
    net = load_network(STUDENT)
    rows = [row(net, name) for name in CROPS]
    picture = drawn(rows, ["bicubic", STUDENT, "ground truth"])
    picture.save(PICTURE, quality=90, method=6)
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    if not found or END not in rest:
        raise SystemExit(f"{PAGE} has no {BEGIN} ... {END} to write between.")
    text = below([[value for _, value in answers] for answers in rows])
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(f"{PICTURE.name}: {picture.width}x{picture.height}, {PICTURE.stat().st_size} bytes\n{text}")


def below(values: list[list[float]]) -> str:
    """The line below the picture, of each photograph's PSNR-Y of bicubic, the student and the ground truth."""
    bicubic, student, _ = ([f"{value:.2f}" for value in column] for column in zip(*values, strict=True))
    return (
        f"PSNR-Y of the whole photographs, enlarged four times: {STUDENT} {' and '.join(student)} dB, "
        f"bicubic {' and '.join(bicubic)} dB."
    )


def row(net: torch.nn.Module, name: str) -> list[tuple[NDArray[np.uint8], float]]:
    """(part of the image, PSNR-Y in dB of the whole) of bicubic, the student and the ground truth."""
    scale: int = net.scale  # pyright: ignore[reportAssignmentType]
    gt = modcrop(read_image(ROOT / f"datasets/demo/test/{name}.png"), scale)
    lq, target = tensor(bicubic_lq(gt, scale)), tensor(gt)
    with torch.inference_mode():
        images = [imresize(lq, scale), net(lq), target]
    (top, left), (height, width) = CROPS[name], SIZE
    parts = []
    for image in images:
        levels = image.clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0).numpy()
        value = psnr(image.clamp(0, 1), target, crop_border=scale, test_y_channel=True).item()
        parts.append((levels[top : top + height, left : left + width], value))
    return parts


def tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1] of (H, W, 3) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


def drawn(rows: list[list[tuple[NDArray[np.uint8], float]]], titles: list[str]) -> Image.Image:
    """All parts in a grid, each under its title."""
    height, width = (ENLARGED * side for side in SIZE)
    across, down = len(titles), len(rows)
    canvas = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + LINE)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(30)  # read on a telephone too
    for y, answers in enumerate(rows):
        for x, (part, value) in enumerate(answers):
            corner = (x * (width + GAP), y * (height + LINE))
            text = titles[x] if np.isinf(value) else f"{titles[x]}, {value:.2f} dB"
            pen.text((corner[0] + 4, corner[1] + 3), text, fill="black", font=font)
            enlarged = Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (corner[0], corner[1] + LINE))
    return canvas


if __name__ == "__main__":
    main()
