"""The YAML dialect of option files: numbers, duplicate keys, several errors at once, and a line for every key."""

from __future__ import annotations

import math
import random
import string
from pathlib import Path
from typing import Any

import pytest

from mtkd.config import yaml_loader
from mtkd.config.problems import OptionError


def value(text: str) -> Any:
    return yaml_loader.parse(f"x: {text}").data["x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2e-4", 2e-4),
        ("1e-4", 1e-4),
        ("5e3", 5000.0),
        ("-1E+2", -100.0),
        (".5", 0.5),
        ("255.", 255.0),
        ("!!float 1e-4", 1e-4),
        ("!!float 5", 5.0),
        (".inf", math.inf),
        ("3", 3),
        ("-3", -3),
        ("500_000", 500_000),
        ("010", 10),
        ("0x10", 16),
        ("!!int 7", 7),
        ("~", None),
        ("null", None),
        ("", None),
        ("true", True),
        ("false", False),
        ("yes", "yes"),
        ("off", "off"),
        ("'1e-4'", "1e-4"),
        ("!!str 3", "3"),
        ("1.0.0", "1.0.0"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("'{}x4'", "{}x4"),
        ("[1, 2e-1, a]", [1, 0.2, "a"]),
    ],
)
def test_scalars_are_yaml_1_2(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(value(".nan"))


def test_every_key_and_item_knows_its_line() -> None:
    document = yaml_loader.parse("a: 1\nb:\n  c: 2\n  d:\n    - x\n    -\n      e: 3\n")
    assert document.lines == {
        ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("b", "d", 0): 5, ("b", "d", 1): 7, ("b", "d", 1, "e"): 7,
    }  # fmt: skip


def test_aliases_and_merge_keys_work_and_own_keys_win() -> None:
    data = yaml_loader.parse("base: &b {p: 1, q: 2}\nx: {<<: *b, q: 3}\ny: *b\n").data
    assert data["x"] == {"p": 1, "q": 3}
    assert data["y"] == {"p": 1, "q": 2}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a: given twice; the first is on line 1"),
        ("a:\n  b: 1\n  b: 2", 3, "a.b: given twice"),
        ("a:\n\tb: 1", 2, "a tab"),
        ("a:\n  - 1\n\t- 2", 3, "a tab"),
        ("a: 1\nb: !!python/object/apply:os.system [x]", 2, "!!python/object/apply:os.system is not allowed"),
        ("a: !!python/name:os.system", 1, "is not allowed"),
        ("a: !mine {b: 1}", 1, "!mine is not allowed"),
        ("a: !!timestamp 2024-01-01", 1, "!!timestamp is not allowed"),
        ("a: !!set {b, c}", 1, "!!set is not allowed"),
        ("a: !!int x", 1, "'x' is not a whole number"),
        ("a: 1\n2: b", 2, "a key must be a name, found '2'"),
        ("? [a]\n: b", 1, "a key must be a name"),
        ("a: [1, 2\nb: 3", 2, "not YAML"),
        ("a: b: c", 1, "not YAML"),
        ("a: 1\n---\nb: 2", 2, "a second document"),
        ("a: &x [*x]", 1, "an alias that contains itself"),
        ("a: {<<: 3}", 1, "`<<` takes a mapping"),
        ("a: *nothing", 1, "undefined alias"),
    ],
)
def test_what_is_no_option_yaml_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(OptionError) as raised:
        yaml_loader.parse(text, "x.yml")
    (problem,) = raised.value.problems
    assert problem.line == line
    assert words in str(problem)
    assert str(problem).startswith(f"x.yml:{line}: ")


def test_all_bad_values_are_reported_at_once() -> None:
    with pytest.raises(OptionError) as raised:
        yaml_loader.parse("a: 1\na: 2\nb: !x 3\nc: !!int d")
    assert [problem.line for problem in raised.value.problems] == [2, 3, 4]


def test_an_exponential_alias_bomb_is_refused() -> None:
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(OptionError, match="more than 10,000 values, aliases counted"):
        yaml_loader.parse("\n".join(rows))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(OptionError, match="nested too deeply"):
        yaml_loader.parse("[" * 50_000)


def test_unreadable_files_say_what_they_are(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes | None, str]] = {
        "missing.yml": (None, "no such file"),
        "empty.yml": (b"", "empty"),
        "comment.yml": (b"# nothing\n", "empty"),
        "huge.yml": (b"a: 1\n" + b"#" * 1_000_001, "larger than 1 MB"),
        "binary.yml": (b"\x80\x02\xff", "not UTF-8"),
        "nul.yml": (b"a: \x00", "not YAML"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(OptionError, match=words) as raised:
            yaml_loader.load(path)
        assert str(raised.value).startswith(str(path))
    with pytest.raises(OptionError, match="cannot be read"):
        yaml_loader.load(tmp_path)


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert yaml_loader.load(tmp_path / "bom.yml").data == {"a": 1}


def test_dump_reads_back_equal() -> None:
    data = {
        "numbers": [1, 2e-05, 1e-4, 5000.0, -3, 1e300],
        "texts": [
            "2e-4",
            "yes",
            "on",
            "~",
            "null",
            "3",
            "",
            "a: b",
            "{}x4",
            "1_0",
            "ü",
            "#x",
            "- y",
            "true",
            "0x1f",
            "<<",
        ],
        "others": [None, True, False, [], {}],
        "nested": {"a": {"b": [{"c": (1, 2)}]}},
    }
    again = yaml_loader.parse(yaml_loader.dump(data)).data
    data["nested"]["a"]["b"][0]["c"] = [1, 2]  # pyright: ignore
    assert again == data
    assert [type(x) for x in again["numbers"]] == [type(x) for x in data["numbers"]]


def test_garbage_never_raises_anything_but_an_option_error() -> None:
    generator = random.Random(0)
    for _ in range(500):
        text = "".join(generator.choices(string.printable + "[]{}:,-&*!|>'\"%@`é", k=generator.randint(0, 60)))
        try:
            yaml_loader.parse(text)
        except OptionError as error:
            assert error.problems
