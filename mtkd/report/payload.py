"""A report as plain values that the page carries as JSON: no picture, no array, no NaN."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtkd.report.arrange import POOLED, baselines_of, groups, is_trained, rows_of
from mtkd.report.bands import BANDS, LEVELS, WAVELET, bands_of
from mtkd.report.comparison import Comparison
from mtkd.report.content import Curve, Picture, Report, Row
from mtkd.report.numbers import enough
from mtkd.report.pictures import data_uri
from mtkd.report.statistics import summary

ABBREVIATIONS = {"psnr", "ssim", "ms_ssim", "lpips", "dists", "niqe"}


def payload(report: Report, compared: Sequence[Comparison]) -> dict[str, Any]:
    """Everything that the page's script draws, ready for `json.dumps(..., allow_nan=False)`.

    Rows, sets and metrics are numbered; places where a number is missing hold None, infinite ones the text "inf" or
    "-inf".

    Args:
        compared: `mtkd.report.statistics.comparisons(report)`.
    """
    number = {(row.group, row.name): at for at, row in enumerate(report.rows)}
    sets = list(report.images)
    # One pooled set is shown once.
    views = ([POOLED] if report.pooled else []) + [name for name in sets if [name] != list(report.pooled)]
    return {
        "scale": report.scale,
        "metrics": [
            {"name": name, "higher": better == "higher", **manner(name), "digits": digits_of(name, compared)}
            for name, better in report.metrics.items()
        ],
        "sets": [
            {"name": name, "images": list(images), "validation": name in report.validation}
            for name, images in report.images.items()
        ],
        "views": [_view(report, view) for view in views],
        "groups": [
            {
                "name": group,
                "rows": [number[row.group, row.name] for row in rows_of(report, group)],
                "baselines": [number[row.group, row.name] for row in baselines_of(report, group)],
            }
            for group in groups(report)
        ],
        "rows": [_row(report, row, views) for row in report.rows],
        "comparisons": [_comparison(report, one, views) for one in compared if one.dataset in views],
        "published": [
            {"name": one.name, "dataset": one.dataset, "metric": one.metric, "value": one.value, "source": one.source}
            for one in report.published
        ],
        "bands": _bands(report, number),
        **_pictures(report.pictures, number),
    }  # fmt: skip


def manner(metric: str) -> dict[str, Any]:
    """How a metric and its values are written: abbreviations in capitals, unit, digits after the point.

    Example:
        >>> manner("psnr"), manner("sharpness")
        ({'label': 'PSNR', 'unit': 'dB', 'digits': 3}, {'label': 'sharpness', 'unit': '', 'digits': 4})
    """
    label = metric.upper() if metric in ABBREVIATIONS else metric
    if "psnr" in metric.lower():
        return {"label": label, "unit": "dB", "digits": 3}
    return {"label": label, "unit": "", "digits": 4}


def digits_of(metric: str, compared: Sequence[Comparison]) -> int:
    """Digits after the point for a metric: as many as keep every gain with a verdict, and its bounds, from looking like
    zero.
    """
    told = [one for one in compared if one.metric == metric and one.verdict in ("better", "worse")]
    values = [value for one in told for value in (one.gain, *one.interval)]
    return enough(values, least=manner(metric)["digits"], most=6)


def plain(value: float | None) -> float | str | None:
    """A number for JSON: six digits are enough for every mark on the page.

    Example:
        >>> plain(0.123456789), plain(float("nan")), plain(float("inf"))
        (0.123457, None, 'inf')
    """
    if value is None or math.isnan(value):
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _plain(values: Iterable[float]) -> list[float | str | None]:
    return [plain(float(value)) for value in values]


def _view(report: Report, name: str) -> dict[str, Any]:
    if name != POOLED:
        return {"name": name, "pooled": False, "images": len(report.images[name])}
    return {
        "name": " + ".join(report.pooled),
        "pooled": len(report.pooled) > 1,
        "images": sum(len(report.images[s]) for s in report.pooled),
    }


def _row(report: Report, row: Row, views: Sequence[str]) -> dict[str, Any]:
    return {
        "name": row.name,
        "group": row.group,
        "kind": row.kind,
        "seeds": list(row.seeds),
        "parameters": row.parameters,
        "gmacs": plain(row.gmacs),
        "latency": plain(row.latency),
        "memory": plain(row.memory),
        "training": plain(row.training_seconds),
        "targets": plain(row.teacher_seconds),
        "note": row.note,
        "protocol": row.protocol,
        "cells": [[_cell(report, row, view, metric) for metric in report.metrics] for view in views],
        "images": [
            [_images(report, row, row.scores.get(name, {}).get(metric), len(images)) for metric in report.metrics]
            for name, images in report.images.items()
        ],
        "curves": [_curve(curve) for curve in row.curves if len(curve.iterations)],
    }


def _cell(report: Report, row: Row, view: str, metric: str) -> dict[str, Any] | None:
    found = summary(report, row, view, metric)
    if found is None:
        return None
    cell = {"mean": plain(found.mean), "sd": plain(found.sd), "seeds": found.seeds, "images": found.images}
    most = max(map(len, _seeds_beside(report, row))) if is_trained(row) else found.seeds
    return {**cell, "of": _view(report, view)["images"], "all": most}


def _seeds_beside(report: Report, row: Row) -> list[set[int]]:
    """The seeds of each trained row of the group of `row`."""
    return [set(other.seeds) for other in report.rows if other.group == row.group and is_trained(other)]


def _images(report: Report, row: Row, scores: NDArray[np.float64] | None, count: int) -> list[float | str | None]:
    """One value an image, mean over the seeds that have one: those of all rows of the group, where there are such."""
    if scores is None:
        return [None] * count
    if is_trained(row) and (shared := set.intersection(*_seeds_beside(report, row))):
        scores = scores[[number for number, seed in enumerate(row.seeds) if seed in shared]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an image that no seed has: its mean is NaN, as it should
        return _plain(np.nanmean(np.asarray(scores, np.float64), axis=0))


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "seed": curve.seed,
        "iterations": [int(step) for step in curve.iterations],
        "seconds": _plain(curve.seconds),
        "values": _plain(curve.values),
        "dataset": curve.dataset,
        "metric": curve.metric,
    }


def _comparison(report: Report, one: Comparison, views: Sequence[str]) -> dict[str, Any]:
    names = list(report.metrics)
    return {
        "group": groups(report).index(one.group),
        "row": one.row,
        "baseline": one.baseline,
        "view": views.index(one.dataset),
        "metric": names.index(one.metric),
        "gain": plain(one.gain),
        "interval": _plain(one.interval),
        "verdict": one.verdict,
        "p": plain(one.p_corrected),
        "seeds": one.seeds,
        "images": one.images,
        "wins": one.wins,
        "detectable": plain(one.detectable),
    }


def _bands(report: Report, number: Mapping[tuple[str, str], int]) -> dict[str, Any] | None:
    tables = bands_of(report)
    if not tables:
        return None
    return {
        "names": list(BANDS),
        "wavelet": WAVELET,
        "levels": LEVELS,
        "groups": [
            {
                "group": groups(report).index(group),
                "reference": table.reference,
                "shares": _plain(table.shares),
                "pictures": table.pictures,
                "rows": [
                    {"row": number[key], "gains": _plain(gains)} for key, gains in table.gains.items() if key in number
                ],
            }
            for group, table in tables.items()
        ],
    }


def _pictures(pictures: Sequence[Picture], number: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """Pictures, and the images of all their layers, each once however many layers show it."""
    places: dict[bytes, int] = {}
    images: list[str] = []

    def place(image: NDArray[np.uint8]) -> int:
        key = repr(image.shape).encode() + image.tobytes()
        if key not in places:
            places[key] = len(images)
            images.append(data_uri(image))
        return places[key]

    found = []
    for picture in pictures:
        layers: list[dict[str, Any]] = [
            {"row": number[key], "name": key[1], "image": place(answer)}
            for key, answer in picture.answers.items()
            if key in number
        ]
        references = [{"row": None, "name": "ground truth", "image": place(picture.gt)}]
        if not any(np.array_equal(answer, picture.bicubic) for answer in picture.answers.values()):
            references.append({"row": None, "name": "bicubic", "image": place(picture.bicubic)})
        layers = references + layers
        height, width = picture.gt.shape[:2]
        crop = None if picture.crop is None else list(picture.crop)
        about = {"dataset": picture.dataset, "image": picture.image, "crop": crop, "height": height, "width": width}
        found.append({**about, "layers": layers})
    return {"pictures": found, "blobs": images}
