"""CONTRIBUTING.md stays true: its worked examples work, and what it names exists."""

from __future__ import annotations

import doctest
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch

import mtkd
from mtkd import catalog, cli
from mtkd.commands import boundary
from mtkd.config import yaml_loader
from mtkd.data.images import write_image
from mtkd.training.loop import train
from tests.archs import test_arch_conformance
from tests.helpers import photo
from tests.losses import test_loss_conformance
from tests.methods import setups, test_conformance
from tests.metrics import test_metric_conformance
from tests.runs import make_teachers, run_options

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {
    "loss": "## A worked example: the Huber loss",
    "arch": "### A network",
    "method": "### A method",
    "metric": "### A metric",
}
"""Kind -> the beginning of its section's heading."""

SUITES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "loss": (test_loss_conformance, test_loss_conformance.WITNESS),
    "arch": (test_arch_conformance, test_arch_conformance.SMALL),
    "method": (test_conformance, setups.SETUPS),
    "metric": (test_metric_conformance, test_metric_conformance.ARGUMENTS),
}
"""Kind -> its conformance suite, and the table there that a new entry needs a line in."""

UNMET = {"test_has_a_section_of_its_own_in_the_docs"}
"""What asks for a page that the examples do not write."""

COMMAND = "### A command"

(OPTIONS,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def python_of(heading: str) -> list[str]:
    """The blocks of Python under the heading that begins so."""
    (section,) = re.findall(rf"^{re.escape(heading)}.*?(?=^##)", PAGE, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> tuple[str, str, str]:
    """The example of a kind: file, line in the catalog, line in the table of its suite."""
    code, entry, line = python_of(SECTIONS[kind])
    return code, entry, line


def items(lines: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of a Python table adds to it."""
    return eval("{" + lines + "}", dict(names))


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Carry out the example of a kind, but for the folder of its file; returns its name in the catalog."""
    modules = []

    def followed(kind: str) -> str:
        code, entry, line = blocks(kind)
        suite, table = SUITES[kind]
        ((name, path),) = items(entry, {}).items()
        module = path.partition(":")[0].rpartition(".")[2] + "_of_the_example"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
        monkeypatch.setitem(catalog.TABLES[cast(catalog.Kind, kind)], name, f"{module}:{path.partition(':')[2]}")
        for key, value in items(line, {**vars(setups), **vars(suite)}).items():
            assert key == name
            monkeypatch.setitem(table, key, value)
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    yield followed
    for module in modules:
        sys.modules.pop(module, None)


def calls(suite: ModuleType, given: Mapping[str, Any], *, slow: bool) -> Iterator[Callable[[], None]]:
    """The slow tests of a suite, or the others, that ask for some of `given` and else only for their own parameters."""
    for key, test in vars(suite).items():
        if not key.startswith("test_") or key in UNMET:
            continue
        marks = getattr(test, "pytestmark", [])
        named = {mark.name for mark in marks}
        if "cuda" in named or ("slow" in named) != slow:
            continue
        asked = set(inspect.signature(test).parameters)
        own = {mark.args[0]: mark.args[1] for mark in marks if mark.name == "parametrize" and mark.args[0] != "name"}
        if asked & set(given) and asked <= {*given, *own}:
            for values in itertools.product(*own.values()):
                yield partial(
                    test, **{k: v for k, v in given.items() if k in asked}, **dict(zip(own, values, strict=True))
                )


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_example_passes_the_conformance_suite(kind: str, follow: Callable[[str], str]) -> None:
    name, (suite, _) = follow(kind), SUITES[kind]
    given: dict[str, Any] = {"name": name}
    if kind == "metric":
        # The fixtures of that suite; the border is the suite's own.
        given["metric"] = partial(catalog.get("metric", name), crop_border=test_metric_conformance.BORDER)
        photos = [photo(of, test_metric_conformance.Entry(0.0).size) for of in ("astronaut", "coffee", "chelsea")]
        given["gt"] = torch.stack([torch.from_numpy(one) for one in photos]).permute(0, 3, 1, 2).float() / 255
    tests = list(calls(suite, given, slow=False))
    assert len(tests) >= 10
    for test in tests:
        torch.manual_seed(0)
        test()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loss", "arch", "method"])
def test_the_example_passes_the_slow_tests_of_the_suite(kind: str, follow: Callable[[str], str]) -> None:
    tests = list(calls(SUITES[kind][0], {"name": follow(kind)}, slow=True))
    assert tests
    for test in tests:
        torch.manual_seed(0)
        test()


def test_the_example_of_the_example_is_right(follow: Callable[[str], str]) -> None:
    module = importlib.import_module(catalog.get("loss", follow("loss")).__module__)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert (result.attempted, result.failed) == (1, 0)


def test_the_example_trains_as_its_option_file_says(follow: Callable[[str], str], tmp_path: Path) -> None:
    given = yaml_loader.parse(OPTIONS).data["train"]
    assert given["pixel_opt"]["type"] == follow("loss")
    assert train(run_options(tmp_path, train={**given, "total_iter": 2})).exists()


def test_the_network_of_the_example_trains(follow: Callable[[str], str], tmp_path: Path) -> None:
    student = {"type": follow("arch"), "num_feat": 8, "upscale": 2}
    assert train(run_options(tmp_path, network_g=student, train={"total_iter": 2})).exists()


def test_the_method_of_the_example_trains(follow: Callable[[str], str], tmp_path: Path) -> None:
    teachers = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    terms = {"pixel_opt": {"type": "L1Loss"}, "edge_opt": {"loss_weight": 0.5}}
    options = run_options(tmp_path, model_type=follow("method"), teachers=teachers, train={**terms, "total_iter": 2})
    assert train(options).exists()


def test_the_command_of_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = python_of(COMMAND)
    command = ModuleType("size_of_the_example")
    exec(code, vars(command))
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, command))
    file = tmp_path / "photo.png"
    write_image(file, photo("coffee", (5, 7)))
    assert cli.main(["size", str(file)]) == 0
    assert capsys.readouterr().out == f"7x5 {file}\n"
    assert cli.main(["size", str(tmp_path / "none.png")]) == boundary.USER_ERROR


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`((?:mtkd|tests|docs|options)/[\w./]*|[A-Z]+\.md)`", PAGE))
    named -= {f"mtkd/{folder}/NAME.py" for folder in ("archs", "methods", "losses", "metrics")}
    assert len(named) > 15
    written = {items(blocks(kind)[1], {}).popitem()[1].partition(":")[0].replace(".", "/") + ".py" for kind in SECTIONS}
    written.add("mtkd/commands/size.py")
    assert written <= named
    assert sorted(path for path in named - written if not (ROOT / path).exists()) == []


def test_every_name_in_a_file_that_is_named_is_there() -> None:
    pairs = re.findall(r"`([A-Z_]+)` of\s+`([\w/]+\.py)`", PAGE)
    assert len(pairs) >= 6
    for name, path in pairs:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE), (name, path)


def test_every_make_target_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake\s+([a-z]+)\b", PAGE)) - {"the"} <= targets


def test_every_page_tells_the_same_version() -> None:
    citation = yaml_loader.parse((ROOT / "CITATION.cff").read_text(encoding="utf-8")).data
    changes = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert citation["version"] == mtkd.__version__
    assert mtkd.__version__ in changes[0]


def test_the_lowest_versions_that_are_tested_are_the_lowest_that_are_allowed() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)[";]', setup))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".github/lowest.txt").read_text(), flags=re.MULTILINE))
    assert tested.keys() == allowed.keys() - {"setuptools"}
    for name, version in tested.items():
        assert f"{version}.".startswith(f"{allowed[name]}."), name


def test_the_workflow_names_what_there_is() -> None:
    flow = yaml_loader.parse((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")).data
    commands = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    paths = re.findall(r"(?<![\w/.])(?:\.ci|\.github|tests)/[\w./]+", "\n".join(commands))
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).exists()] == []
