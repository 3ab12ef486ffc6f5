"""The page of a measurement: `report.html` beside `metrics.csv`, made of `Evaluation`s and a few of their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mtkd import catalog
from mtkd.archs.ensemble import FusedTeacher
from mtkd.data.paired import PairedImages
from mtkd.inference.baselines import Bicubic
from mtkd.inference.evaluate import Evaluation, ImageSet
from mtkd.inference.results import Subject
from mtkd.report.content import Picture, Report, Row
from mtkd.report.pictures import cropped
from mtkd.runtime.environment import environment
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.runtime.progress import Log

PAGE = "report.html"
PICTURES = 4
"""Pictures of a page that a measurement writes."""

Image = NDArray[np.uint8]
Save = Callable[[str, Image], None]


class Shots:
    """A few pictures that are kept while networks are measured, so that no network runs twice.

    They are chosen before there are numbers, from all sets in turn and evenly over each, so that they favour no row.
    Images of a class from outside are left out: reading them a second time may give others.

    Args:
        images: data set -> its images.
        most: how many pictures.
    """

    def __init__(self, images: Mapping[str, ImageSet], most: int = PICTURES) -> None:
        self.images = {dataset: one for dataset, one in images.items() if isinstance(one, PairedImages) and len(one)}
        counts = dict.fromkeys(self.images, 0)
        while sum(counts.values()) < most:
            room = [dataset for dataset, one in self.images.items() if counts[dataset] < len(one)]
            if not room:
                break
            counts[min(room, key=lambda dataset: counts[dataset])] += 1
        self.chosen = {
            dataset: {one.names[at]: at for at in spread(len(one), counts[dataset])}
            for dataset, one in self.images.items()
        }
        self.answers: dict[tuple[str, str], dict[str, Image]] = {}

    def keeper(self, dataset: str, network: str) -> Save:
        """A `save` for `evaluate` that keeps the chosen images of `network` on `dataset`."""
        wanted, kept = self.chosen.get(dataset, {}), self.answers.setdefault((dataset, network), {})

        def save(name: str, image: Image) -> None:
            if name in wanted:
                kept[name] = image

        return save

    def pictures(self, scale: int, asked: Sequence[str]) -> list[Picture]:
        """What was kept, cut to the part where the networks differ most; `asked` as for `report_of`.

        Raises:
            MtkdError: an image cannot be read any more.
        """
        return [
            picture_of(images[at], dataset, scale, self._of(dataset, name, asked))
            for dataset, images in self.images.items()
            for name, at in self.chosen[dataset].items()
        ]

    def _of(self, dataset: str, name: str, asked: Sequence[str]) -> dict[tuple[str, str], Image]:
        return {
            (_group(network, asked), network): kept[name]
            for (known, network), kept in self.answers.items()
            if known == dataset and name in kept
        }


def spread(length: int, count: int) -> list[int]:
    """`count` of `length` places, evenly spread.

    Example:
        >>> spread(14, 2), spread(5, 5), spread(5, 0)
        ([3, 10], [0, 1, 2, 3, 4], [])
    """
    return [length * (2 * number + 1) // (2 * count) for number in range(count)]


def picture_of(pair: Any, dataset: str, scale: int, answers: Mapping[tuple[str, str], Image]) -> Picture:
    """The picture of one image of `PairedImages`, with `answers`: (group, network) -> (H, W, 3) uint8. Y is shown grey.

    Raises:
        MtkdError: layers have different sizes.
    """
    return cropped(
        Picture(
            dataset=dataset,
            image=pair.name,
            gt=_shown(pair.gt if pair.gt.dtype == np.uint8 else to_image(to_tensor(pair.gt))),
            bicubic=_shown(to_image(Bicubic(scale)(to_tensor(pair.lq)))),
            answers={key: _shown(image) for key, image in answers.items()},
        )
    )


def _shown(image: Image) -> Image:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def report_of(
    rows: Sequence[tuple[str, Evaluation]],
    subjects: Sequence[Subject],
    *,
    title: str,
    scale: int,
    metrics: Mapping[str, Mapping[str, Any]],
    asked: Sequence[str],
    pictures: Sequence[Picture] = (),
    files: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> Report:
    """What was measured, as a report: each network once, those that were asked for compared with the first of them.

    Args:
        rows: (network's name, its result on a set).
        subjects: the networks, in the order of the table.
        metrics: `val.metrics` of an option file.
        asked: names of the networks that a user named; the others stand beside them and are no one's rival.
        facts: for readers, beside hardware and versions.
        device: that measured.
    """
    scores: dict[str, dict[str, dict[str, NDArray[np.float64]]]] = {}
    images: dict[str, Sequence[str]] = {}
    for network, result in rows:
        images.setdefault(result.dataset, result.images)
        scores.setdefault(network, {})[result.dataset] = {
            metric: np.array([values], np.float64) for metric, values in result.values.items()
        }
    return Report(
        title=title,
        scale=scale,
        rows=[
            Row(
                name=subject.name,
                group=_group(subject.name, asked),
                kind="student" if subject.name in asked else _kind(subject.net),
                scores=scores.get(subject.name, {}),
                parameters=subject.parameters or None,
                gmacs=subject.gmacs,
                latency=subject.cost.latency if subject.cost else None,
                memory=subject.cost.memory if subject.cost else None,
                note=subject.note,
            )
            for subject in subjects
        ],
        images=images,
        metrics={name: direction(settings) for name, settings in metrics.items()},
        pooled=list(images),
        baselines=list(asked[:1]) if len(asked) > 1 else [],
        pictures=pictures,
        files=files or {},
        facts=facts_of(facts or {}, environment(device)),
    )


def _group(network: str, asked: Sequence[str]) -> str:
    return "side by side" if network in asked and len(asked) > 1 else ""


def _kind(net: nn.Module) -> Literal["baseline", "ensemble", "teacher"]:
    if isinstance(net, Bicubic):
        return "baseline"
    return "ensemble" if isinstance(net, FusedTeacher) else "teacher"


def direction(settings: Mapping[str, Any]) -> Literal["higher", "lower"]:
    """The good direction of a metric of an option file: its own key, else what the metric declares."""
    return settings.get("better") or getattr(catalog.get("metric", settings["type"]), "better", "higher")


def facts_of(facts: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """`facts`, then hardware and versions, `known` of `environment`, as texts; empty ones are left out."""
    found = {**facts, **known}

    def text(value: Any) -> str:
        return ", ".join(f"{one} {what}" for one, what in value.items()) if isinstance(value, dict) else str(value)

    return {key.replace("_", " "): text(value) for key, value in found.items() if value not in (None, "", {})}


def write_beside(path: Path, make: Callable[[], Report], log: Log = print) -> None:
    """Write the page of `make()` to `path`, and say where it is; a failure is said and changes nothing.

    The numbers are written before. A page that shows them must not lose them, whatever happens in it.
    """
    from mtkd.report.page import write_page

    try:
        write_page(make(), path)
    except Exception as error:  # noqa: BLE001  the numbers are safe, and the page is only their picture
        log(f"The numbers are written, but their page {path} is not: {type(error).__name__}: {error}")
        return
    log(f"To look at: {path}")
