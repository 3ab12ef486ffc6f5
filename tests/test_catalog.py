"""What names lead to: only things of the kind asked for, and for a weights file only what the user brought."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest
from torch import nn

from mtkd import catalog
from mtkd.contracts import MtkdError
from tests.config.samples import problems, train

OUTSIDE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)


def net(path: str) -> Net:
    return Net()


def unannotated(path):
    return Net()


def metric(sr, gt, crop_border=0):
    return (sr - gt).abs().mean((1, 2, 3)).double()


class Images:
    def __init__(self, options):
        pass

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {}
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(catalog, "_USER_MODULES", set())
    (tmp_path / "outside_parts.py").write_text(OUTSIDE)
    monkeypatch.delitem(sys.modules, "outside_parts", raising=False)
    return "outside_parts"


@pytest.mark.parametrize("kind", get_args(catalog.Kind))
@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "posix:system",
        "subprocess:Popen",
        "subprocess:check_output",
        "builtins:exec",
        "builtins:print",
        "builtins:dict",
        "shutil:rmtree",
        "functools:partial",
        "collections:OrderedDict",
        "torch:load",
        "mtkd.contracts:MtkdError",
    ],
)
def test_what_is_nothing_of_its_kind_is_refused(kind: catalog.Kind, name: str) -> None:
    if (kind, name) == ("metric", "torch:load"):
        return  # a function of two arguments; nothing but two images is ever given to it
    with pytest.raises(MtkdError, match="is not a .*was not called"):
        catalog.get(kind, name)


@pytest.mark.parametrize("name", [":", "a:", ":b", ".x:y", "a..b:c", "a:b:c", "a b:c", "\0:x", "no_such_module:x"])
def test_what_is_no_path_is_refused(name: str) -> None:
    with pytest.raises(MtkdError, match="not the path of a class|cannot be imported"):
        catalog.get("arch", name)


@pytest.mark.parametrize(
    ("text", "said"), [("import sys; sys.exit(0)", "SystemExit"), ("1 / 0", "ZeroDivisionError"), ("(", "SyntaxError")]
)
def test_a_module_that_fails_or_leaves_is_named(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "leaving_parts.py").write_text(text)
    with pytest.raises(MtkdError, match=f"leaving_parts.*{said}"):
        catalog.get("arch", "leaving_parts:Net")
    with pytest.raises(MtkdError, match=f"--import leaving_parts: {said}"):
        catalog.import_modules(["leaving_parts"])


def test_things_of_the_right_kind_from_outside_are_found(outside: str) -> None:
    found: list[tuple[catalog.Kind, str]] = [
        ("arch", f"{outside}:Net"),
        ("arch", f"{outside}:net"),
        ("arch", "torchvision.models:vgg19"),
        ("loss", "torch.nn:L1Loss"),
        ("metric", f"{outside}:metric"),
        ("dataset", f"{outside}:Images"),
    ]
    for kind, name in found:
        assert callable(catalog.get(kind, name))
    with pytest.raises(MtkdError, match="is not a network"):
        catalog.get("arch", f"{outside}:unannotated")


KEYS: dict[catalog.Kind, str] = {
    "arch": "network_g",
    "method": "model_type",
    "loss": "train.pixel_opt",
    "metric": "val.metrics.psnr",
    "dataset": "datasets.val",
}


@pytest.mark.parametrize("kind", get_args(catalog.Kind))
def test_an_option_file_may_name_what_the_catalog_finds_and_nothing_else(kind: catalog.Kind, outside: str) -> None:
    wrong = ["os:system", "builtins:dict", "torch.nn:Linear", "torch.nn.functional:l1_loss", "torch:add", "numpy:add"]
    mine = [f"{outside}:{name}" for name in ("Net", "net", "unannotated", "metric", "Images", "nn", "absent")]
    for name in [*wrong, *mine, "torchvision.models:vgg19", ":", "nothing"]:
        try:
            catalog.get(kind, name)
            refused = None
        except MtkdError as error:
            refused = str(error)
        key = KEYS[kind]
        # Something else is wrong as well, so that there is a list of problems in any case.
        found = problems(train, {key: name if kind == "method" else {"type": name}, "train.total_iter": -1})
        wanted = key if kind == "method" else f"{key}.type"
        said = [problem.message for problem in found if problem.key == wanted]
        assert said == ([] if refused is None else [refused]), name


def test_a_file_may_name_only_what_the_user_has_imported(outside: str) -> None:
    assert catalog.get("arch", "EDSR", from_file=True) is catalog.get("arch", "EDSR")
    name = f"{outside}:Net"
    for unasked in (name, "torch.nn:Identity", "os:system"):
        with pytest.raises(MtkdError, match="For safety a weights file builds no other class"):
            catalog.get("arch", unasked, from_file=True)
    assert outside not in sys.modules
    catalog.import_modules([outside])
    assert issubclass(catalog.get("arch", name, from_file=True), nn.Module)
    with pytest.raises(MtkdError, match="For safety a weights file builds no other class"):
        catalog.get("arch", f"{outside}:net", from_file=True)
    with pytest.raises(MtkdError, match="For safety a weights file builds no other class"):
        catalog.get("arch", f"{outside}:missing", from_file=True)


def test_basicsrs_own_networks_are_built_for_a_file_when_the_user_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mtkd.basicsr")
    monkeypatch.setattr(catalog, "_USER_MODULES", set())
    assert catalog.get("arch", "SpyNet") is not None
    with pytest.raises(MtkdError, match="--import basicsr"):
        catalog.get("arch", "SpyNet", from_file=True)
    catalog.import_modules(["basicsr"])
    assert catalog.get("arch", "SpyNet", from_file=True) is catalog.get("arch", "SpyNet")
