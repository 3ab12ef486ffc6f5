"""Results of measuring: the rows of a table, the table on screen, CSV and JSON, and their folder."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.data.images import try_writing, write_bytes
from mtkd.data.kept import kept_inside
from mtkd.inference.evaluate import Evaluation
from mtkd.metrics.complexity import complexity
from mtkd.metrics.latency import RunningCost
from mtkd.runtime import strict_json
from mtkd.runtime.environment import environment


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
        note: a remark for readers of its numbers.
        bare: the network that computes every answer, where `net` remembers some.
        cost: what it costs on this machine, where that is measured.
    """

    name: str
    net: nn.Module
    weights: str | None
    origin: zoo.Origin | None
    parameters: int
    gmacs: float | None
    note: str = ""
    bare: nn.Module | None = None
    cost: RunningCost | None = None

    def facts(self) -> dict[str, Any]:
        """The facts stored with the numbers."""
        facts = {
            "name": self.name,
            "weights": self.weights,
            "entry": self.origin.entry if self.origin else None,
            "iteration": self.origin.iteration if self.origin else None,
            "parameters": self.parameters,
            "gmacs_1280x720": self.gmacs,
        }
        return facts | ({"note": self.note} if self.note else {}) | ({"cost": self.cost.facts()} if self.cost else {})


def describe(
    name: str, net: nn.Module, *, weights: str | None = None, origin: zoo.Origin | None = None, note: str = ""
) -> Subject:
    """`net` as a network of a table, its cost counted; its `origin` is taken where none is given."""
    parameters, gmacs = _cost(net, name)
    return Subject(name, net, weights, origin or getattr(net, "origin", None), parameters, gmacs, note)


def _cost(net: nn.Module, name: str) -> tuple[int, float | None]:
    """Parameters, and multiply-adds where they can be counted; where not, the rest is measured all the same.

    What a teacher costs whose answers are kept is not known here, and so is not what needs it; nor is a file of ONNX.
    """
    if kept_inside(net) or getattr(net, "outside_torch", False):
        return sum(parameter.numel() for parameter in net.parameters()), None
    try:
        cost = complexity(net, channels=getattr(net, "image_channels", 3))
        return cost.params, cost.macs / 1e9
    except Exception as error:  # noqa: BLE001  a network from outside may refuse an image of that size as it likes
        print(f"Multiply-adds of {name} cannot be counted: {type(error).__name__}: {error}")
        return sum(parameter.numel() for parameter in net.parameters()), None


def print_table(subjects: Sequence[Subject], rows: Sequence[tuple[str, Evaluation]], *, scale: int) -> None:
    """Print `rows`, (network's name, its result on one set): a line per set for one network, else one per network."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    metrics = list(rows[0][1].values)
    one = subjects[0] if len(subjects) == 1 else None
    if one is not None:
        gmacs = "" if one.gmacs is None else f", {one.gmacs:.1f} GMACs to 1280x720"
        parameters = f", {one.parameters:,d} parameters" if one.parameters else ""
        table = Table(title=Text(f"{one.name} (x{scale}{parameters}{gmacs})"))
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
        costs = any(subject.cost is not None for subject in subjects)
        for heading in ("latency", "memory") if costs else ():
            table.add_column(heading, justify="right", no_wrap=True)
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
                *(_spent(subject) if costs else ()),
                *(" / ".join(f"{mean[metric]:.4f}" for metric in metrics) for mean in means),
            )
    console = Console(width=None if sys.stdout.isatty() else 120)
    # Never cut a number, however narrow the window is.
    console.width = max(console.width, Console(width=10_000).measure(table).maximum)
    console.print(table)
    for subject in subjects:
        if subject.origin is not None:
            name, note = "" if one else f" of {subject.name}", f"; {subject.note}" if subject.note else ""
            console.print(Text(f"Weights{name}: {subject.origin}{note}"), soft_wrap=True)
    measured = [subject for subject in subjects if subject.cost is not None]
    if measured and (cost := measured[0].cost) is not None:
        height, width = (scale * side for side in cost.lq)
        latency, memory = (f"{text}, " for text in _spent(measured[0])) if one else ("", "")
        text = (
            f"Latency: {latency}median of one image of {width}x{height}, on {cost.device}, {cost.threads} CPU threads. "
            f"Memory: {memory}{cost.memory_is}."
        )
        console.print(Text(text), soft_wrap=True)


def _spent(subject: Subject) -> tuple[str, str]:
    """Latency and memory for the table; "-" for what was not measured."""
    if (cost := subject.cost) is None:
        return "-", "-"
    latency = f"{cost.latency:,.0f}" if cost.latency >= 100 else f"{cost.latency:.3g}"
    return f"{latency} ms", "-" if cost.memory is None else f"{cost.memory:,.0f} MiB"


def write(folder: Path, rows: Sequence[tuple[str, Evaluation]], facts: Mapping[str, Any]) -> None:
    """`write_results` with the hardware of `facts["device"]` and versions, and print where they are."""
    write_results(folder, rows, {**facts, "environment": environment(facts.get("device"))})
    print(f"Per image: {folder / 'metrics.csv'}; with hardware and versions: {folder / 'metrics.json'}")


def write_results(folder: Path, rows: Sequence[tuple[str, Evaluation]], facts: Mapping[str, Any]) -> None:
    """Write `metrics.csv` (one line per network, set and image) and `metrics.json` (means, and `facts`).

    Args:
        rows: (network's name, its result) pairs.
        facts: what is stored with the numbers: weights, hardware, versions, commit, command. `entry` and `iteration` of
            the weights stand in every line of the CSV too: those of the network in the list `networks`, found by its
            `name`, else those of all.

    Raises:
        MtkdError: the disk refuses.
    """
    metrics = list(dict.fromkeys(name for _, result in rows for name in result.values))
    about = {network: facts for network, _ in rows} | {one["name"]: one for one in facts.get("networks", ())}
    origin = [key for key in ("entry", "iteration") if any(key in known for known in about.values())]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["network", *origin, "dataset", "image", *metrics])
    for network, result in rows:
        for position, image in enumerate(result.images):
            cells = [result.values[name][position] if name in result.values else "" for name in metrics]
            writer.writerow([network, *map(about[network].get, origin), result.dataset, image, *cells])
    write_bytes(folder / "metrics.csv", text.getvalue().encode())
    means = [{"network": network, "dataset": result.dataset, **result.means()} for network, result in rows]
    write_bytes(folder / "metrics.json", (strict_json.dumps({**facts, "results": means}, indent=2) + "\n").encode())


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
    """`free_folder`, created by this process alone even when several try at once.

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
