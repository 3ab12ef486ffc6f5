"""`mtkd test`: one network over the test sets of an option file, as a table, a CSV and a JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtkd import catalog, zoo
from mtkd.config import Options
from mtkd.contracts import MtkdError, Task
from mtkd.data.images import try_writing
from mtkd.engine import build
from mtkd.engine.build import build_image_set
from mtkd.engine.evaluate import (
    Evaluation,
    ImageSet,
    MetricFunction,
    build_metrics,
    compile_for_images,
    evaluate,
    save_to,
    val_predict,
    write_results,
)
from mtkd.engine.log import environment
from mtkd.engine.progress import tracked
from mtkd.methods.base import Method
from mtkd.metrics.complexity import complexity


def test(options: Options, *, device: str | torch.device | None = None, command: str | None = None) -> list[Evaluation]:
    """Measure `network_g` on every test set of `options`, print the table, write `results/NAME`.

    The folder is made, and tried, before anything is measured. For `model_type: MTKDFusion` the network is the fusion
    network behind its teachers.

    Raises:
        MtkdError: there are no test sets, no weights, or something about either is wrong; or nothing can be written,
            and then a table that was measured has been printed.
    """
    if not options.val.metrics:
        raise MtkdError(
            "val.metrics is missing, so there is nothing to measure: give it, for example `val: {metrics: {psnr: "
            "{type: calculate_psnr, crop_border: 4}}}`. To enlarge images without gt: `mtkd upscale IN OUT -opt FILE`."
        )
    if not options.datasets.evaluation:
        raise MtkdError("There is no test set to measure on: give one, `datasets.test_1`.")
    images = {
        given.name or key: build_image_set(given, options.scale, phase="test")
        for key, given in options.datasets.evaluation.items()
    }
    build.set_backends(options, sizes_vary=True)
    net = output_network(options)
    cost = _cost(net)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() and options.num_gpu != 0 else "cpu"))
    net.to(device, memory_format=torch.channels_last if options.channels_last else torch.preserve_format)
    if options.val.compile:
        compile_for_images(net, device, partial(build.autocast, options.precision, device), print)
    metrics = build_metrics(options.val.metrics)
    folder = make_free_folder(Path(options.path.results_root) / options.name)
    try:
        rows = [_measure(options, name, image_set, net, metrics, device, folder) for name, image_set in images.items()]
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # where nothing was saved yet
        raise
    origin: zoo.Origin = net.origin  # pyright: ignore[reportAssignmentType]
    facts: dict[str, Any] = {
        "name": options.name,
        "weights": options.path.pretrain_network_g,
        "entry": origin.entry,
        "iteration": origin.iteration,
        **cost,
        "command": command,
    }
    # Before the files: a disk that fills up in the meantime costs no numbers.
    _print(options, rows, facts, origin)
    write_results(folder, [(options.name, row) for row in rows], facts | {"environment": environment()})
    print(f"Per image: {folder / 'metrics.csv'}; with hardware and versions: {folder / 'metrics.json'}")
    return rows


def _measure(
    options: Options,
    name: str,
    images: ImageSet,
    net: nn.Module,
    metrics: Mapping[str, MetricFunction],
    device: torch.device,
    folder: Path,
) -> Evaluation:
    save = None
    if options.val.save_img:
        save = save_to(folder / "visualization" / name, options.val.suffix or options.name)
    return evaluate(
        val_predict(net, options),
        images,
        metrics,
        dataset=name,
        device=device,
        autocast=partial(build.autocast, options.precision, device),
        save=save,
        progress=lambda steps: tracked(steps, name),
    )


def _cost(net: nn.Module) -> dict[str, Any]:
    """Parameters, and multiply-adds where they can be counted: no reason to measure nothing else."""
    try:
        cost = complexity(net)
        return {"parameters": cost.params, "gmacs_1280x720": cost.macs / 1e9}
    except Exception as error:  # noqa: BLE001  a network from outside may refuse an image of that size as it likes
        print(f"Multiply-adds cannot be counted: {type(error).__name__}: {error}")
        return {"parameters": sum(parameter.numel() for parameter in net.parameters()), "gmacs_1280x720": None}


def free_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted_2`, `wanted_3`, ... when it exists: older results are neither moved nor overwritten."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}_{number}")
    return folder


def make_free_folder(wanted: Path) -> Path:
    """`free_folder`, made, by this process alone where several want it.

    Raises:
        MtkdError: it cannot be made, or no file can be written into it.
    """
    while True:
        try:
            folder = free_folder(wanted)
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if folder.exists():
                continue
            raise MtkdError(f"The results folder {folder} cannot be made: {error.strerror}.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MtkdError(f"The results folder {wanted} cannot be made: {reason}. Set path.results_root.") from error
        try:
            try_writing(folder)
        except MtkdError as error:
            with suppress(OSError):
                folder.rmdir()
            raise MtkdError(f"{error} Make room, or set path.results_root.") from error
        return folder


def _print(options: Options, rows: list[Evaluation], facts: dict[str, Any], origin: zoo.Origin) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{options.name} (x{options.scale}, {facts['parameters']:,d} parameters"
        + ("" if facts["gmacs_1280x720"] is None else f", {facts['gmacs_1280x720']:.1f} GMACs to 1280x720")
        + ")"
    )
    table.add_column("test set")
    table.add_column("images", justify="right")
    metrics = list(rows[0].values)
    for metric in metrics:
        table.add_column(metric, justify="right")
    for row in rows:
        means = row.means()
        table.add_row(row.dataset, str(len(row.images)), *(f"{means[metric]:.4f}" for metric in metrics))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(Text(f"Weights: {origin}"), soft_wrap=True)


def output_network(options: Options) -> nn.Module:
    """The lq -> sr network an option file describes, with its weights, in eval mode; its `origin` says which they are.

    Raises:
        MtkdError: the file names no weights, or they do not fit; random weights are never used silently.
    """
    if not options.path.pretrain_network_g:
        raise MtkdError(
            "path.pretrain_network_g is not given: name the weights of network_g, a file or `zoo:NAME`. Random weights "
            "are never used silently."
        )
    student = build.build_network(options.network_g, options.scale)
    facts = build.load_weights(
        student,
        options.path.pretrain_network_g,
        key=options.path.param_key_g,
        strict=options.path.strict_load_g,
    )
    cls = catalog.get("method", options.model_type)
    if cls.predictor is Method.predictor and cls.deployable is Method.deployable:
        # The student is all there is to it: no teacher is needed to run it.
        return student.eval()
    task = Task(scale=options.scale, num_samples=1, total_steps=1)
    method = build.build_method(options, student, build.build_teachers(options), task)
    method.check_metadata(facts)
    net = method.predictor(student).eval()
    net.origin = student.origin  # pyright: ignore[reportAttributeAccessIssue]
    return net
