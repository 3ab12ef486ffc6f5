"""Lay out the images of `benchmarks/cpu_x4.yml`: training crops, test images with their lq, teachers' answers.

python benchmarks/grid_data.py SHARED OUT

SHARED holds `data` (BSDS500_train and General100 to train on, Set5, Set14, B100, Urban100 and Kodak24 to measure on),
`answers` (HiT-SR's and VapSR's images) and `weights/CRAFT_x4.pth` (read by spandrel). OUT gets, once:

- `train/`: centre crops of at most 256x256 of the training images, b_NAME and g_NAME, those that the answers are for;
- `test/SET/gt` and `test/SET/lq`: links to the images, and MATLAB's bicubic of them, so that no run makes it again;
- `answers/NETWORK/{train,Set5,Set14}`: links, and CRAFT's answers, which are made here (8 minutes on one core);
- `answers/craft_x3/...`: for `students_x3.yml`, CRAFT's x4 answers to the lq of x3, made 3/4 as large (15 minutes). The
  bicubic filter has the same width in lq pixels at every scale, so the network sees what it was trained for;
- `answers/craft_x8/train`: CRAFT's answers to five photographs, the mean over the eight turned and mirrored ones;
- `weights/`: a link to the teacher of `students_x2.yml`;
- `photos_5.txt`, `photos_20.txt`, `photos_100.txt`: meta_info files of as many images of General100, evenly spread, and
  `bsds.txt` of those of BSDS500.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from mtkd import build
from mtkd.config import NetworkOptions
from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.resize import bicubic_lq
from mtkd.inference.tiling import self_ensemble
from mtkd.runtime.pixels import to_image, to_tensor

SCALE, SIDE = 4, 256
TRAINING = {"b": "BSDS500_train", "g": "General100"}
MEASURED = {
    "Set5": "test/Set5/HR",
    "Set14": "test/Set14/HR",
    "B100": "test/B100/HR",
    "Urban100": "test/Urban100/HR",
    "Kodak24": "val/Kodak24",
}
ANSWERS = {"hitsr": "hitsr_x4", "vapsr": "vapsr_x4"}
PHOTOS = (5, 20, 100)


def lay_out(shared: Path, out: Path) -> None:
    """Make what is not there yet; a file that exists is complete, because each is written at once."""
    work = []
    for letter, folder in TRAINING.items():
        for path in list_images(shared / "data/train" / folder):
            work.append((_crop, path, out / "train" / f"{letter}_{path.stem}.png"))
    for name, folder in MEASURED.items():
        for path in list_images(shared / "data" / folder):
            _link(path, out / "test" / name / "gt" / path.name)
            work.append((_lq, path, out / "test" / name / "lq" / f"{path.stem}.png"))
    for name, folder in ANSWERS.items():
        for kind in ("train", "Set5", "Set14"):
            _link(shared / "answers" / folder / kind, out / "answers" / name / kind)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for call in [pool.submit(make, source, target) for make, source, target in work if not target.exists()]:
            call.result()
    for weights in ("EDSR_8b64f_x2.pth",):
        _link(shared / "weights" / weights, out / "weights" / weights)
    names = sorted(path.name for path in (out / "train").glob("g_*.png"))
    for number in PHOTOS:
        text = "\n".join(names[:: len(names) // number][:number]) + "\n"
        (out / f"photos_{number}.txt").write_text(text, encoding="utf-8")
    bsds = sorted(path.name for path in (out / "train").glob("b_*.png"))
    (out / "bsds.txt").write_text("\n".join(bsds) + "\n", encoding="utf-8")
    folders = {"train": out / "train", "Set5": out / "test/Set5/gt", "Set14": out / "test/Set14/gt"}
    every = [(path, f"{kind}/{path.stem}.png") for kind, folder in folders.items() for path in list_images(folder)]
    few = [(out / "train" / name, f"train/{name}") for name in (out / "photos_5.txt").read_text().split()]
    for name, images, scale, turned in (
        ("craft", every, SCALE, False),
        ("craft_x3", every, 3, False),
        ("craft_x8", few, SCALE, True),
    ):
        answer(shared / "weights/CRAFT_x4.pth", images, out / "answers" / name, scale, turned=turned)


def answer(weights: Path, images: list[tuple[Path, str]], out: Path, scale: int, *, turned: bool) -> None:
    """The x4 network in `weights` answers the lq of gt `images`, each as the image of `scale` that it is paired with.

    Args:
        turned: the mean over eight turned and mirrored images.
    """
    work = [(source, out / name) for source, name in images if not (out / name).exists()]
    if not work:
        return
    net = build.build_network(NetworkOptions(type="spandrel"), SCALE).eval()
    build.load_weights(net, str(weights))
    net = build.as_scale(net, scale)
    for number, (source, target) in enumerate(work):
        lq = to_tensor(bicubic_lq(read_image(source), scale))
        with torch.no_grad():
            sr = self_ensemble(net, lq) if turned else net(lq)
        write_image(target, to_image(sr))
        if number % 20 == 0:
            print(f"{out.name}: {number} of {len(work)} images", flush=True)


def _crop(source: Path, target: Path) -> None:
    image = read_image(source)
    height, width = (min(SIDE, side // SCALE * SCALE) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    write_image(target, image[top : top + height, left : left + width])


def _lq(source: Path, target: Path) -> None:
    write_image(target, bicubic_lq(read_image(source), SCALE))


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=source.is_dir())


def main() -> None:
    """Read the command line and lay out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with data/ and answers/")
    parser.add_argument("out", type=Path, help="folder to fill, DATA of the grid")
    args = parser.parse_args()
    lay_out(args.shared, args.out)


if __name__ == "__main__":
    main()
