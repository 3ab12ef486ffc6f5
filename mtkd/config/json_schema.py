"""The grammar of option files as a JSON schema, for editors and for the page docs/options.md.

The schema is looser than the reader: arguments of networks, losses and metrics are the reader's to check, against the
signatures of what is named.
"""

from __future__ import annotations

from typing import Any

from mtkd import catalog
from mtkd.config.schema import (
    SCHEDULERS,
    TAKEN_OVER,
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

_DATA_KEYS = (
    "num_worker_per_gpu", "prefetch_mode", "num_prefetch_queue", "pin_memory", "persistent_workers",
    "dataset_enlarge_ratio", "use_shuffle", "color", "mean", "std",
)  # fmt: skip


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of training and test files; one that stands on a base may leave out or take away
    anything.
    """
    whole = _whole()
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


def _whole() -> dict[str, Any]:
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
        **_taken_over("dist_params", "find_unused_parameters"),
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
        "properties": properties | _taken_over(*(key for key in ignored if key not in properties)),
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


def _taken_over(*keys: str) -> dict[str, Any]:
    return {key: {"description": f"ignored: {TAKEN_OVER[key]}"} for key in keys}


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


INTRODUCTION = """\
# Option files

Made from the schema by `python -m mtkd.config.json_schema > docs/options.md`; edit the schema, not this page.

One file is one run. The keys are BasicSR's, further ones are ours. `mtkd check FILE` finds every problem of a file at
once, `mtkd config diff A B` shows what differs between two. `options/schema.json`, made by `mtkd config schema`, is for
editors: a file whose first line is `# yaml-language-server: $schema=PATH/schema.json` is checked and completed as you
type. The files under `options/` begin so, but for the bases, which say nothing in full.

`base: FILE` names a file that this one stands on (its path starts at the folder of the file that names it, and it has
no base of its own). Mappings are merged key by key; lists and single values take the place of the base's, and so does a
mapping with another `type`, whose keys are others. `~` takes away what the base says, but for `train.X_opt: ~` and
`param_key: ~`, which mean something themselves. The order of teachers is the base's. Problems name the file and line
where the value stands.

`{scale}` in a text is the number of `scale`, which `--scale N` of every command sets: `name: EDSR_x{scale}`. A text
that is `'{scale}'` alone becomes the number. `{network_g}` is likewise the name of the network that `network_g` names
(its `type` where it is written out), so that one file serves several students: `--force_yml network_g=rcan_lw`. Other
braces stay what they are. What is no text and depends on the scale is the crop size:
`gt_size: {x2: 128, x3: 129, x4: 128}`. `mtkd config show FILE --scale N` prints the file with all of that written out,
as a run keeps it in `resolved.yml`; the print is an option file that says the same.

Networks of known sizes have names, `network_g: edsr_m`, wherever a network stands; `mtkd list archs` shows them with
what they mean. `{type: ARCH, ...}` writes any network out.

Teachers and the fusion network need none of this where their weights say what they are:
`teachers: {edsr: zoo:edsr_l_x4, rcan: rcan.pth}`, `fusion: experiments/MTKD_fusion_x4/models/net_g_latest.pth`. Those
are the zoo's, all that mtkd writes, EDSR, RCAN and SwinIR in the authors' or BasicSR's naming (what no tensor shows,
such as `res_scale`, is assumed and said in one line), and what spandrel knows, where it is installed. A file need not
be there when its option file is checked without `--data`.

A key marked "ignored" belongs to BasicSR and has no effect here; the log says so in one line. A key that stands in
no table below is an error. `type: X` takes further keys: the arguments of X.
"""


def page() -> str:
    """The page docs/options.md."""
    sections: list[tuple[str, dict[str, Any]]] = [("", _whole())]
    lines = [INTRODUCTION]
    while sections:
        name, section = sections.pop(0)
        lines += [f"## `{name}`" if name else "## Top level", "", "| key | value | default | |", "|---|---|---|---|"]
        required = [*section.get("required", []), *section.get("then", {}).get("required", [])]
        named = [*section.get("properties", {}).items()]
        named += [(_pattern(key), value) for key, value in section.get("patternProperties", {}).items()]
        if isinstance(section.get("additionalProperties"), dict):
            named.append(("NAME", section["additionalProperties"]))
        for key, value in named:
            default = "required" if key in required else _value(value["default"]) if "default" in value else ""
            about = value.get("description", "").replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{key}` | {_kind(value)} | {default} | {about} |")
            if _is_section(value):
                sections.append((f"{name}.{key}" if name else key, value))
        lines.append("")
    return "\n".join(lines)


def _is_section(value: dict[str, Any]) -> bool:
    return bool(
        value.get("properties") or value.get("patternProperties") or isinstance(value.get("additionalProperties"), dict)
    ) and value.get("properties", {}).keys() not in ({"type"}, {"loss_weight"}, {"type", "lr"})


def _pattern(pattern: str) -> str:
    return {"_opt$": "NAME_opt", "^(val|test)(_.*)?$": "val, val_2, test_1, ..."}[pattern]


def _value(value: Any) -> str:
    if value is None:
        return "`~`"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _kind(value: dict[str, Any]) -> str:
    if "enum" in value:
        return " or ".join(f"`{item}`" for item in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(item) for item in value["anyOf"]))
    words = {"object": "mapping", "array": "list", "null": "`~`", "string": "text", "boolean": "`true` or `false`"}
    words |= {"integer": "whole number"}
    kinds = value.get("type", [])
    return " or ".join(words.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


if __name__ == "__main__":
    print(page(), end="")
