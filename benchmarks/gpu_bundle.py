"""Fill `.gpu/` with what a GPU machine without a package index needs to run `benchmarks/gpu.py`.

    make gpu-bundle                          # or: python benchmarks/gpu_bundle.py --python python3.12
    bash .gpu/run.sh --minutes 8 --out OUT   # there; arguments are those of gpu.py

In it: wheels for the Python of that machine, of the versions in constraints.txt; training crops, answers, teacher and
test images of `benchmarks/gpu_x4.yml`, from `../shared` or $MTKD_SHARED when it is there; the commit; and `run.sh`.
The sum of what will travel, the repository's own files included, is printed, and more than 60 MiB is an error.

The wheels are tried here first: `--python` makes an environment that holds what the machine lists, and nothing else
(`.cache/gpu-python`, about 5 GB, made once), and imports everything from it through `run.sh`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / ".gpu"
ENVIRONMENT = ROOT / ".cache/gpu-python"
LIMIT = 60 * 2**20
PYTHON = "3.12"
TORCH = ("torch", "torchvision")
THERE = (
    "numpy opencv-python-headless einops filelock rich safetensors scikit-image scipy matplotlib pillow pyyaml pytest "
    "pytest-timeout pytest-xdist tqdm requests packaging typing-extensions hypothesis lightning-utilities tensorboard "
    "psutil jinja2"
).split()
"""Packages, beside torch and torchvision, that the machine has."""
MISSING = (
    "basicsr addict future yapf lmdb pytorch-wavelets PyWavelets lpips pydantic pydantic_core annotated-types "
    "typing-inspection lightning-fabric pooch platformdirs spandrel torch-dct setuptools pytorch-msssim DISTS-pytorch"
).split()
"""Packages that it lacks, with what they need and it lacks too."""
IMPORTS = (
    "basicsr, pytorch_wavelets, pywt, lpips, pytorch_msssim, DISTS_pytorch, pydantic, lightning_fabric, pooch, lmdb, "
    "spandrel, torch_dct, jinja2, pkg_resources, mtkd.basicsr, mtkd.cli, mtkd.training.loop, mtkd.inference.run_test, "
    "mtkd.bench.report, mtkd.bench.mps, speed, "
    "measures.cells, measures.stage2, measures.training, measures.attention, measures.inference, measures.wavelet, "
    "measures.scaling, measures.graphs"
)
"""What must import there."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
SCALE, SIDE = 4, 256
"""Longest side of a training crop: `answers` are of these crops."""
EACH, CROP = 50, 128
"""Training images of BSDS500 and of General100 each, with their answers what there is room for; none is smaller than
the grid's gt_size.
"""
ANSWERS = {"hitsr": "hitsr_x4", "vapsr": "vapsr_x4"}
"""Teacher of the grid -> folder of its answers."""
RUN = """\
#!/usr/bin/env bash
# Install the wheels beside this file into a folder of their own, then run benchmarks/gpu.py with the given arguments.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
site=${MTKD_SITE:-${TMPDIR:-/tmp}/mtkd-site}
python=${PYTHON:-python3}
if [ ! -e "$site/.installed" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \\
        --upgrade --target "$site" "$here"/wheels/*.whl
    touch "$site/.installed"
fi
export PYTHONPATH="$site:$here/..:$here/../benchmarks" PYTHONUNBUFFERED=1
if [ "${1:-}" = --import ]; then
    exec "$python" -c "$2"
fi
exec "$python" "$here/../benchmarks/gpu.py" "$@"
"""


def main() -> None:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=f"python{PYTHON}", help="interpreter of the import check; '' leaves it out")
    args = parser.parse_args()
    BUNDLE.mkdir(exist_ok=True)
    wheels(BUNDLE / "wheels")
    shared = Path(os.environ.get("MTKD_SHARED") or ROOT.parent / "shared")
    if shared.is_dir():
        data(shared, BUNDLE / "data")
    else:
        print(f"{shared} is not there: the bundle holds no images, and --parts train needs a --grid of its own.")
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=ROOT, **TEXT)
    (BUNDLE / "commit").write_text(commit.stdout)
    run = BUNDLE / "run.sh"
    run.write_text(RUN)
    run.chmod(0o755)
    weigh()
    if (BUNDLE / "data").exists():
        try_data()
    if args.python:
        try_imports(args.python)


TEXT = {"capture_output": True, "text": True, "check": True}


def versions() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {_plain(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wheels(folder: Path) -> None:
    """One wheel of each missing package; those that are there stay, others go."""
    folder.mkdir(exist_ok=True)
    pinned = versions()
    wanted = {_plain(name): pinned[_plain(name)] for name in MISSING}
    have = {}
    for file in folder.glob("*.whl"):
        name, version = file.name.split("-")[:2]
        if wanted.get(_plain(name)) == version:
            have[_plain(name)] = file
        else:
            file.unlink()
    for name, version in wanted.items():
        if name in have:
            continue
        print(f"wheel: {name} {version}", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        platforms = [part for name_ in PLATFORMS for part in ("--platform", name_)]
        download = [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, *platforms]
        done = subprocess.run([*download, "-d", str(folder), f"{name}=={version}"], capture_output=True, text=True)
        if done.returncode:
            # Published as source only: pure Python, so a wheel made here serves there.
            build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), f"{name}=={version}"]
            subprocess.run(build, check=True)
            (made,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
            if not made.name.endswith("-none-any.whl"):
                raise SystemExit(f"{made.name} is for the machine it was made on, not for Python {PYTHON}.")


def data(shared: Path, folder: Path) -> None:
    """Training crops and their answers, the teacher, and test images, as `benchmarks/gpu_x4.yml` names them."""
    # Here and not above: --help needs no torch.
    from mtkd.data.resize import bicubic_lq

    answers = shared / "answers"
    shutil.rmtree(folder, ignore_errors=True)
    for source in chosen(answers / ANSWERS["hitsr"] / "train"):
        kind, name = source.stem.split("_", 1)
        origin = {"b": f"BSDS500_train/{name}.jpg", "g": f"General100/{name}.webp"}[kind]
        with Image.open(shared / "data/train" / origin) as image:
            width, height = (min(SIDE, side // SCALE * SCALE) for side in image.size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            save(image.convert("RGB").crop((left, top, left + width, top + height)), folder / "train" / source.name)
        for teacher, answered in ANSWERS.items():
            copy(answers / answered / "train" / source.name, folder / "answers" / teacher / "train" / source.name)
    for teacher, answered in ANSWERS.items():
        for source in sorted((answers / answered / "Set5").iterdir()):
            copy(source, folder / "answers" / teacher / "Set5" / source.name)
    copy(shared / "weights/CRAFT_x4.pth", folder / "CRAFT_x4.pth")
    for name in ("Set5", "Set14", "B100"):
        for source in sorted((shared / "data/test" / name / "HR").iterdir()):
            place = folder / "test" / name
            with Image.open(source) as image:
                gt = image.convert("RGB")
            if source.suffix == ".png":
                save(gt, place / "gt" / f"{source.stem}.webp")  # a quarter smaller
            else:
                copy(source, place / "gt" / source.name)
            # So that no run makes them again.
            save(Image.fromarray(bicubic_lq(np.array(gt), SCALE)), place / "lq" / f"{source.stem}.webp")


def save(image: Image.Image, target: Path) -> None:
    """Write an image without loss into a folder that need not be there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, lossless=True, method=6)


def chosen(answers: Path) -> Iterator[Path]:
    """The answers whose images are trained on."""
    for kind in "bg":
        large = []
        for file in sorted(answers.glob(f"{kind}_*")):
            with Image.open(file) as image:
                if min(image.size) >= CROP:
                    large.append(file)
        yield from large[:EACH]


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that need not be there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def weigh() -> None:
    """Print what will travel, and end with an error when it is too much."""
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, **TEXT).stdout
    sizes = {"repository": sum((ROOT / name).stat().st_size for name in listed.split("\0") if (ROOT / name).is_file())}
    for path in sorted(BUNDLE.iterdir()):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sizes[f".gpu/{path.name}"] = sum(file.stat().st_size for file in files)
    for name, size in sizes.items():
        print(f"{name:20} {size / 2**20:8.2f} MiB")
    total = sum(sizes.values())
    print(f"{'sum':20} {total / 2**20:8.2f} MiB, at most {LIMIT / 2**20:.0f}")
    if total > LIMIT:
        raise SystemExit("Too much to travel: leave something out.")


def try_data() -> None:
    """Check a cell of every row and the fusion network of the grid against the images."""
    from mtkd.bench.grid import load_grid
    from mtkd.bench.jobs import plan
    from mtkd.config import make_options
    from mtkd.training.check import check_data

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as out:
        grid = load_grid(ROOT / "benchmarks/gpu_x4.yml")
        for job in plan(grid, Path(out)).jobs:
            if job.cell is None or job.cell.seed != grid.seeds[0]:
                continue
            # The stores are made there, and so is the GPU.
            given = {**job.cell.options, "num_gpu": 0}
            if given.pop("target_store", None):
                kept = {key: value for key, value in given["train"].items() if not key.endswith("_opt")}
                given |= {"model_type": "SRModel", "train": {**kept, "pixel_opt": {"type": "L1Loss"}}}
            if problems := check_data(make_options(given)):
                raise SystemExit(f"{job.name}: " + "; ".join(map(str, problems)))
    print("images: fit every row of the grid")


def try_imports(python: str) -> None:
    """Import everything in an environment with what the machine has, through `run.sh`."""
    if shutil.which(python) is None:
        raise SystemExit(f"{python} is not there: name another interpreter with --python, or --python '' for no check.")
    inside = ENVIRONMENT / "bin/python"
    if not (ENVIRONMENT / ".installed").exists():
        print(f"Building {ENVIRONMENT.relative_to(ROOT)}: about 5 GB, a few minutes.", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pinned = versions()
        torch = [f"{name}=={pinned[name]}" for name in TORCH]
        pip = [str(inside), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *torch, *THERE], check=True)
        (ENVIRONMENT / ".installed").touch()
    site = ROOT / ".cache/gpu-site"
    shutil.rmtree(site, ignore_errors=True)
    environment = {**os.environ, "PYTHON": str(inside), "MTKD_SITE": str(site)}
    environment.pop("PYTHONPATH", None)
    script = f"import mtkd.basicsr; import {IMPORTS}; print('imports: all there')"
    subprocess.run(["bash", str(BUNDLE / "run.sh"), "--import", script], env=environment, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
