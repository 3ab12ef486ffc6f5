"""Every key of an option file is read by something, and described."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtkd.config.read.reader import keys_of
from mtkd.config.schema import Section

PACKAGE = Path(__file__).parents[2] / "mtkd"
SCHEDULER = "SchedulerOptions.args, handed over whole by model_dump()"
SET = "PairedImages.of_section takes the section as a mapping"
WANDB = "the log takes `logger.wandb` as a mapping"
HANDED_OVER = {
    "filename_tmpl": SET,
    "io_backend": SET,
    "milestones": SCHEDULER,
    "gamma": SCHEDULER,
    "restarts": SCHEDULER,
    "restart_weights": SCHEDULER,
    "periods": SCHEDULER,
    "eta_min": SCHEDULER,
    "project": WANDB,
    "resume_id": WANDB,
    "cache": "read as TrainSetOptions.residence",
}
"""Keys that nothing reads as an attribute, and how they get where they have their effect."""
UNDESCRIBED = {
    "ItemSetOptions", "ItemTrainSetOptions", "NetworkOptions", "TeacherOptions", "FusionOptions", "OptimOptions",
    "SchedulerOptions", "TermOptions", "DatasetsOptions", "Options",
}  # fmt: skip
"""Sections that json_schema.py describes by hand: their keys are not their fields, or they are sections themselves."""


def sections(base: type[Section] = Section) -> Iterator[type[Section]]:
    for section in base.__subclasses__():
        yield from (section, *sections(section))


LEAVES = sorted({key for section in sections() for key in keys_of(section)})


def names_used(files: list[Path]) -> tuple[set[str], set[str]]:
    """What `files` read as attributes of something else than `self` or a module; and their texts and parameters."""
    attributes, words = set(), set()
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        imports = [node for node in nodes if isinstance(node, ast.Import)]
        others = {"self", *(alias.asname or alias.name for node in imports for alias in node.names)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in others):
                attributes.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            elif isinstance(node, ast.arg):
                words.add(node.arg)
    return attributes, words


@pytest.fixture(scope="module")
def used() -> tuple[set[str], set[str]]:
    return names_used([file for file in PACKAGE.rglob("*.py") if PACKAGE / "config" not in file.parents])


@pytest.mark.parametrize("key", LEAVES)
def test_every_key_is_read_outside_config(used: tuple[set[str], set[str]], key: str) -> None:
    # By name alone: an attribute of the same name on another object hides a key that nothing reads.
    attributes, words = used
    if key == "cache":
        assert "residence" in attributes
    elif key in HANDED_OVER:
        assert key in words
    else:
        assert key in attributes, f"nothing reads {key}: remove it, or say in HANDED_OVER how it is handed over"


def test_no_exception_is_out_of_date(used: tuple[set[str], set[str]]) -> None:
    assert set(HANDED_OVER) <= set(LEAVES)
    assert not {key for key in HANDED_OVER if key in used[0]}


def test_a_key_that_nothing_reads_is_seen(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(
        "import torch\ndef f(options):\n    self.unread = torch.unread\n    return options.read\n"
    )
    attributes, _ = names_used([tmp_path / "reader.py"])
    assert "read" in attributes and "unread" not in attributes


@pytest.mark.parametrize("section", sorted(sections(), key=lambda section: section.__name__))
def test_every_key_is_described(section: type[Section]) -> None:
    if section.__name__ not in UNDESCRIBED and not section.__name__.startswith("_"):
        assert not [key for key in keys_of(section) if not section.model_fields[key].description]
