"""Recipes by name, and what else comes with mtkd."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtkd.cli import main
from mtkd.contracts import MtkdError
from mtkd.runtime import shipped

NAMES = list(shipped.recipes())
FOLDER = Path(__file__).parents[2] / "options/train"


def test_a_name_is_the_path_under_options_train() -> None:
    assert sorted(NAMES) == sorted(path.relative_to(FOLDER).as_posix()[:-4] for path in FOLDER.rglob("*.yml"))
    assert all(shipped.recipe_name(shipped.recipe(name)) == name for name in NAMES[:3])
    assert shipped.recipe_name(Path("run.yml")) is None


def test_every_recipe_says_in_a_sentence_what_it_is() -> None:
    said = {name: shipped.summary(path) for name, path in shipped.recipes().items()}
    assert [name for name, text in said.items() if len(text) < 15 or "$schema" in text or "mtkd train" in text] == []


@pytest.mark.parametrize("change", [str.swapcase, lambda name: name + ".yml", lambda name: name.rpartition("/")[2]])
def test_an_unknown_name_gives_the_nearest_ones(change) -> None:
    unknown = change(NAMES[0])
    folder = NAMES[0].rpartition("/")[0] if "/" in unknown else ""
    with pytest.raises(MtkdError, match=f"No recipe is called .*Did you mean {folder}.*mtkd list recipes"):
        shipped.recipe(unknown)


@pytest.mark.parametrize("name", ["", "..", "../benchmark", "/etc/passwd", "x" * 5000, "\0"])
def test_a_name_is_no_path(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"recipe:{name}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mtkd: No recipe is called") and said.count("\n") == 1 and len(said) < 300


def test_what_is_missing_says_where_it_was_looked_for() -> None:
    with pytest.raises(MtkdError, match="options/nothing.yml is missing from this installation"):
        shipped.file("options/nothing.yml")


def test_a_recipe_is_taken_wherever_an_option_file_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, scale = f"recipe:{NAMES[0]}", ["--scale", "4"]
    assert main(["check", name, *scale]) == 0
    assert main(["config", "diff", name, name, *scale]) == 0
    assert main(["config", "show", name, *scale]) == 0
    assert "\nscale: 4\n" in capsys.readouterr().out
    for command in (["test", "-opt", name], ["upscale", "in", "out", "-opt", name]):
        assert main([*command, *scale]) == 2
        assert "this is a training file" in capsys.readouterr().err
    for command in ("train", "teach"):
        # What stops them is that key, so that the recipe was found and read.
        assert main([command, "-opt", name, *scale, "--force_yml", "no_such_key=1"]) == 2
        assert "no_such_key: unknown key" in capsys.readouterr().err


def test_list_recipes_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "recipes"]) == 0
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == NAMES
