"""The grammar of option files as a JSON schema, for editors and for the page docs/options.md, which running it prints.

The schema is looser than the reader: arguments of networks, losses and metrics are the reader's to check, against the
signatures of what is named.
"""

from __future__ import annotations

from typing import Any

from mtkd import catalog
from mtkd.config.basicsr_keys import LOADER_KEYS
from mtkd.config.json_parts import ignored_keys, named, nullable, section_schema, text
from mtkd.config.schema import (
    SCHEDULERS,
    AnswersOptions,
    CurriculumOptions,
    EarlyStopOptions,
    EvalSetOptions,
    Head,
    LoggerOptions,
    PathOptions,
    Section,
    TeacherOptions,
    TileOptions,
    TrainOptions,
    TrainSetOptions,
    ValOptions,
    WandbOptions,
)

_DATA_KEYS = (*(key for key in LOADER_KEYS if key != "batch_size_per_gpu"), "color", "mean", "std")


_ABOUT_BETTER = "which value is the better one; required for a metric that does not declare it itself"


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
    network = named("arch", "a name of `mtkd list archs`, or a network with its constructor's arguments")
    network["type"] = ["string", "object"]
    teacher = {
        "type": ["string", "object"],
        "description": "a frozen network with its weights; a file or `zoo:NAME` alone, where these say what they are",
        "properties": {
            "network": {**network, "description": f"{network['description']}; without it, what the weights are of"},
            "pretrain": text("weights: a file or `zoo:NAME`"),
            "param_key": {
                **nullable("entry of the file that holds the weights, as `path.param_key_g`"),
                "default": "auto",
            },
        },
        "required": ["pretrain"],
        "additionalProperties": False,
    }
    fusion = {key: value for key, value in teacher.items() if key != "description"}
    answers = {
        "type": ["string", "object"],
        "description": AnswersOptions.model_fields["images"].description,
        "additionalProperties": text("folder or store of answers to the data set of this key or `name`"),
    }
    larger = {"type": ["integer", "null"], "minimum": 1, "default": None}
    larger["description"] = TeacherOptions.model_fields["scale"].description
    weights = text("weights: a file or `zoo:NAME`; required where `images` is not given")
    teacher = {
        **{key: value for key, value in teacher.items() if key != "required"},
        "properties": {**teacher["properties"], "scale": larger, "pretrain": weights, "images": answers},
        "if": {"required": ["images"]},
        "else": {"required": ["pretrain"]},
    }
    top = section_schema(Head, about="an option file of mtkd: one training run, or one test")
    top["required"].remove("scale")
    top["properties"]["scale"]["description"] += "; required, here or as `--scale N`"
    top["properties"] |= {
        "base": text("file that this one stands on; the path starts at the folder of this file"),
        "datasets": {
            "type": "object",
            "description": "images: `train` and any number of `val` sets to train, `test` sets to test",
            "properties": {"train": _data_set(TrainSetOptions, "images to train on, as random crops")},
            "patternProperties": {
                "^(val|test)(_.*)?$": _data_set(EvalSetOptions, "whole images to validate on or to test with"),
            },
            "additionalProperties": False,
        },
        "network_g": {
            **network,
            "description": f"the student, or what is tested: {network['description']}; a test "
            "file may have `teachers` alone",
        },
        "teachers": {
            "type": "object",
            "description": "teachers by name; a test file measures them too",
            "additionalProperties": teacher,
        },
        "fusion": {
            **fusion,
            "type": ["string", "object", "null"],
            "description": "how several teachers become one: `mean` of their images, or a fusion network (MTKD stage "
            "1) with its weights, given as a teacher is",
        },
        "target_store": nullable("store of teacher images made by `mtkd teach`, used instead of the teachers"),
        "method": {
            "type": ["object", "null"],
            "description": "options of the method, of several in sections of their names; see docs/methods.md",
        },
        "path": section_schema(
            PathOptions, ("ignore_resume_networks",), about="weights to begin with, folders to write to"
        ),
        "train": _train(),
        "val": _val(),
        "logger": _logger(),
        **ignored_keys("dist_params", "find_unused_parameters"),
    }
    top["required"] = [*top["required"], "datasets"]
    top["anyOf"] = [{"required": ["network_g"]}, {"required": ["teachers"]}]
    return top


def _data_set(model: type[Section], about: str) -> dict[str, Any]:
    schema = section_schema(model, _DATA_KEYS, about=about)
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
        schema["properties"]["residence"] = {
            "enum": ["auto", "device", "ram", "disk"],
            "description": "former name of `cache`; its `device` is now `gpu`",
        }
    # A class from outside has keys of its own.
    ours = {"required": schema.pop("required"), "propertyNames": {"enum": list(schema["properties"])}}
    del schema["additionalProperties"]
    schema["properties"]["type"] = {"type": "string", "description": schema["properties"]["type"]["description"]}
    is_ours = {"properties": {"type": {"enum": list(catalog.DATASETS)}}}
    return schema | {"required": ["name", "type"], "if": is_ours, "then": ours}


def _train() -> dict[str, Any]:
    schema = section_schema(TrainOptions, about="how the student is trained")
    about = {key: value["description"] for key, value in schema["properties"].items()}
    optimizer = {
        "type": "object",
        "description": about["optim_g"],
        "properties": {
            "type": text("class of torch.optim (Adam, AdamW, SGD, ...), or the path of one: package.module.Class"),
            "lr": {"type": "number", "exclusiveMinimum": 0, "description": "learning rate before the scheduler"},
        },
        "required": ["type", "lr"],
    }
    arguments: dict[str, Any] = {}
    for model in SCHEDULERS.values():
        arguments |= section_schema(model, about="")["properties"]
    weight = {
        "anyOf": [{"type": "number"}, {"type": "array"}, {"type": "null"}],
        "description": "a number, or a schedule [[iteration, weight], ...]",
    }
    term = {
        "type": ["object", "null"],
        "description": "a loss term of the method (of several: `NAME.target_opt`), `~` switches it off; see "
        "docs/methods.md",
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
        "early_stop": {**section_schema(EarlyStopOptions, about=about["early_stop"]), "type": ["object", "null"]},
        "curriculum": {**section_schema(CurriculumOptions, about=about["curriculum"]), "type": ["object", "null"]},
    }
    return schema | {"patternProperties": {"_opt$": term}}


def _val() -> dict[str, Any]:
    schema = section_schema(
        ValOptions, ("pbar",), about="how images are upscaled and measured, in training and in tests"
    )
    about = {key: value["description"] for key, value in schema["properties"].items()}
    metric = named("metric", "a metric with its arguments; `better: higher` or `lower`")
    metric["properties"]["better"] = {"enum": ["higher", "lower"], "description": _ABOUT_BETTER}
    schema["properties"] |= {
        "metrics": {
            "type": ["object", "null"],
            "description": about["metrics"],
            "additionalProperties": metric,
        },
        "tile": {**section_schema(TileOptions, about=about["tile"]), "type": ["object", "null"]},
    }
    return schema


def _logger() -> dict[str, Any]:
    schema = section_schema(LoggerOptions, about="what a training run writes, and how often; not in a test file")
    wandb = section_schema(WandbOptions, about=schema["properties"]["wandb"]["description"])
    wandb["type"] = ["object", "null"]
    wandb["properties"]["project"] = nullable(wandb["properties"]["project"]["description"])
    schema["properties"]["wandb"] = wandb
    return schema
