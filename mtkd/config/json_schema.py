"""The grammar of option files as a JSON schema, for editors and for the page docs/options.md, which running it prints.

The schema is looser than the reader: arguments of networks, losses and metrics are the reader's to check, against the
signatures of what is named.
"""

from __future__ import annotations

from typing import Any

from mtkd import catalog
from mtkd.config.basicsr_keys import IGNORED_KEYS, LOADER_KEYS
from mtkd.config.schema import (
    SCHEDULERS,
    CurriculumOptions,
    EvalSetOptions,
    Head,
    LoggerOptions,
    PathOptions,
    Section,
    TileOptions,
    TrainOptions,
    TrainSetOptions,
    ValOptions,
    WandbOptions,
)

_DATA_KEYS = (*(key for key in LOADER_KEYS if key != "batch_size_per_gpu"), "color", "mean", "std")


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of training and test files; one that stands on a base may leave out or take away
    anything.
    """
    whole = option_file()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mtkd option file",
        "if": {"required": ["base"]},
        "then": _of_a_layer(whole),
        "else": whole,
    }


def _of_a_layer(schema: Any) -> Any:
    """`schema` with nothing required, and `~`, which takes away what the base says, wherever a value has a type."""
    if isinstance(schema, list):
        return [_of_a_layer(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    layer = {key: _of_a_layer(value) for key, value in schema.items() if key != "required"}
    kinds = layer.get("type")
    if isinstance(kinds, str | list) and "enum" not in layer and "const" not in layer:
        layer["type"] = [*dict.fromkeys([*([kinds] if isinstance(kinds, str) else kinds), "null"])]
    return layer


def option_file() -> dict[str, Any]:
    """JSON schema of a file that stands on no base, the sections nested."""
    network = _named("arch", "a name of `mtkd list archs`, or a network with its constructor's arguments")
    network["type"] = ["string", "object"]
    teacher = {
        "type": ["string", "object"],
        "description": "a frozen network with its weights; a file or `zoo:NAME` alone, where these say what they are",
        "properties": {
            "network": {**network, "description": f"{network['description']}; without it, what the weights are of"},
            "pretrain": _text("weights: a file or `zoo:NAME`"),
            "param_key": {
                **_nullable("entry of the file that holds the weights, as `path.param_key_g`"),
                "default": "auto",
            },
        },
        "required": ["pretrain"],
        "additionalProperties": False,
    }
    top = _section(Head, about="an option file of mtkd: one training run, or one test")
    top["required"].remove("scale")
    top["properties"]["scale"]["description"] += "; required, here or as `--scale N`"
    top["properties"] |= {
        "base": _text("file that this one stands on; the path starts at the folder of this file"),
        "datasets": {
            "type": "object",
            "description": "images: `train` and any number of `val` sets to train, `test` sets to test",
            "properties": {"train": _data_set(TrainSetOptions, "images to train on, as random crops")},
            "patternProperties": {
                "^(val|test)(_.*)?$": _data_set(EvalSetOptions, "whole images to validate on or to test with"),
            },
            "additionalProperties": False,
        },
        "network_g": {**network, "description": f"the student, or what is tested: {network['description']}"},
        "teachers": {"type": "object", "description": "teachers by name", "additionalProperties": teacher},
        "fusion": {
            **teacher,
            "type": ["string", "object", "null"],
            "description": "how several teachers become one: `mean` of their images, or a fusion network (MTKD stage "
            "1) with its weights, given as a teacher is",
        },
        "target_store": _nullable("store of teacher images made by `mtkd teach`, used instead of the teachers"),
        "method": {"type": ["object", "null"], "description": "options of the method; see docs/methods.md"},
        "path": _section(PathOptions, ("ignore_resume_networks",), about="weights to begin with, folders to write to"),
        "train": _train(),
        "val": _val(),
        "logger": _logger(),
        **_ignored("dist_params", "find_unused_parameters"),
    }
    top["required"] = [*top["required"], "datasets", "network_g"]
    return top


def _section(model: type[Section], ignored: tuple[str, ...] = (), *, about: str) -> dict[str, Any]:
    """Schema of one section, which is described by `about`; keys that the reader fills are left out, keys without
    effect are added.
    """
    made = _in_json_words(model.model_json_schema())
    properties = {key: value for key, value in made["properties"].items() if key not in model.internal}
    for value in properties.values():
        value.pop("title", None)
    return {
        "type": "object",
        "description": about,
        "properties": properties | _ignored(*(key for key in ignored if key not in properties)),
        "required": [key for key in made.get("required", []) if key in properties],
        "additionalProperties": False,
    }


def _data_set(model: type[Section], about: str) -> dict[str, Any]:
    schema = _section(model, _DATA_KEYS, about=about)
    schema["properties"]["io_backend"] = {
        "type": ["object", "null"],
        "description": schema["properties"]["io_backend"]["description"],
        "properties": {"type": {"enum": ["disk", "lmdb"], "description": "files of images, or an lmdb folder"}},
    }
    if model is TrainSetOptions:
        number = schema["properties"]["gt_size"]
        schema["properties"]["gt_size"] = {
            "anyOf": [
                {key: value for key, value in number.items() if key != "description"},
                {"type": "object", "patternProperties": {"^x[0-9]+$": number}, "additionalProperties": False},
            ],
            "description": f"{number['description']}; for several scales `{{x2: 128, x3: 129, x4: 128}}`",
        }
    # A class from outside has keys of its own.
    ours = {"required": schema.pop("required"), "propertyNames": {"enum": list(schema["properties"])}}
    del schema["additionalProperties"]
    schema["properties"]["type"] = {"type": "string", "description": schema["properties"]["type"]["description"]}
    is_ours = {"properties": {"type": {"enum": list(catalog.DATASETS)}}}
    return schema | {"required": ["name", "type"], "if": is_ours, "then": ours}


_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _in_json_words(schema: Any) -> Any:
    """pydantic leaves limits that stand behind a validator in its own words."""
    if isinstance(schema, list):
        return [_in_json_words(item) for item in schema]
    if isinstance(schema, dict):
        return {_LIMITS.get(key, key): _in_json_words(value) for key, value in schema.items()}
    return schema


def _ignored(*keys: str) -> dict[str, Any]:
    return {key: {"description": f"ignored: {IGNORED_KEYS[key]}"} for key in keys}


def _text(about: str) -> dict[str, Any]:
    return {"type": "string", "description": about}


def _nullable(about: str) -> dict[str, Any]:
    return {"type": ["string", "null"], "description": about}


def _named(kind: catalog.Kind, about: str) -> dict[str, Any]:
    known: dict[str, Any] = {
        "type": "string",
        "description": f"its name: see `mtkd list {kind}s`; a class or function of your own is `my.module:NAME`",
        "anyOf": [{"enum": catalog.names(kind)}, {"type": "string"}],
    }
    return {"type": "object", "description": about, "properties": {"type": known}, "required": ["type"]}


def _train() -> dict[str, Any]:
    schema = _section(TrainOptions, about="how the student is trained")
    about = {key: value["description"] for key, value in schema["properties"].items()}
    optimizer = {
        "type": "object",
        "description": about["optim_g"],
        "properties": {
            "type": _text("class of torch.optim: Adam, AdamW, SGD, ..."),
            "lr": {"type": "number", "exclusiveMinimum": 0, "description": "learning rate before the scheduler"},
        },
        "required": ["type", "lr"],
    }
    arguments: dict[str, Any] = {}
    for model in SCHEDULERS.values():
        arguments |= _section(model, about="")["properties"]
    weight = {
        "anyOf": [{"type": "number"}, {"type": "array"}, {"type": "null"}],
        "description": "a number, or a schedule [[iteration, weight], ...]",
    }
    term = {
        "type": ["object", "null"],
        "description": "a loss term of the method, `~` switches it off; see docs/methods.md",
        "properties": {"loss_weight": weight},
    }
    schema["properties"] |= {
        "optim_g": optimizer,
        "optim_d": {**optimizer, "type": ["object", "null"], "description": about["optim_d"]},
        "scheduler": {
            "type": "object",
            "description": about["scheduler"],
            "properties": {
                "type": {"enum": list(SCHEDULERS), "description": "steps, the same under another name, or cosines"},
                **arguments,
            },
            "required": ["type"],
            "additionalProperties": False,
        },
        "curriculum": {**_section(CurriculumOptions, about=about["curriculum"]), "type": ["object", "null"]},
    }
    return schema | {"patternProperties": {"_opt$": term}}


def _val() -> dict[str, Any]:
    schema = _section(ValOptions, ("pbar",), about="how images are upscaled and measured, in training and in tests")
    about = {key: value["description"] for key, value in schema["properties"].items()}
    metric = _named("metric", "a metric with its arguments; `better: higher` or `lower`")
    metric["properties"]["better"] = {"enum": ["higher", "lower"], "description": "which value is the better one"}
    schema["properties"] |= {
        "metrics": {
            "type": ["object", "null"],
            "description": about["metrics"],
            "additionalProperties": metric,
        },
        "tile": {**_section(TileOptions, about=about["tile"]), "type": ["object", "null"]},
    }
    return schema


def _logger() -> dict[str, Any]:
    schema = _section(LoggerOptions, about="what a training run writes, and how often; not in a test file")
    wandb = _section(WandbOptions, about=schema["properties"]["wandb"]["description"])
    wandb["type"] = ["object", "null"]
    wandb["properties"]["project"] = _nullable(wandb["properties"]["project"]["description"])
    schema["properties"]["wandb"] = wandb
    return schema


if __name__ == "__main__":
    from mtkd.config.page import page

    print(page(), end="")
