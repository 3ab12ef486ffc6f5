"""Measure the networks of a table on its image sets: all that `mtkd test` does after the networks are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mtkd import build
from mtkd.config import ValOptions
from mtkd.contracts import MtkdError
from mtkd.data.foreign import ForeignImages
from mtkd.data.kept import kept_inside, learn_sets
from mtkd.data.paired import PairedImages
from mtkd.inference.baselines import Memoized
from mtkd.inference.evaluate import Evaluation, MetricFunction, build_metrics, evaluate, val_predict
from mtkd.inference.image_sets import ImageSets
from mtkd.inference.preflight import refusal, smallest_images, try_network
from mtkd.inference.results import Subject
from mtkd.metrics.latency import RunningCost, running_cost
from mtkd.runtime.device import autocast, move
from mtkd.runtime.progress import Log, tracked

Save = Callable[[str, np.ndarray], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How all networks of a table are run and measured.

    Attributes:
        scale: of all of them.
        metrics: column -> type and arguments, as `val.metrics`.
        device: where they run.
        val: its `tile` and `self_ensemble`.
        precision: "fp32", "bf16" or "fp16".
        memory_format: of the networks.
        channels: of the images: 1 of Y, `color: y`.
    """

    scale: int
    metrics: Mapping[str, Mapping[str, Any]]
    device: torch.device
    val: ValOptions = field(default_factory=ValOptions)
    precision: str = "fp32"
    memory_format: torch.memory_format = torch.channels_last
    channels: int = 3

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the precision."""
        return autocast(self.precision, self.device)

    def facts(self, subjects: Sequence[Subject], images: ImageSets) -> dict[str, Any]:
        """What is stored beside the numbers of `subjects` on `images`."""
        return {
            "scale": self.scale,
            "networks": [subject.facts() for subject in subjects],
            "metrics": build.plain(dict(self.metrics)),
            "sets": {dataset: _places(image_set) for dataset, image_set in images.items()},
            "precision": self.precision,
            "tile": None if self.val.tile is None else self.val.tile.model_dump(),
            "self_ensemble": self.val.self_ensemble,
            **({"color": "y"} if self.channels == 1 else {}),
            "device": str(self.device),
        }


def prepared_metrics(setting: Setting, images: ImageSets) -> dict[str, MetricFunction]:
    """The metrics of `setting`, tried on the smallest of `images`.

    Raises:
        MtkdError: one cannot be built, lacks its package or weights, or refuses an image.
    """
    metrics = build_metrics(setting.metrics)
    smallest = smallest_images(images, setting.device)
    for name, function in metrics.items():
        if (why := refusal(function, smallest)) is not None:
            raise MtkdError(f"Metric {name}, {why}")
    return metrics


def place(
    subjects: Sequence[Subject], setting: Setting, sets: Mapping[tuple[str, ...], Any], *, advice: str = ""
) -> None:
    """Move the networks to their device, and run each on one small image; teachers that are kept answers open those to
    the image sets.

    Args:
        sets: as for `learn_sets`.

    Raises:
        MtkdError: one cannot run, makes an image of another size, or has no answers to a set, after which `advice`
            follows.
    """
    for subject in subjects:
        try:
            learn_sets(subject.net, sets, flat=True)
        except MtkdError as error:
            raise MtkdError(f"{error}{advice}") from error
        move(subject.net, setting.device, setting.memory_format)
        with setting.autocast():
            try_network(subject.net, subject.name, scale=setting.scale, channels=setting.channels)


def measure(
    subjects: Sequence[Subject],
    images: ImageSets,
    metrics: Mapping[str, MetricFunction],
    setting: Setting,
    *,
    keepers: Sequence[Callable[[str, str], Save]] = (),
    log: Log = print,
) -> list[tuple[str, Evaluation]]:
    """(network's name, its result) of every network on every set; `log` gets each mean when there are several.

    Args:
        keepers: (data set, network's name) -> what takes its images, see `evaluate`.
    """
    rows: list[tuple[str, Evaluation]] = []
    several = len(subjects) > 1
    for dataset, image_set in images.items():
        for subject in subjects:
            saves = [keeper(dataset, subject.name) for keeper in keepers]
            result = evaluate(
                val_predict(subject.net, setting.val, setting.scale),
                image_set,
                metrics,
                dataset=dataset,
                device=setting.device,
                autocast=setting.autocast,
                save=partial(_each, saves) if saves else None,
                progress=partial(tracked, about=f"{dataset}, {subject.name}" if several else dataset),
            )
            rows.append((subject.name, result))
            if len(subjects) * len(images) > 1:
                means = ", ".join(f"{metric} {mean:.4f}" for metric, mean in result.means().items())
                log(f"{dataset}, {subject.name}: {means}")
        for module in (module for subject in subjects for module in subject.net.modules()):
            if isinstance(module, Memoized):
                module.forget()
    return rows


def _each(saves: Sequence[Save], name: str, image: np.ndarray) -> None:
    for save in saves:
        save(name, image)


def with_costs(subjects: Sequence[Subject], setting: Setting, *, log: Log = print) -> list[Subject]:
    """`subjects` with latency and peak memory for one image of 1280x720, each network computing all of it."""
    return [replace(subject, cost=_cost(subject, setting, log)) for subject in subjects]


def _cost(subject: Subject, setting: Setting, log: Log) -> RunningCost | None:
    net = subject.net if subject.bare is None else subject.bare
    if kept := kept_inside(net):
        log(f"Latency and memory of {subject.name} are not known: {kept[0].name} is kept answers.")
        return None
    log(f"Latency and memory of {subject.name} ...")
    try:
        return running_cost(
            net,
            scale=setting.scale,
            device=setting.device,
            autocast=setting.autocast,
        )
    except Exception as error:  # noqa: BLE001  a network from outside may refuse an image of that size as it likes
        log(f"Latency and memory of {subject.name} cannot be measured: {type(error).__name__}: {error}")
        return None


def _places(images: PairedImages | ForeignImages) -> dict[str, Any]:
    if not isinstance(images, PairedImages):
        return {"images": len(images)}
    lq = "MATLAB's bicubic" if images.dataroot_lq is None else str(images.dataroot_lq)
    return {"images": len(images), "gt": str(images.dataroot_gt), "lq": lq}
