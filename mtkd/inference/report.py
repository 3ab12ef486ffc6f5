"""Tables of numbers: a table on screen, a CSV and a JSON, of the networks that `mtkd test` measures.

`test` measures the network of an option file; `compare` measures networks that are named without one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtkd import build, catalog, zoo
from mtkd.build import build_image_set
from mtkd.config import Options, TileOptions
from mtkd.contracts import MtkdError, Task
from mtkd.data.images import try_writing
from mtkd.inference.evaluate import (
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
from mtkd.inference.tiling import check_tiles
from mtkd.methods.base import Method
from mtkd.metrics.complexity import complexity
from mtkd.runtime.progress import tracked
from mtkd.training.log import environment


@dataclass(frozen=True)
class Subject:
    """A network of a table, and what stands beside its numbers.

    Attributes:
        name: of its rows.
        net: lq (N, 3, h, w) -> sr (N, 3, h * scale, w * scale), in eval mode.
        weights: the file or zoo name as it was given, None where there are none of its own.
        origin: which weights these are.
        parameters: their number.
        gmacs: multiply-adds to 1280x720 in 10^9, None where they cannot be counted.
        note: what else a reader of its numbers must know.
    """

    name: str
    net: nn.Module
    weights: str | None
    origin: zoo.Origin | None
    parameters: int
    gmacs: float | None
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """What the numbers carry in files."""
        facts = {
            "name": self.name,
            "weights": self.weights,
            "entry": self.origin.entry if self.origin else None,
            "iteration": self.origin.iteration if self.origin else None,
            "parameters": self.parameters,
            "gmacs_1280x720": self.gmacs,
        }
        return facts | ({"note": self.note} if self.note else {})


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
    subject = describe(options.name, net, weights=options.path.pretrain_network_g)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() and options.num_gpu != 0 else "cpu"))
    net.to(device, memory_format=torch.channels_last if options.channels_last else torch.preserve_format)
    if options.val.compile:
        compile_for_images(net, device, partial(build.autocast, options.precision, device), print)
    metrics = build_metrics(options.val.metrics)
    with results_folder(Path(options.path.results_root) / options.name) as folder:
        rows = [_measure(options, name, image_set, net, metrics, device, folder) for name, image_set in images.items()]
    named = [(options.name, row) for row in rows]
    facts = {**subject.facts(), "command": command}
    # Before the files: a disk that fills up in the meantime costs no numbers.
    print_table([subject], named, scale=options.scale)
    write(folder, named, facts)
    return rows


def in_tiles(options: Options, tile_size: int, tile_pad: int) -> Options:
    """`options` whose `val.tile` is that.

    Raises:
        MtkdError: there are no such tiles.
    """
    check_tiles(tile_size, tile_pad)
    tile = TileOptions(tile_size=tile_size, tile_pad=tile_pad)
    return options.model_copy(update={"val": options.val.model_copy(update={"tile": tile})})


def describe(
    name: str, net: nn.Module, *, weights: str | None = None, origin: zoo.Origin | None = None, note: str = ""
) -> Subject:
    """`net` as a network of a table, its cost counted; its `origin` is taken where none is given."""
    parameters, gmacs = _cost(net, name)
    return Subject(name, net, weights, origin or getattr(net, "origin", None), parameters, gmacs, note)


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


def _cost(net: nn.Module, name: str) -> tuple[int, float | None]:
    """Parameters, and multiply-adds where they can be counted: no reason to measure nothing else."""
    try:
        cost = complexity(net)
        return cost.params, cost.macs / 1e9
    except Exception as error:  # noqa: BLE001  a network from outside may refuse an image of that size as it likes
        print(f"Multiply-adds of {name} cannot be counted: {type(error).__name__}: {error}")
        return sum(parameter.numel() for parameter in net.parameters()), None


@contextmanager
def results_folder(wanted: Path) -> Iterator[Path]:
    """`make_free_folder`, which is gone again when the block fails before anything is saved there."""
    folder = make_free_folder(wanted)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


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


def print_table(subjects: Sequence[Subject], rows: Sequence[tuple[str, Evaluation]], *, scale: int) -> None:
    """Print `rows`, (network's name, its result on one set): a line per set for one network, else one per network."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    metrics = list(rows[0][1].values)
    one = subjects[0] if len(subjects) == 1 else None
    if one is not None:
        gmacs = "" if one.gmacs is None else f", {one.gmacs:.1f} GMACs to 1280x720"
        table = Table(title=Text(f"{one.name} (x{scale}, {one.parameters:,d} parameters{gmacs})"))
        table.add_column("test set")
        for heading in ("images", *metrics):
            table.add_column(heading, justify="right")
        for _, row in rows:
            table.add_row(Text(row.dataset), str(len(row.images)), *(f"{mean:.4f}" for mean in row.means().values()))
    else:
        table = Table(title=f"x{scale}")
        table.add_column("network", no_wrap=True)
        table.add_column("parameters", justify="right", no_wrap=True)
        table.add_column("GMACs", justify="right", no_wrap=True)
        sets = {row.dataset: len(row.images) for _, row in rows}
        for dataset, images in sets.items():
            heading = f"{dataset} ({images})\n{' / '.join(metrics)}"
            table.add_column(Text(heading), justify="right", no_wrap=True)
        found = {(name, row.dataset): row.means() for name, row in rows}
        for subject in subjects:
            means = [found[subject.name, dataset] for dataset in sets]
            table.add_row(
                Text(subject.name),
                f"{subject.parameters:,d}" if subject.parameters else "-",
                "-" if subject.gmacs is None else f"{subject.gmacs:.1f}",
                *(" / ".join(f"{mean[metric]:.4f}" for metric in metrics) for mean in means),
            )
    console = Console(width=None if sys.stdout.isatty() else 120)
    # A number is never cut, in however narrow a window.
    console.width = max(console.width, Console(width=10_000).measure(table).maximum)
    console.print(table)
    for subject in subjects:
        if subject.origin is not None:
            name, note = "" if one else f" of {subject.name}", f"; {subject.note}" if subject.note else ""
            console.print(Text(f"Weights{name}: {subject.origin}{note}"), soft_wrap=True)


def write(folder: Path, rows: Sequence[tuple[str, Evaluation]], facts: Mapping[str, Any]) -> None:
    """`write_results` with hardware and versions, and say where."""
    write_results(folder, rows, {**facts, "environment": environment()})
    print(f"Per image: {folder / 'metrics.csv'}; with hardware and versions: {folder / 'metrics.json'}")


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
