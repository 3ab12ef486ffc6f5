"""The page of a run, RUN/report.html: its curves, its last validation, and a few of its images."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtkd.inference.evaluate import val_predict
from mtkd.inference.report import PAGE, Shots, direction, facts_of, picture_of, write_beside
from mtkd.report.content import Curve, Picture, Report, Row
from mtkd.runtime.modes import deployed
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.runtime.run_folder import LATEST
from mtkd.training.log import metric_rows
from mtkd.training.run import Run

PICTURES = 3
MOST_PIXELS = 1 << 19
"""Of the lq of a picture: larger ones would make a run on a CPU wait for its page."""


def write_run_page(run: Run) -> None:
    """Write the page of a run that has ended; rank 0 alone, and without waiting for others.

    All is read from the run's folder, so that it tells of all the processes that the run was made by; only a few images
    are upscaled once more. A failure is said in the log and changes nothing: the weights are written. A page that is
    newer than the last weights stays.
    """
    if not run.fabric.is_global_zero:
        return
    path, weights = run.folder.root / PAGE, run.folder.model(LATEST)
    if not path.exists() or path.stat().st_mtime_ns < weights.stat().st_mtime_ns:
        write_beside(path, lambda: run_report(run), run.log.info)


def run_report(run: Run) -> Report:
    """What `run` has left in its folder, as a report of one row.

    Raises:
        MtkdError: an image of validation cannot be read.
        OSError: a file of the run's folder cannot be read.
    """
    options, root = run.options, run.folder.root
    images, scores = _validated(run)
    curves = curves_of(run.folder.metrics, run.seed, {key: run.label(key) for key in run.val_sets})
    student = run.ema.net if run.ema is not None else run.method.student
    row = Row(
        name=options.name,
        seeds=(run.seed,),
        scores=scores,
        parameters=sum(parameter.numel() for parameter in deployed(student).parameters()),
        curves=curves,
        training_seconds=max((curve.seconds[-1] for curve in curves), default=None),
        note=f"{options.model_type}, average of the weights (EMA)" if run.ema is not None else options.model_type,
    )
    known = json.loads((root / "environment.json").read_text(encoding="utf-8"))
    written = {name: root / name for name in (f"{options.name}.yml", "resolved.yml")}
    return Report(
        title=f"{options.name}: {options.model_type} x{options.scale}",
        scale=options.scale,
        rows=[row],
        images=images,
        metrics={name: direction(given) for name, given in options.val.metrics.items()} if images else {},
        validation=list(images),
        pictures=_pictures(run),
        files={name: path.read_text(encoding="utf-8") for name, path in written.items() if path.is_file()},
        facts=facts_of({}, known),
        missing=[] if images or not run.val_sets else ["the scores of the last validation, image by image"],
    )


def curves_of(log: Path, seed: int, labels: Mapping[str, str]) -> list[Curve]:
    """Scores of every validation, and losses, against iterations and seconds, from a run's `metrics.jsonl`.

    Seconds are those of the iterations; validation and saving are not among them. Values that are no number are left
    out, and so is the line of a loss that is always 0.

    Args:
        labels: key of a validation set -> its name for readers.
    """
    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    step, passed, each = 0, 0.0, 0.0
    for _, row in metric_rows(log):
        if "losses" in row:
            pace = _number(row.get("seconds_per_step"))
            each = each if math.isnan(pace) else pace
            passed, step = passed + (row["step"] - step) * each, row["step"]
            for name, value in row["losses"].items():
                found.setdefault(("", name), []).append((step, passed, _number(value)))
        elif "validation" in row:
            # A validation may lie between two lines of losses.
            now = passed + (row["step"] - step) * each
            for name, value in row.get("metrics", {}).items():
                key = (labels.get(row["validation"], row["validation"]), name)
                found.setdefault(key, []).append((row["step"], now, _number(value)))
    curves = []
    # Scores first: they are what the page opens with.
    for (dataset, metric), points in sorted(found.items(), key=lambda item: not item[0][0]):
        points = [point for point in points if math.isfinite(point[2])]
        if points and (dataset or any(value for _, _, value in points)):
            iterations, seconds, values = zip(*points, strict=True)
            curves.append(
                Curve(
                    seed=seed, iterations=iterations, seconds=seconds, values=values, dataset=dataset, metric=metric
                )
            )  # fmt: skip
    return curves


def _number(value: Any) -> float:
    """A number of a log line, which has "nan" and "inf" as texts."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _validated(run: Run) -> tuple[dict[str, Sequence[str]], dict[str, dict[str, NDArray[np.float64]]]]:
    """Images and scores of the last validation, from the file that it wrote; nothing where there is none."""
    path = run.folder.validation / "metrics.csv"
    images: dict[str, list[str]] = {}
    columns: dict[str, dict[str, list[float]]] = {}
    if run.val_sets and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                dataset = run.label(line["dataset"]) if line["dataset"] in run.val_sets else line["dataset"]
                images.setdefault(dataset, []).append(line["image"])
                for metric in run.metrics:
                    columns.setdefault(dataset, {}).setdefault(metric, []).append(_number(line.get(metric)))
    scores = {
        dataset: {metric: np.array([values], np.float64) for metric, values in metrics.items()}
        for dataset, metrics in columns.items()
    }
    return dict(images), scores


@torch.no_grad()
def _pictures(run: Run) -> list[Picture]:
    """A few validation images, upscaled again by the network that was validated."""
    options, fabric = run.options, run.fabric
    student = run.ema.net if run.ema is not None else run.method.student
    predict = val_predict(run.method.predictor(student).eval(), options.val, options.scale)
    shots = Shots(run.val_sets, PICTURES)
    found = []
    # A network compiled for training patches would be compiled again for every size of image.
    with torch.compiler.set_stance("force_eager" if options.compile or options.val.compile else "default"):
        for key, images in shots.images.items():
            for at in shots.chosen[key].values():
                pair = images[at]
                if pair.lq.shape[0] * pair.lq.shape[1] > MOST_PIXELS:
                    continue
                with fabric.autocast():
                    sr = predict(to_tensor(pair.lq, fabric.device))
                found.append(
                    picture_of(pair, run.label(key), options.scale, {("", options.name): to_image(sr.float())})
                )
    return found
