"""The JSON schema, the page made from it, and the comparison of two option files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mtkd.cli import main
from mtkd.config import yaml_loader
from mtkd.config.basicsr_keys import IGNORED_KEYS
from mtkd.config.diff import diff
from mtkd.config.json_schema import json_schema
from mtkd.config.page import page
from tests.config.samples import BASICSR_EDSR, TEST, changed, mtkd, train

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("options/**/*.yml"), *ROOT.glob("tests/bridge/options/*.yml")])
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """What a JSON schema validator says, for the words that the schema uses."""
    known = {"type", "properties", "patternProperties", "additionalProperties", "required", "anyOf", "enum", "const"}
    known |= {"if", "then", "else", "propertyNames"}
    notes = {"description", "default", "title", "$schema", "items", "format"}
    limits = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems"}
    assert not schema.keys() - known - notes - limits, f"this test does not know {schema.keys()}"
    found: list[str] = []
    kinds = schema.get("type")
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds

        def fits(kind: str) -> bool:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if kind in ("integer", "number"):
                return number and (kind == "number" or float(value).is_integer())
            return isinstance(value, KINDS[kind])

        if not any(fits(kind) for kind in kinds):
            return [f"{where}: {value!r} is no {kinds}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r}")
    if "anyOf" in schema and all(faults(value, option, where) for option in schema["anyOf"]):
        found.append(f"{where}: {value!r} fits none")
    if "if" in schema:
        found += faults(value, schema.get("else" if faults(value, schema["if"], where) else "then", {}), where)
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        found.append(f"{where}: {value!r} too small")
    if isinstance(value, dict):
        found += [f"{where}: {key} unknown" for key in value if faults(key, schema.get("propertyNames", {}))]
        found += [f"{where}: {key} missing" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            pattern = next((s for p, s in schema.get("patternProperties", {}).items() if re.search(p, key)), None)
            rest = schema.get("additionalProperties", True)
            inside = schema.get("properties", {}).get(key, pattern)
            if inside is not None:
                found += faults(inner, inside, f"{where}.{key}")
            elif rest is False:
                found.append(f"{where}: {key} unknown")
            elif isinstance(rest, dict):
                found += faults(inner, rest, f"{where}.{key}")
    return found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


def test_every_option_file_fits_the_schema(schema: dict[str, Any]) -> None:
    assert len(FILES) > 20
    # A base alone is no option file; what it says fits beside a `base`.
    lacks = {path: {"base": ""} if path.parent.name == "base" else {} for path in FILES}
    wrong = {str(path): faults(yaml_loader.load(path).data | lacks[path], schema) for path in FILES}
    assert not {path: found for path, found in wrong.items() if found}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scalee", 2), ("train.total_itr", 3), ("val.metrics.psnr.type", 3), ("scale", "four"), ("logger.print_frq", 3),
        ("datasets.trian", {}), ("datasets.train.gt_sizee", 3), ("train.scheduler.gama", 0.5), ("precision", "fp8"),
        ("teachers.a", {"network": {"type": "EDSR"}}), ("path.strict_load_g", "yes"),
    ],
)  # fmt: skip
def test_the_schema_sees_what_is_wrong(schema: dict[str, Any], key: str, value: Any) -> None:
    base = yaml_loader.parse(BASICSR_EDSR).data
    assert not faults(base, schema) and not faults(TEST, schema)
    assert faults(changed(base, {key: value}), schema)


def test_a_file_on_a_base_may_leave_out_and_take_away_anything_and_misspell_nothing(schema: dict[str, Any]) -> None:
    top = {"base": "../base.yml", "name": "run_x{scale}", "train": {"optim_g": {"lr": 1e-3}}}
    assert not faults(top, schema)
    assert faults({key: value for key, value in top.items() if key != "base"}, schema)
    taken_away = changed(top, {"train.ema_decay": None, "val": None, "datasets": {"val": None}})
    assert not faults(taken_away, schema)
    assert faults(changed(top, {"train.total_itr": 5}), schema)


def test_the_schema_leaves_the_keys_of_a_class_from_outside_to_it(schema: dict[str, Any]) -> None:
    base = yaml_loader.parse(BASICSR_EDSR).data
    own = {"name": "x", "type": "my.module:Mine", "batch_size_per_gpu": 2, "anything": 3}
    assert not faults(changed(base, {"datasets.train": own}), schema)
    assert faults(changed(base, {"datasets.train": {**own, "type": "PairedImageDataset"}}), schema)


def test_every_ignored_key_is_in_the_schema(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert all(f'"{key}"' in text for key in IGNORED_KEYS)


def test_the_page_is_up_to_date() -> None:
    found = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    assert found == page(), "run: python -m mtkd.config.page > docs/options.md"


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str], schema: dict[str, Any]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema))


def test_what_differs_is_listed_with_defaults_and_nothing_else() -> None:
    assert diff(train(), train({"train.warmup_iter": -1})) == []
    changes = {"train.optim_g.lr": 2e-3, "train.clip_grad_norm": 1.0}
    assert diff(train(), train(changes)) == [
        "- train.optim_g.lr: 0.001",
        "+ train.optim_g.lr: 0.002",
        "+ train.clip_grad_norm: 1.0",
    ]


def test_the_order_of_teachers_is_a_difference() -> None:
    base = mtkd({"teachers.two": {"network": {"type": "RCAN"}, "pretrain": "x.pth"}, "fusion": "mean"})
    other = base.model_copy(update={"teachers": dict(reversed(base.teachers.items()))})
    (one, two) = diff(base, other)
    assert one == "- teachers (in order): ['one', 'two']" and two == "+ teachers (in order): ['two', 'one']"


def test_the_command_diff_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yml").write_text(BASICSR_EDSR)
    (tmp_path / "b.yml").write_text(BASICSR_EDSR.replace("scale: 4", "scale: 2").replace("upscale: 4", "upscale: 2"))
    assert main(["config", "diff", str(tmp_path / "a.yml"), str(tmp_path / "a.yml")]) == 0
    assert "the same run" in capsys.readouterr().out
    assert main(["config", "diff", str(tmp_path / "a.yml"), str(tmp_path / "b.yml")]) == 1
    assert "- scale: 4\n+ scale: 2\n" in capsys.readouterr().out
