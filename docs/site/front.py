"""Makes the picture of the front page: `python docs/site/front.py [--student tiny_x4]`.

Crops of the demo's photographs as bicubic, the student and the ground truth show them, with PSNR-Y of the whole images.
"""

from __future__ import annotations

import argparse
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
CROPS = {"kodim05": (150, 420), "kodim23": (120, 480)}
"""Photograph -> top and left of the part that is shown."""

SIZE = (120, 160)
"""Height and width of the part."""

ENLARGED = 2
"""By repeating pixels, so that they are seen as they are."""

GAP, LINE = 8, 42


def main() -> None:
    """Write the picture and print what stands below it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="tiny_x4", help="anything that mtkd.load takes")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/assets/front.webp")
    args = parser.parse_args()
    net = load_network(args.student).eval()
    rows = [row(net, name) for name in CROPS]
    titles = ["bicubic", Path(args.student).stem, "ground truth"]
    picture = drawn(rows, titles)
    picture.save(args.out, quality=90, method=6)
    for name, answers in zip(CROPS, rows, strict=True):
        print(name, *(f"{title} {value:.2f} dB" for title, (_, value) in zip(titles, answers, strict=True)))
    print(f"{args.out.name}: {picture.width}x{picture.height}, {args.out.stat().st_size} bytes")


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
