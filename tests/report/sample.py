"""A report as a grid makes it: real photographs, and rows whose answers lie between bicubic and ground truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mtkd.data.images import list_images, read_image
from mtkd.data.resize import bicubic_lq, imresize
from mtkd.metrics.psnr import psnr
from mtkd.metrics.ssim import ssim
from mtkd.report.content import Curve, Picture, Published, Report, Row
from mtkd.report.pictures import cropped
from mtkd.runtime.pixels import to_image, to_tensor

DEMO = Path(__file__).parents[2] / "datasets/demo/test"
Image = NDArray[np.uint8]
STUDENTS = {
    "scratch": (0.62, 1.30, ""),
    "output KD, 1:1": (0.635, 1.27, "gt and one teacher in equal parts"),
    "FAKD": (0.637, 1.28, ""),
    "SRKD": (0.621, 1.30, ""),
    "PISR": (0.60, 1.20, "its teacher saw gt"),
    "MTKD": (0.66, 1.22, "paper's loss, fused target"),
    "MTKD, ours": (0.67, 1.20, "details of the target alone"),
}
"""Row -> how far from bicubic to the teachers' mean, sigma of its blur in pixels, note."""

KINDS: dict[str, Any] = {"bicubic": "baseline", "mean of the teachers": "ensemble"}


def demo_images(count: int = 3, side: int = 160) -> dict[str, dict[str, Image]]:
    """Parts of the photographs that come with the repository: data set -> name -> gt."""
    found = {path.stem: read_image(path)[80 : 80 + side, 120 : 120 + side + 16] for path in list_images(DEMO)}
    names = list(found)[:count]
    return {"Kodak": {name: np.ascontiguousarray(found[name]) for name in names}}


def bicubic_of(gt: Image, scale: int) -> Image:
    """gt made small and large again."""
    return to_image(imresize(to_tensor(bicubic_lq(gt, scale)), scale))


def scores_of(answers: Mapping[str, Sequence[Sequence[Image]]], images: Mapping[str, Mapping[str, Image]], scale: int):
    """Data set -> answers of each seed -> `Scores`."""
    found: dict[str, dict[str, Any]] = {}
    for dataset, seeds in answers.items():
        gts = list(images[dataset].values())
        values = {"psnr": psnr, "ssim": ssim}
        found[dataset] = {
            metric: np.array(
                [
                    [
                        float(function(to_tensor(sr), to_tensor(gt), crop_border=scale, test_y_channel=True)[0])
                        for sr, gt in zip(seed, gts)
                    ]
                    for seed in seeds
                ]
            )
            for metric, function in values.items()
        }
    return found


def between(bicubic: Image, best: Image, part: float, sigma: float, noise: float, seed: int) -> Image:
    """A student's answer: `part` of the way from bicubic to a blurred `best`, its details a little wrong."""
    random = np.random.default_rng(seed)
    goal = gaussian_filter(best.astype(float), (sigma, sigma, 0))
    goal = goal + part * (best - goal)
    wrong = gaussian_filter(random.normal(size=best.shape), (1, 1, 0)) * noise * 3
    return np.clip(np.rint(bicubic + (goal - bicubic) * part + wrong), 0, 255).astype(np.uint8)


def curves_of(final: float, seed: int, pace: float, before: float, total: int = 20_000) -> Curve:
    random = np.random.default_rng(1000 + seed)
    steps = list(range(total // 10, total + 1, total // 10))
    values = [final - 1.2 * np.exp(-4 * step / total) + random.normal() * 0.008 for step in steps]
    return Curve(
        seed=seed,
        iterations=steps,
        seconds=[before + pace * step for step in steps],
        values=[float(value) for value in values],
        dataset="Kodak",
        metric="psnr",
    )


def make_report(
    images: Mapping[str, Mapping[str, Image]],
    teachers: Mapping[str, Mapping[str, Mapping[str, Image]]] | None = None,
    *,
    scale: int = 4,
    groups: Mapping[str, float] = {"EDSR-S x4, 20k": 0.0},
    seeds: Sequence[int] = (10, 20, 30),
    shown: int = 2,
    students: Mapping[str, tuple[float, float, str]] = STUDENTS,
) -> Report:
    """A report over `images` (data set -> name -> gt).

    Args:
        teachers: name -> data set -> image name -> its answer; None makes two from gt.
        groups: name -> how much nearer to the teachers all its students are.
        shown: pictures of each set.
    """
    images = {name: {key: gt[: gt.shape[0] // scale * scale, : gt.shape[1] // scale * scale] for key, gt in one.items()}
              for name, one in images.items()}  # fmt: skip
    low = {name: {key: bicubic_of(gt, scale) for key, gt in one.items()} for name, one in images.items()}
    if teachers is None:
        teachers = {
            name: {
                dataset: {key: between(low[dataset][key], gt, part, 1.0, 0.3, 7) for key, gt in one.items()}
                for dataset, one in images.items()
            }
            for name, part in (("teacher EDSR-L", 0.5), ("teacher RCAN", 0.52))
        }
    mean = {
        dataset: {
            key: np.rint(np.mean([teacher[dataset][key] for teacher in teachers.values()], axis=0)).astype(np.uint8)
            for key in one
        }
        for dataset, one in images.items()
    }
    single = {"bicubic": low, **teachers, "mean of the teachers": mean}
    answers: dict[tuple[str, str], dict[str, list[list[Image]]]] = {
        ("", name): {dataset: [list(one.values())] for dataset, one in layers.items()}
        for name, layers in single.items()
    }
    for group, better in groups.items():
        for number, (name, (part, sigma, _)) in enumerate(students.items()):
            answers[group, name] = {
                dataset: [
                    [
                        between(
                            low[dataset][key],
                            mean[dataset][key],
                            part + better + 0.004 * np.random.default_rng(seed + number).normal(),
                            sigma,
                            0.4,
                            seed + number,
                        )
                        for key in one
                    ]
                    for seed in seeds
                ]
                for dataset, one in images.items()
            }
    rows = []
    costs = {"bicubic": (None, None, None), "mean of the teachers": (58_640_000, 3400.0, 1460.0)}
    for (group, name), sets in answers.items():
        scores = scores_of(sets, images, scale)
        last = float(np.mean(scores[next(iter(images))]["psnr"]))
        student = group != ""
        pace, before = (0.02, 0.0) if name == "scratch" else (0.031, 220.0)
        parameters, gmacs, latency = (
            (int(1_520_000 * (1 + 20 * groups[group])), 114.0 * (1 + 20 * groups[group]), 52.0 + 700 * groups[group])
            if student
            else costs.get(name, (43_090_000 if "EDSR" in name else 15_590_000, 2895.0, 980.0))
        )
        rows.append(
            Row(
                name=name,
                group=group,
                kind="student" if student else KINDS.get(name, "teacher"),
                seeds=seeds if student else (0,),
                scores=scores,
                parameters=parameters,
                gmacs=gmacs,
                latency=latency,
                memory=310.0 if student else None,
                curves=[curves_of(last, seed, pace, before) for seed in seeds] if student else (),
                training_seconds=400.0 if student else None,
                teacher_seconds=before if student else None,
                note=students[name][2] if student else "",
                protocol=f"{name}.yml" if student else "",
            )
        )  # fmt: skip
    pictures = [
        cropped(
            Picture(
                dataset=dataset,
                image=key,
                gt=gt,
                bicubic=low[dataset][key],
                answers={row: sets[dataset][0][list(one).index(key)] for row, sets in answers.items()},
            )
        )
        for dataset, one in images.items()
        for key, gt in list(one.items())[:shown]
    ]
    return Report(
        title="Distillation of a small student",
        scale=scale,
        rows=rows,
        images={dataset: list(one) for dataset, one in images.items()},
        metrics={"psnr": "higher", "ssim": "higher"},
        pooled=list(images),
        baselines=["scratch", "output KD, 1:1"],
        pictures=pictures,
        published=[
            Published(name="FAKD", dataset=next(iter(images)), metric="psnr", value=27.11, source="A paper, Table 2")
        ],
        files={f"{name}.yml": f"name: {name}\nscale: {scale}\n" for name in ("grid", *students)},
        facts={"device": "a processor of two cores", "commit": "0123456789ab", "command": "mtkd bench grid.yml"},
        missing=["output KD, 1:1, seed 40: not trained yet"],
    )  # fmt: skip


def renamed(report: Report, text: str) -> Report:
    """`report` in which everything that has a name of its own carries `text` in it."""
    names = {row.name: f"{row.name} {text}" for row in report.rows}
    groups = {group: f"{group} {text}" if group else "" for group in {row.group for row in report.rows}}
    sets = {dataset: f"{dataset} {text}" for dataset in report.images}

    def curve(one: Curve) -> Curve:
        return dataclasses.replace(one, dataset=sets.get(one.dataset, one.dataset))

    return dataclasses.replace(
        report,
        title=f"{report.title} {text}",
        rows=[
            dataclasses.replace(
                row,
                name=names[row.name],
                group=groups[row.group],
                note=text,
                protocol=f"{row.protocol} {text}" if row.protocol else "",
                scores={sets[dataset]: scores for dataset, scores in row.scores.items()},
                curves=[curve(one) for one in row.curves],
            )
            for row in report.rows
        ],
        images={sets[dataset]: [f"{image} {text}" for image in images] for dataset, images in report.images.items()},
        pooled=[sets[dataset] for dataset in report.pooled],
        baselines=[names[name] for name in report.baselines],
        pictures=[
            dataclasses.replace(
                picture,
                dataset=sets[picture.dataset],
                image=f"{picture.image} {text}",
                answers={(groups[group], names[name]): image for (group, name), image in picture.answers.items()},
            )
            for picture in report.pictures
        ],
        published=[dataclasses.replace(one, name=text, source=text) for one in report.published],
        files={f"{name} {text}": f"{body}{text}" for name, body in report.files.items()},
        facts={f"{key} {text}": f"{value} {text}" for key, value in report.facts.items()},
        missing=[text],
    )
