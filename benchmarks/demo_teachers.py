"""Train the demo's three teachers and record what they are worth.

    python benchmarks/demo_teachers.py --images BSDS500/train BSDS500/test General100 --test Kodak24 Set5/HR

trains `options/demo/teacher.yml` with three networks on all images of the folders together, writes the weights to
`datasets/demo/teachers/` and the numbers, with hardware and versions, to `benchmarks/results/demo_teachers.json`. The
images must not include those of `datasets/demo/test` or of the test folders. On two CPU cores it takes about an hour;
a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch

from mtkd import zoo
from mtkd.config import load_options
from mtkd.contracts import MtkdError
from mtkd.data.images import list_images
from mtkd.data.paired import PairedImages
from mtkd.inference.evaluate import build_metrics, evaluate
from mtkd.training.log import environment
from mtkd.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
TEACHERS = {
    "edsr": ("name=teacher_edsr_x2",),
    "rcan": ("name=teacher_rcan_x2", "network_g=rcan_demo"),
    "swinir": (
        "name=teacher_swinir_x2",
        "network_g=swinir_demo",
        "datasets:train:batch_size_per_gpu=8",
        "train:optim_g:lr=2e-3",
        "train:scheduler:periods=[6000]",
        "train:total_iter=6000",
    ),
}
"""What each changes in `options/demo/teacher.yml`."""
METRICS = {
    "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
    "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
}


def main() -> None:
    about = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--images", nargs="+", type=Path, required=True, help="folders of training photographs")
    parser.add_argument("--test", nargs="*", type=Path, default=[], help="folders of gt images to measure on")
    parser.add_argument("--only", nargs="+", choices=TEACHERS, default=TEACHERS)
    parser.add_argument("--work", type=Path, default=Path("experiments/demo_teachers"), help="folder for the runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    photographs = gather(args.images, args.work / "photographs")
    out = ROOT / "datasets/demo/teachers"
    results = ROOT / "benchmarks/results/demo_teachers.json"
    for name in args.only:
        began = time.perf_counter()
        options = load_options(
            ROOT / "options/demo/teacher.yml",
            force=[
                *TEACHERS[name],
                f"datasets:train:dataroot_gt={photographs}",
                f"path:experiments_root={args.work}",
            ],
        )
        weights = train(options, auto_resume=True)
        zoo.convert(weights, out / f"{name}_x2.safetensors", to="safetensors")
        net = zoo.build(str(out / f"{name}_x2.safetensors")).eval()
        scores = {}
        for folder in [ROOT / "datasets/demo/test", *args.test]:
            images = PairedImages(dataroot_gt=str(folder), scale=2)
            label = "/".join(folder.resolve().parts[-2:])
            scores[label] = evaluate(net, images, build_metrics(METRICS), dataset=label).means()
        # Read again: another call may have recorded its teacher meanwhile.
        record = json.loads(results.read_text()) if results.exists() else {}
        record[name] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "iterations": options.train.total_iter if options.train else None,
            "training_images": len(list_images(photographs)),
            "psnr_y_ssim_y": scores,
            "seconds_of_the_last_call": round(time.perf_counter() - began, 1),
            "command": "python " + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "environment": environment(),
        }
        results.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {scores}")


def gather(folders: list[Path], target: Path) -> Path:
    """One folder with a link to every image of `folders`."""
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        for image in list_images(folder):
            link = target / image.name
            if not link.exists():
                link.symlink_to(image.resolve())
            elif link.resolve() != image.resolve():
                raise MtkdError(f"{image} and {link.resolve()} have the same name; rename one.")
    return target


if __name__ == "__main__":
    main()
