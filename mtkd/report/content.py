"""What a report is made of. Whoever measures fills it in; tables, statistics and the page read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Data set -> metric -> (seeds, images), NaN where a value is missing. Images in the order of `Report.images`."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Validation of one training run.

    Attributes:
        seed: of the run.
        iterations: at which it was validated.
        seconds: of training until then, one for each iteration, without validation; `Row.teacher_seconds` come first.
        values: the score at each iteration.
        dataset, metric: what was validated; for a loss of training the data set is "" and the metric its name.
    """

    seed: int
    iterations: Sequence[int]
    seconds: Sequence[float]
    values: Sequence[float]
    dataset: str
    metric: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: a network, trained once for each seed, or something that is only measured.

    Attributes:
        name: for readers; unique within its group.
        group: rows of one group are compared with each other: one student, scale and number of iterations. Rows that
            belong to every group (bicubic, teachers, their mean, the fused image) have the group "".
        kind: what it is.
        seeds: of the runs, in the order of the scores' first axis; (0,) for what is not trained here.
        scores: see `Scores`.
        parameters: number of trained values; None where there are none.
        gmacs: 10^9 multiply-adds to make 1280x720 pixels.
        latency: milliseconds for such an image, on the machine of `Report.environment`.
        memory: peak MiB for such an image.
        curves: one for each seed.
        training_seconds: of one run, mean over the seeds.
        teacher_seconds: what its targets cost before training, shared with other rows.
        note: a remark for readers.
        protocol: key of `Report.files` with the row's option file; "" for none.
    """

    name: str
    group: str = ""
    kind: Literal["student", "teacher", "ensemble", "baseline"] = "student"
    seeds: Sequence[int] = (0,)
    scores: Scores
    parameters: int | None = None
    gmacs: float | None = None
    latency: float | None = None
    memory: float | None = None
    curves: Sequence[Curve] = ()
    training_seconds: float | None = None
    teacher_seconds: float | None = None
    note: str = ""
    protocol: str = ""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure from a paper, for a setting that matches.

    Attributes:
        name: of the network or method.
        dataset, metric: what was measured.
        value: as printed.
        source: paper and table.
    """

    name: str
    dataset: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One test image as everyone sees it: layers of the same size that can be laid over each other.

    Attributes:
        dataset, image: which one.
        gt: (H, W, 3) uint8.
        bicubic: lq enlarged, as `gt`.
        answers: (group, row name) -> image, as `gt`; of the first seed.
        crop: (top, left) of this part in the whole image, None for all of it.
    """

    dataset: str
    image: str
    gt: NDArray[np.uint8]
    bicubic: NDArray[np.uint8]
    answers: Mapping[tuple[str, str], NDArray[np.uint8]]
    crop: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything of one report.

    Attributes:
        title: of the page.
        scale: of all its networks.
        rows: in the order of the tables.
        images: data set -> names, in the order of the scores' last axis.
        metrics: name -> which value is better.
        pooled: data sets that claims are pooled over; validation sets are not among them.
        validation: data sets that runs were validated on.
        baselines: names of the rows that every other row of their group is compared with, the first being training
            without a teacher; empty where nothing is compared.
        pictures: what can be looked at.
        published: figures of others.
        files: name -> text of every option file and of the grid.
        facts: what the numbers come from: hardware, versions, commit, command.
        missing: one line for each thing that was planned and is not there yet.
    """

    title: str
    scale: int
    rows: Sequence[Row]
    images: Mapping[str, Sequence[str]]
    metrics: Mapping[str, Literal["higher", "lower"]]
    pooled: Sequence[str] = ()
    validation: Sequence[str] = ()
    baselines: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    published: Sequence[Published] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
