"""The page docs/options.md, made from the JSON schema."""

from __future__ import annotations

from typing import Any

from mtkd.config.json_schema import option_file

INTRODUCTION = """\
# Option files

Made from the schema by `python -m mtkd.config.page > docs/options.md`; edit the schema, not this page.

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
(its `type` where it is written out), which `--student NAME` sets, so that one file serves several students, and
`{teacher}` the published teacher of that student's family: `edsr_l` of `edsr_m`, `rcan` of `rcan_lw`, `swinir_m_div2k`
of `swinir_s`; of another student it is an error. Other braces stay what they are. What is no text and depends on the
scale is the crop size: `gt_size: {x2: 128, x3: 129, x4: 128}`. `mtkd config show FILE --scale N` prints the file with
all of that written out, as a run keeps it in `resolved.yml`; the print is an option file that says the same.

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
    sections: list[tuple[str, dict[str, Any]]] = [("", option_file())]
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
