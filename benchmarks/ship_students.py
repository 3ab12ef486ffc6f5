"""Put the students of `students_x2.yml`, `students_x3.yml` and `students_x4.yml` into the package, with a card of each.

python benchmarks/ship_students.py [--grids .cache/grid]

For each student: the last weights of its run, folded (`PlainSR.deployable`) and compared with the network that was
trained; `mtkd/zoo/students/NAME.safetensors`, NAME.md, and a line in index.json. Scores are those of the grid, which
must have measured the cell; bicubic's are measured here.
"""

from __future__ import annotations

import argparse
import functools
import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import mtkd
from mtkd import catalog, zoo
from mtkd.data.paired import PairedImages
from mtkd.inference.baselines import Bicubic
from mtkd.inference.evaluate import build_metrics, evaluate
from mtkd.metrics.complexity import complexity
from mtkd.runtime.environment import environment
from mtkd.runtime.files import atomic, sha256
from mtkd.variants import variant
from mtkd.zoo.students import FOLDER

SETS = ("Set5", "Set14", "B100", "Urban100")


@dataclass(frozen=True)
class Student:
    """A shipped network: `row` of the grid of its scale, and who taught it."""

    network: str
    scale: int
    row: str
    teachers: str

    @property
    def name(self) -> str:
        return f"{self.network}_x{self.scale}"


THREE = "the mean of HiT-SRF (32.55 dB on Set5), CRAFT (32.42) and VapSR (32.40)"
STUDENTS = (
    Student("tiny", 2, "recipe", "EDSR with 8 blocks of 64 features (37.80 dB on Set5)"),
    Student("tiny", 3, "recipe", "CRAFT of x4, its images made 3/4 as large (34.59 dB on Set5)"),
    Student("tiny", 4, "recipe", THREE),
    Student("small", 4, "recipe", THREE),
)

# Name, parameters, multiply-adds of a 1280x720 output, {set: (PSNR, SSIM)}, source. FSRCNN's are counted as ours are:
# printed ones count its deconvolution at every output pixel.
_COMMON = "MoreMNAS's repository, README"
_BLOG = "table of the author of SESR (ICPR 2018)"
PUBLISHED: dict[int, list[tuple[str, str, str, dict[str, tuple[float, float]], str]]] = {
    2: [
        (
            "FSRCNN",
            "12 k",
            "2.87 G",
            {"Set5": (37.00, 0.9558), "Set14": (32.63, 0.9088), "B100": (31.53, 0.8920), "Urban100": (29.88, 0.9020)},
            _COMMON,
        ),
        (
            "MoreMNAS-C",
            "25 k",
            "5.5 G",
            {"Set5": (37.06, 0.9561), "Set14": (32.75, 0.9094), "B100": (31.50, 0.8904), "Urban100": (29.92, 0.9023)},
            _COMMON,
        ),
    ],
    3: [
        ("FSRCNN", "12 k", "1.28 G", {"Set5": (33.06, 0.9128), "Set14": (29.37, 0.8231)}, "its paper (ECCV 2016)"),
        (
            "VDSR",
            "665 k",
            "612.6 G",
            {"Set5": (33.66, 0.9213), "Set14": (29.77, 0.8314), "B100": (28.82, 0.7976), "Urban100": (27.14, 0.8279)},
            "its paper (CVPR 2016)",
        ),
    ],
    4: [
        (
            "FSRCNN",
            "12 k",
            "0.72 G",
            {"Set5": (30.72, 0.866), "Set14": (27.61, 0.755), "B100": (26.98, 0.715), "Urban100": (24.62, 0.728)},
            _BLOG,
        ),
        (
            "VDSR",
            "665 k",
            "612.6 G",
            {"Set5": (31.35, 0.883), "Set14": (28.02, 0.768), "B100": (27.29, 0.726), "Urban100": (25.18, 0.754)},
            _BLOG,
        ),
        (
            "ECBSR-M16C64",
            "603 k",
            "34.7 G",
            {"Set5": (31.92, 0.8946), "Set14": (28.34, 0.7817), "B100": (27.48, 0.7393), "Urban100": (25.81, 0.7773)},
            "README of neuralchen/SuperResolution_Log, which repeats the paper's (ACM MM 2021); none of its smaller "
            "networks was found",
        ),
    ],
}

CARD = """\
# {name}

PlainSR x{scale}: {num_conv} convolutions between the first and the last, {num_feat} features, {params:,} parameters,
{gmacs:.2f} G multiply-adds for a 1280x720 output. Colours are enlarged bicubically, the network adds brightness.

{use}

| x{scale}, PSNR-Y / SSIM-Y, border = scale | parameters | multiply-adds | {sets} |
|---|---:|---:|{rules}
{rows}

{sources}
- Trained on the centre crops (256x256) of 199 images of BSDS500 and 100 of General100, lq by MATLAB's bicubic rule.
- {teaching}
- {iterations:,} iterations of 16 crops with 24x24 lq pixels, Adam 2e-3, cosine, one run, seed 10; the last weights.
  Kernels were sums of branches in training and are folded.
- Made by `mtkd bench benchmarks/students_x{scale}.yml` and `python benchmarks/ship_students.py`; measured with
  {versions}.
- For photographs that were made smaller by a bicubic filter. Noise, blur and compression of a camera stay, or get
  sharper.
- Licence: Apache-2.0 for the weights; the training images were released for research.
"""


def ship(student: Student, grids: Path, iterations: int) -> dict[str, Any]:
    """Write the weights and the card of `student`; its entry of the index.

    Raises:
        FileNotFoundError: the cell has not been trained or measured.
    """
    out = grids / f"students_x{student.scale}"
    cell = f"{student.row}_{student.network}_x{student.scale}_{iterations}_s10"
    described = variant(student.network)
    described["upscale"] = student.scale
    trained = catalog.make_network(described.pop("type"), described)
    scores = _scores(out, cell)
    weights = out / "runs" / cell / "models" / "net_g_latest.pth"
    zoo.load_into(trained, zoo.read_checkpoint(weights).state, source=str(weights))
    net = trained.eval().deployable()  # pyright: ignore[reportCallIssue]
    # In double precision: the rounding of float32 sums, up to 1e-6 by itself, is not what folding changes.
    image = torch.rand(1, 3, 61, 67, dtype=torch.float64)
    with torch.no_grad():
        difference = float((deepcopy(net).double()(image) - deepcopy(trained).double()(image)).abs().max())
    assert difference < 1e-6, f"{student.name}: folding changed the output by {difference}"
    arguments = {key: value for key, value in described.items() if key != "expand"}
    cost = complexity(net)
    data = "BSDS500 train, General100 (299 crops)"
    facts = {
        "name": student.name,
        "arch": {"type": "PlainSR", "args": arguments},
        "scale": student.scale,
        "data": data,
        "licence": "Apache-2.0",
        "teachers": student.teachers,
        "iterations": iterations,
        "mtkd": mtkd.__version__,
    }
    path = FOLDER / f"{student.name}.safetensors"
    zoo.write_safetensors(path, net.state_dict(), facts)
    _write(FOLDER / f"{student.name}.md", _card(student, arguments, cost, scores, out, iterations))
    learned = f"the recipe, from {student.teachers}" if student.teachers else "ground truth; no teacher was at hand"
    return {
        "arch": "PlainSR",
        "args": arguments,
        "scale": student.scale,
        "data": data,
        "params": cost.params,
        "licence": "Apache-2.0",
        "paper": "mtkd.archs.plain",
        "note": f"Comes with the package. Learned {learned}. Card: mtkd/zoo/students/{student.name}.md.",
        "scores": {name: [round(psnr, 2), round(ssim, 4)] for name, (psnr, ssim) in scores.items()},
        "sha256": sha256(path),
        "size": path.stat().st_size,
    }


def _scores(out: Path, cell: str) -> dict[str, tuple[float, float]]:
    measured = json.loads((out / "scores" / f"{cell}.json").read_text(encoding="utf-8"))
    (row,) = measured["rows"].values()
    return {
        name: (float(np.mean(row["sets"][name]["psnr"])), float(np.mean(row["sets"][name]["ssim"]))) for name in SETS
    }


def _card(student: Student, arguments: dict[str, Any], cost: Any, scores: Any, out: Path, iterations: int) -> str:
    scale = student.scale
    gmacs = cost.macs / 1e9
    rows = [
        _row("bicubic", "", "", bicubic(out, scale)),
        _row(f"**{student.name}**", f"{cost.params:,}", f"{gmacs:.2f} G", scores),
    ]
    if student.row != "scratch":
        try:
            alone = _scores(out, f"scratch_{student.network}_x{scale}_{iterations}_s10")
            rows.append(_row("the same, trained as long on ground truth", f"{cost.params:,}", f"{gmacs:.2f} G", alone))
        except FileNotFoundError:
            pass
    rows += [_row(f"{name} (published)", *numbers) for name, *numbers, _ in PUBLISHED[scale]]
    sources = [f"- {name}'s figures: {source}." for name, _, _, _, source in PUBLISHED[scale]]
    taught = f"Taught by {student.teachers}, without ground truth: L1, and Charbonnier on the Haar detail bands."
    return CARD.format(
        name=student.name,
        scale=scale,
        num_conv=arguments["num_conv"],
        num_feat=arguments["num_feat"],
        params=cost.params,
        gmacs=gmacs,
        use=f'`mtkd upscale photo.jpg out.png --weights {student.name}`, `mtkd.load("{student.name}")`.',
        sets=" | ".join(SETS),
        rules="---:|" * len(SETS),
        rows="\n".join(rows),
        sources="\n".join(sources) + ("\n" if sources else ""),
        teaching=taught if student.teachers else "Trained on ground truth (L1): no teacher of this scale was at hand.",
        iterations=iterations,
        versions=_versions(),
    ).replace("\n\n\n", "\n\n")


@functools.cache
def _versions() -> str:
    here = environment()
    return f"torch {here['versions']['torch']} on {here['device']}, commit {here['commit']}"


def _row(name: str, params: str, macs: str, scores: dict[str, tuple[float, float]]) -> str:
    cells = [f"{scores[s][0]:.2f} / {scores[s][1]:.4f}" if s in scores else "" for s in SETS]
    return f"| {' | '.join([name, params, macs, *cells])} |"


def bicubic(out: Path, scale: int) -> dict[str, tuple[float, float]]:
    """PSNR-Y and SSIM-Y of bicubic interpolation; kept beside the grid, because it takes a minute."""
    kept = out / "bicubic.json"
    if not kept.exists():
        grid = yaml.safe_load((Path(__file__).parent / f"students_x{scale}.yml").read_text(encoding="utf-8"))["test"]
        found = {}
        for section in grid["datasets"].values():
            roots = {key: path.format(data=out.parent / "data") for key, path in section.items() if "root" in key}
            images = PairedImages(scale=scale, **roots)
            report = evaluate(Bicubic(scale), images, build_metrics(grid["metrics"]), dataset=section["name"])
            found[section["name"]] = list(report.means().values())
        _write(kept, json.dumps(found))
    return {name: tuple(values) for name, values in json.loads(kept.read_text(encoding="utf-8")).items()}


def _write(path: Path, text: str) -> None:
    with atomic(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def main() -> None:
    """Ship what has been trained and measured; say what has not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=Path, default=Path(".cache/grid"), help="folder of the grids' folders")
    parser.add_argument("--iterations", type=int, default=40000)
    args = parser.parse_args()
    _versions()  # before the first file is written, which makes the tree another one
    FOLDER.mkdir(exist_ok=True)
    listed = FOLDER / "index.json"
    index = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    for student in STUDENTS:
        try:
            index[student.name] = ship(student, args.grids, args.iterations)
            print(f"{student.name}: {index[student.name]['size'] / 1e3:.0f} kB, {index[student.name]['scores']}")
        except FileNotFoundError as error:
            print(f"{student.name}: not yet ({error})")
    _write(listed, json.dumps(dict(sorted(index.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
