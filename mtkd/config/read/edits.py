"""What changes an option file's values before they are read: `--force_yml` and `{scale}`."""

from __future__ import annotations

import typing
from typing import Annotated, Any

from mtkd.config import layers, yaml_loader
from mtkd.config.problems import FORCE, KeyPath, OptionError, Origin, Problem, key_text
from mtkd.config.read.reader import section_inside
from mtkd.config.schema import DatasetsOptions, EvalSetOptions, Options, Section, TeacherOptions, TrainSetOptions
from mtkd.config.signatures import whole
from mtkd.config.yaml_nodes import is_text


def apply_force(data: dict[str, Any], item: str) -> KeyPath | list[Problem]:
    """Set in `data` what `item`, `a:b=VALUE` with VALUE in YAML, says; returns the place, or the problem."""
    name, equals, text = item.partition("=")
    path = tuple(name.strip().split(":"))
    if not equals or not all(path):
        return [Problem(FORCE, None, "", f"{item!r} is not of the form a:b=VALUE.")]
    found: list[Problem] = []
    try:
        value = yaml_loader.parse(text, FORCE).data
    except OptionError as error:
        value, found = None, error.problems
    # `filename_tmpl={}x4` is text for BasicSR, not a mapping.
    if (found or value is not None) and not isinstance(value, str) and _takes_text(path) and is_text(text):
        value, found = text.strip(), []
    if found:
        return [Problem(FORCE, None, key_text(path), p.message) for p in found]
    target = data
    for depth, part in enumerate(path[:-1], start=1):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            message = f"{key_text(path[:depth])} holds a value, so nothing can be set inside it."
            return [Problem(FORCE, None, key_text(path), message)]
    target[path[-1]] = value
    return path


def filled(data: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """`data` with the number of `scale` in place of `{scale}`, and the name of the network in place of `{network_g}`.

    Raises:
        OptionError: `{scale}` stands somewhere, and there is no `scale`.
    """
    if layers.holds_scale(data):
        scale = whole(data.get("scale"))
        if scale is None:
            message = f"required, and missing: {layers.SCALE} stands in this file. Add --scale N, or `scale: N`."
            raise OptionError([origin.problem(("scale",), message)])
        if isinstance(scale, int) and not isinstance(scale, bool):
            data = layers.with_scale(data, scale)
    return layers.with_network(data)


class _Teachers(Section):
    """Stands for `teachers`, whose keys are names."""


def _takes_text(path: KeyPath) -> bool:
    """Whether the value at `path` is text, or nothing, and never anything else."""
    model: type[Section] | None = Options
    for part in path[:-1]:
        if model is DatasetsOptions:
            model = TrainSetOptions if part == "train" else EvalSetOptions
        elif model is Options and part == "teachers":
            model = _Teachers
        elif model is _Teachers:
            model = TeacherOptions
        else:
            model = section_inside(model, [part]) if model is not None else None
    field = model.model_fields.get(str(path[-1])) if model is not None else None
    if field is None:
        return False
    kinds = set(typing.get_args(field.annotation)) or {field.annotation}
    return all(kind in (str, type(None)) or _is_text_kind(kind) for kind in kinds)


def _is_text_kind(kind: Any) -> bool:
    return typing.get_origin(kind) is Annotated and typing.get_args(kind)[0] is str
