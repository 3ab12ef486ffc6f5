"""Reads `val` and its metrics."""

from __future__ import annotations

from typing import Any

from mtkd.config.basicsr_keys import METRICS_BETTER
from mtkd.config.problems import KeyPath, format_value, key_text, unknown_choice
from mtkd.config.read.arguments import check_arguments, lookup, typed
from mtkd.config.read.reader import Reader
from mtkd.config.schema import ValOptions

_IMAGE_ARGUMENTS = frozenset({"sr", "gt", "img", "img2", "target"})
"""What a metric compares: arguments that the file does not set."""


def read_validation(reader: Reader, data: Any) -> ValOptions:
    """`val`; the defaults after reporting what is wrong."""
    given = dict(reader.mapping(data, ("val",)))
    if "pbar" in given:
        reader.ignore_basicsr_key(("val", "pbar"))
        del given["pbar"]
    sets = [key for key in reader.sets if key != "train"]
    if reader.is_train:
        if given and not sets:
            reader.ignore(("val",), "there is no data set to validate on (datasets.val)")
        if sets and given.get("val_freq") is None:
            reader.problem(("val", "val_freq"), f"required, and missing: datasets.{sets[0]} would never be used.")
        if given.get("suffix") is not None:
            reader.ignore(("val", "suffix"), "images of a training carry the iteration")
            del given["suffix"]
    elif given.get("val_freq") is not None:
        reader.ignore(("val", "val_freq"), "a test file is measured once")
        del given["val_freq"]
    _read_best(reader, given, sets)
    metrics = reader.mapping(given.get("metrics"), ("val", "metrics"))
    given["metrics"] = {name: _metric(reader, value, ("val", "metrics", name)) for name, value in metrics.items()}
    return reader.section(ValOptions, given, ("val",)) or ValOptions()


def _read_best(reader: Reader, given: dict[str, Any], sets: list[str]) -> None:
    """Check `best_metric` and `best_set`; what has no effect is taken out of `given`."""
    metrics = given.get("metrics")
    for key, names in (("best_metric", list(metrics) if isinstance(metrics, dict) else []), ("best_set", sets)):
        name = given.get(key)
        if name is None:
            continue
        if not reader.is_train:
            reader.ignore(("val", key), "a test keeps no weights")
            del given[key]
        elif isinstance(name, str) and sets and name not in names:
            reader.problem(("val", key), unknown_choice(name, names))


def _metric(reader: Reader, data: Any, path: KeyPath) -> dict[str, Any]:
    if (found := typed(reader, data, path)) is None:
        return {}
    name, args = found
    given = args.pop("better", None)
    if given not in (None, "higher", "lower"):
        reader.problem((*path, "better"), f"must be 'higher' or 'lower', found {format_value(given)}.")
    better = given
    if (metric := lookup(reader, "metric", name, (*path, "type"))) is not None:
        args = check_arguments(reader, metric, args, path, f"a key of {name}", skip=_IMAGE_ARGUMENTS, more=["better"])
        better = given or getattr(metric, "better", None) or METRICS_BETTER.get(name)
        if better is None:
            message = (
                f"required, and missing: {name} does not declare which value is the better one. "
                "Write `better: higher` or `better: lower`."
            )
            reader.problem((*path, "better"), message)
    border = args.get("crop_border")
    if reader.scale and isinstance(border, int) and border != reader.scale:
        reader.notices.append(
            f"{key_text((*path, 'crop_border'))} is {border}; published numbers use the scale, {reader.scale}."
        )
    return {"type": name, **args} | ({} if better is None else {"better": better})
