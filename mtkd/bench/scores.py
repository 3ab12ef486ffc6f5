"""Scores of trained networks on the test sets of a grid, image by image, in one file a job."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtkd import build
from mtkd.bench.cells import cells, training_images
from mtkd.bench.grid import Grid
from mtkd.config import Options, make_options
from mtkd.contracts import MtkdError
from mtkd.inference.evaluate import Evaluation, build_metrics, evaluate
from mtkd.inference.named import find_target
from mtkd.inference.results import describe
from mtkd.runtime.device import choose_device, move, set_backends
from mtkd.runtime.environment import environment
from mtkd.runtime.files import atomic
from mtkd.runtime.strict_json import dumps

if TYPE_CHECKING:
    from mtkd.bench.jobs import Job, Plan


def plain_options(grid: Grid, scale: int, images: str = "") -> dict[str, Any]:
    """An option file with training images and a network, and no loss: the first row's without its method.

    Args:
        images: the setting whose training images are meant, "" for the protocol's.
    """
    first = next(cell for cell in cells(grid, Path("unused")) if cell.scale == scale)
    kept = ("datasets", "network_g", "scale", "num_gpu", "precision", "channels_last", "tf32", "val", "logger")
    options = {key: first.options[key] for key in kept if key in first.options}
    if section := training_images(grid, scale, images):
        options["datasets"] = {**options["datasets"], "train": section}
    train = {key: value for key, value in first.options["train"].items() if not key.endswith("_opt")}
    return {**options, "name": "targets", "train": train}


def supervised(grid: Grid, scale: int, images: str = "") -> dict[str, Any]:
    """`plain_options` trained on the ground truth."""
    plain = plain_options(grid, scale, images)
    return {**plain, "model_type": "SRModel", "train": {**plain["train"], "pixel_opt": {"type": "L1Loss"}}}


def test_options(
    grid: Grid, scale: int, *, sets: Sequence[str] = (), teachers: Mapping[str, Any] | None = None
) -> Options:
    """An option file with the grid's test sets, or those of the keys `sets`, as its `datasets.evaluation`, and its
    metrics; with `teachers` where they are wanted.

    It is a training file, because a test file needs a student's weights.
    """
    plain = supervised(grid, scale)
    chosen = {f"val_{key}": grid.test.datasets[key] for key in sets or grid.test.datasets}
    plain["datasets"] = {"train": plain["datasets"]["train"], **chosen}
    plain["val"] = {"val_freq": 1, "metrics": grid.test.metrics}
    if teachers:
        # The method beside which several teachers stand, each as it is.
        network = {"type": "DCTSwin", "embed_dim": 12, "depths": [1], "num_heads": [1]}
        plain |= {"model_type": "MTKDFusion", "network_g": network, "teachers": {**teachers}}
    return make_options(plain, file=f"{grid.name}: test")


def check_images(grid: Grid, scale: int) -> None:
    """Find every test image, so that none is missed after the training.

    Raises:
        MtkdError: a set is not there, or an image of it is no pair with its lq; the key is named.
    """
    for key, section in test_options(grid, scale).datasets.evaluation.items():
        try:
            build.build_image_set(section, scale, phase="test")
        except MtkdError as error:
            raise MtkdError(f"test.datasets.{key.removeprefix('val_')}: {error}") from error


def measure_run(plan: Plan, job: Job) -> None:
    """Measure the last weights of a run on the grid's test sets.

    Raises:
        MtkdError: the run has no weights, or an image cannot be measured.
    """
    found = find_target(str(plan.out / "runs" / job.name))
    options = found.options
    if options is None:
        raise MtkdError(f"{found.spec} is no run.")
    set_backends(tf32=options.tf32, deterministic=options.deterministic, sizes_vary=True)
    net = build.output_network(options)
    subject = describe(job.name, net)
    device = choose_device(options.num_gpu)
    move(net, device, torch.channels_last if options.channels_last else torch.preserve_format)
    test = test_options(plan.grid, job.scale)
    metrics = build_metrics(test.val.metrics)
    results = []
    for key, section in test.datasets.evaluation.items():
        images = build.build_image_set(section, job.scale, phase="test")
        results.append(evaluate(net, images, metrics, dataset=section.name or key, device=device))
    facts = {"parameters": subject.parameters, "gmacs": subject.gmacs}
    write_scores(plan, job, {job.name: (results, facts)}, device)


def scores_path(out: Path, job: Job) -> Path:
    """Where the scores of a cell, or of the teachers, lie."""
    return out / "scores" / f"{job.file_name}.json"


def read_scores(out: Path, job: Job) -> dict[str, Any] | None:
    """What `write_scores` kept; None where there is nothing, or of another definition."""
    try:
        content = json.loads(scores_path(out, job).read_text(encoding="utf-8"))
        whole = {"rows", "environment", "threads"} <= content.keys()
        return content if whole and content["measured"] == job.measured else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_scores(
    plan: Plan, job: Job, rows: Mapping[str, tuple[Sequence[Evaluation], Mapping[str, Any]]], device: torch.device
) -> None:
    """Keep the scores of the networks of `job`, and that they were measured on `device`."""
    content = {
        "measured": job.measured,
        "environment": environment(device),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "rows": {
            name: {
                **facts,
                "sets": {result.dataset: {"images": result.images, **result.values} for result in results},
            }
            for name, (results, facts) in rows.items()
        },
    }
    with atomic(scores_path(plan.out, job), durable=True) as temporary:
        temporary.write_text(dumps(content) + "\n", encoding="utf-8")
