"""Results read back: what `mtkd test` and the last validation of a run have measured, image by image."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.runtime import given
from mtkd.runtime.run_folder import RunFolder

Values = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Data set -> metric -> image -> value, NaN where the cell is empty."""


@dataclass(frozen=True)
class Measured:
    """What one network has reached.

    Attributes:
        name: of the network.
        file: the `metrics.csv` it was read from.
        values: see `Values`.
        protocol: metric -> its type and arguments, `better` among them; empty where no `metrics.json` tells.
        validated: the values are those of a run's last validation.
    """

    name: str
    file: Path
    values: Values
    protocol: Mapping[str, Mapping[str, Any]]
    validated: bool

    def better(self, metric: str) -> Literal["higher", "lower"]:
        """Which value of a metric is the better one.

        Raises:
            MtkdError: neither the results nor a metric called so tell.
        """
        told = self.protocol.get(metric, {})
        if told.get("better") in ("higher", "lower"):
            return told["better"]  # else the metric itself tells
        kind = str(told.get("type", f"calculate_{metric}"))
        direction = getattr(catalog.get("metric", kind), "better", None) if kind in catalog.METRICS else None
        if direction is None:
            raise MtkdError(
                f"{self.file}: nothing tells which value of {metric!r} is the better one. Leave it out by --metric, or "
                f'write it into metrics.json beside it: {{"metrics": {{"{metric}": {{"better": "higher"}}}}}}.'
            )
        return direction


def read_measured(spec: str) -> Measured:
    """The results that `spec` names.

    Args:
        spec: a results folder of `mtkd test`, a `metrics.csv`, or a run folder, whose last validation is taken;
            `SPEC:NETWORK` where a file holds several networks.

    Raises:
        MtkdError: there is none, it is not such a file, or holds several networks and none, or another, is named.
    """
    path, network = given.path(spec), None
    if not path.exists() and ":" in spec:
        before, _, network = spec.rpartition(":")
        path = given.path(before)
    file, validated = _file(path)
    columns, lines = _lines(file)
    networks = list(dict.fromkeys(line["network"] for line in lines))
    if network is None and len(networks) > 1:
        raise MtkdError(
            f"{file} holds {len(networks)} networks: {', '.join(networks)}. Name one: `{path}:{networks[0]}`."
        )
    name = networks[0] if network is None else network
    if name not in networks:
        raise MtkdError(f"{file} holds no network called {name!r}, but {', '.join(networks)}.")
    protocol = _protocol(file)
    metrics = columns[columns.index("image") + 1 :]
    values: dict[str, dict[str, dict[str, float]]] = {}
    for number, line in enumerate(lines, start=2):
        if line["network"] != name:
            continue
        of_set = values.setdefault(line["dataset"], {metric: {} for metric in metrics})
        for metric in metrics:
            if line["image"] in of_set[metric]:
                raise MtkdError(f"{file}, line {number}: {line['dataset']}/{line['image']} stands there twice.")
            of_set[metric][line["image"]] = _number(line[metric], file, number)
    return Measured(name, file, values, protocol, validated)


def _file(path: Path) -> tuple[Path, bool]:
    """The CSV that `path` means, and whether it is of a validation."""
    given.check_readable(path)
    if path.is_file():
        return path, False
    if not path.is_dir():
        raise MtkdError(
            f"{path} does not exist. Give a results folder of `mtkd test`, a metrics.csv, or a run folder; "
            "FOLDER:NETWORK where several networks were measured together."
        )
    run = RunFolder(path)
    for folder, validated in ((path, False), (run.validation, True)):
        if (folder / "metrics.csv").is_file():
            return folder / "metrics.csv", validated
    if run.metrics.exists() or run.models.is_dir():
        raise MtkdError(
            f"{path} is a run without values of single images: it has not been validated since they are kept. Measure "
            f"it, `mtkd test {path}`, and compare the results folder that this names."
        )
    raise MtkdError(f"{path} holds no metrics.csv. Give a results folder of `mtkd test`, or a run folder.")


def _lines(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MtkdError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns, lines = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise MtkdError(f"{file} is not a CSV file: {error}.") from error
    if {"network", "dataset", "image"} - set(columns) or not columns[columns.index("image") + 1 :] or not lines:
        raise MtkdError(
            f"{file} is not a metrics.csv of `mtkd test`: expected columns network, dataset, image and one for each "
            f"metric, and lines; found {', '.join(columns[:8]) or 'nothing'}."
        )
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise MtkdError(f"{file}, line {number} has another number of cells than the first line. Is it torn?")
    return columns, lines


def _number(text: str, file: Path, line: int) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise MtkdError(f"{file}, line {line}: {text[:60]!r} is not a number.") from None


def _protocol(file: Path) -> dict[str, dict[str, Any]]:
    """What `metrics.json` beside `file` tells of the metrics; nothing where there is none."""
    beside = file.with_name("metrics.json")
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except (ValueError, RecursionError) as error:
        raise MtkdError(f"{beside} is not JSON: {error}. Restore it, or remove it to compare without it.") from error
    metrics = facts.get("metrics") if isinstance(facts, dict) else None
    if not isinstance(metrics, dict):
        return {}
    return {name: told for name, told in metrics.items() if isinstance(told, dict)}


def check_alike(results: Sequence[Measured], metrics: Sequence[str] | None = None) -> None:
    """Check that all of `results` are of the same images, measured in the same way.

    Args:
        metrics: only the arguments of these need agree; None for all.

    Raises:
        MtkdError: sets, images or arguments of a metric differ; the text names the first differences.
    """
    first = results[0]
    for other in results[1:]:
        pair = f"{first.file} and {other.file}"
        _same(first.values, other.values, f"{pair} hold different sets", "Measure both on the same `--data`.")
        for dataset, columns in first.values.items():
            images, theirs = ({image for one in m.values() for image in one} for m in (columns, other.values[dataset]))
            _same(images, theirs, f"{pair} hold different images of {dataset}", "Measure both on the same images.")
        for metric in [name for name in first.protocol if name in other.protocol and name in (metrics or [name])]:
            mine, its = (
                {key: value for key, value in one.protocol[metric].items() if key != "better"} for one in (first, other)
            )
            if mine != its:
                raise MtkdError(
                    f"{pair} measured {metric} differently: {mine} and {its}. Measure both by one option file, or "
                    "leave it out by --metric."
                )


def _same(first: Any, second: Any, what: str, advice: str) -> None:
    alone = [sorted(set(one) - set(other)) for one, other in ((first, second), (second, first))]
    if any(alone):
        listed = [", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "") for names in alone]
        told = "; ".join(f"only in the {place}: {text}" for place, text in zip(("first", "second"), listed) if text)
        raise MtkdError(f"{what}; {told}. {advice}")
