"""`mtkd demo`: the whole of MTKD in minutes on a CPU, on real photographs, with an honest table at the end.

Three small teachers (their weights come with mtkd) -> fusion training -> targets, computed once -> four students
with the same start, the same batches and the same iterations -> a table, curves and side-by-side crops. Every run is
an ordinary option file of `options/demo`; this module only fills in folders and calls the functions behind `mtkd
train`, `mtkd teach` and `mtkd test`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mtkd import build, zoo
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.build import build_image_set
from mtkd.config import Options, load_options
from mtkd.inference.baselines import Bicubic, Memoized
from mtkd.inference.evaluate import Evaluation, build_metrics, evaluate
from mtkd.inference.results import free_folder, write_results
from mtkd.runtime import shipped
from mtkd.runtime.environment import environment
from mtkd.targets.make import teach
from mtkd.training.loop import train

STUDENTS = {
    "scratch": "student, from scratch (ground truth only)",
    "output_kd": "student, output distillation",
    "mtkd_paper": "student, MTKD (the paper's loss)",
    "mtkd_ours": "student, MTKD (our recipe)",
}
QUICK = ("train:total_iter=8", "logger:print_freq=4", "logger:save_checkpoint_freq=8")
CROPS = (("kodim05", 390, 210), ("kodim08", 290, 650), ("kodim19", 455, 200))
"""(image, top, left) of the crops shown side by side, in gt pixels."""
CROP_SIZE = 96


def demo(out: Path, *, quick: bool = False) -> list[dict[str, Any]]:
    """Run the demo into `out` (or `out_2`, ... when it exists) and return the rows of its table.

    Args:
        quick: eight iterations a run: it shows that everything works, and its numbers mean nothing.

    Raises:
        MtkdError: scikit-image is missing.
    """
    began = time.perf_counter()
    data = shipped.file("datasets/demo")
    recipes = shipped.file("options/demo")
    folder = free_folder(out)
    force = [
        f"datasets:train:dataroot_gt={shipped.photographs()}",
        f"datasets:train:meta_info_file={data / 'train_photographs.txt'}",
        f"path:experiments_root={folder}",
        *(QUICK if quick else ()),
    ]
    teachers = [
        f"teachers:{name}:pretrain={data / 'teachers' / f'{name}_x2.safetensors'}"
        for name in ("edsr", "rcan", "swinir")
    ]

    def options(name: str, *more: str) -> Options:
        return load_options(recipes / f"{name}.yml", force=[*force, *more])

    validation = f"datasets:val:dataroot_gt={data / 'test'}"

    print("1. Train the fusion network on the three teachers' images.")
    fusion_weights = train(options("fusion", *teachers))
    print("2. Run the fused teacher once over every training image.")
    store = folder / "targets.safetensors"
    fused = [*teachers, f"fusion:pretrain={fusion_weights}", f"target_store={store}"]
    stage2 = options("mtkd_paper", validation, *fused)
    teach(stage2, store)
    weights: dict[str, Path] = {}
    for number, (name, about) in enumerate(STUDENTS.items(), start=3):
        print(f"{number}. Train the {about}.")
        weights[name] = train(options(name, validation, *(() if name == "scratch" else fused)))

    print("7. Measure all networks on photographs that none of them was trained on.")
    rows, shown, evaluations = measure(stage2, weights)
    facts = {"environment": environment(), "seconds": round(time.perf_counter() - began, 1), "table": rows}
    write_results(folder, evaluations, facts)
    text = markdown(rows)
    (folder / "table.md").write_text(text, encoding="utf-8")
    curves(folder, list(STUDENTS))
    crops(folder / "crops.png", shown)
    _show(rows, f"x2, {len(evaluations[0][1].images)} Kodak photographs, PSNR and SSIM on Y, {facts['seconds']:.0f} s")
    print(f"Table, numbers with hardware and versions, curves and crops: {folder}")
    return rows


def measure(
    options: Options, weights: dict[str, Path]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, np.ndarray]], list[tuple[str, Evaluation]]]:
    """Rows of the table, the images of every network by name, and the evaluations, on the demo's test images."""
    images = build_image_set(options.datasets.evaluation["val"], options.scale)
    metrics = build_metrics(options.val.metrics)
    (fused,) = build.build_teachers(options).values()
    assert isinstance(fused, FusedTeacher)
    members = {name: Memoized(net, room=1 << 30) for name, net in fused.ensemble.members.items()}
    ensemble = Ensemble(members)
    networks: dict[str, nn.Module] = {"bicubic": Bicubic(options.scale)}
    networks |= {f"teacher {name}": net for name, net in members.items()}
    networks["mean of the teachers"] = FusedTeacher(ensemble, MeanFusion(len(members))).eval()
    networks["fused teachers (DCTSwin)"] = FusedTeacher(ensemble, fused.fusion).eval()
    networks |= {STUDENTS[name]: zoo.build(str(path)).eval() for name, path in weights.items()}
    rows, evaluations = [], []
    shown: dict[str, dict[str, np.ndarray]] = {}
    for name, net in networks.items():
        shown[name] = {}
        result = evaluate(net, images, metrics, dataset="Kodak", save=shown[name].__setitem__)
        evaluations.append((name, result))
        parameters = sum(p.numel() for p in net.parameters())
        rows.append({"network": name, "parameters": parameters, **result.means()})
    shown["ground truth"] = {image.name: image.gt for image in images}
    return rows, shown, evaluations


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| network | parameters | PSNR-Y (dB) | SSIM-Y |", "|---|---:|---:|---:|"]
    for row in rows:
        lines.append(f"| {row['network']} | {_count(row)} | {row['psnr']:.3f} | {row['ssim']:.4f} |")
    return "\n".join(lines) + "\n"


def curves(folder: Path, names: Sequence[str]) -> None:
    """Draw `curves.png`: PSNR-Y of every student over its training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in names:
        text = (folder / f"demo_{name}" / "metrics.jsonl").read_text(encoding="utf-8")
        points = [
            (row["step"], row["metrics"]["psnr"]) for row in map(json.loads, text.splitlines()) if "metrics" in row
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=STUDENTS[name])
    axes.set(xlabel="iteration", ylabel="PSNR-Y (dB)", title="Students on photographs they were not trained on, x2")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "curves.png", dpi=120)


def crops(path: Path, shown: dict[str, dict[str, np.ndarray]]) -> None:
    """Draw the same crop of every network's image side by side, the ground truth last."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * len(shown), 2.3 * len(CROPS)), layout="constrained")
    grid = figure.subplots(len(CROPS), len(shown), squeeze=False)
    for line, (image, top, left) in zip(grid, CROPS, strict=True):
        for axes, (label, images) in zip(line, shown.items(), strict=True):
            axes.imshow(images[image][top : top + CROP_SIZE, left : left + CROP_SIZE], interpolation="nearest")
            axes.set_axis_off()
            if image == CROPS[0][0]:
                axes.set_title(label.replace(" (", "\n(").replace(", ", ",\n"), fontsize=8)
    figure.savefig(path, dpi=130)


def _count(row: dict[str, Any]) -> str:
    return f"{row['parameters']:,d}" if row["parameters"] else "-"


def _show(rows: Sequence[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("network")
    for name in ("parameters", "PSNR-Y (dB)", "SSIM-Y"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["network"], _count(row), f"{row['psnr']:.3f}", f"{row['ssim']:.4f}")
    Console(width=100).print(table)
