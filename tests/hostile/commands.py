"""Command lines: every command and flag of the parser, with values that are wrong on purpose.

The parser itself is read, so a new flag is attacked from the day on which it exists.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mtkd.cli import parser
from tests.hostile import mutations, sandbox
from tests.hostile.cases import Case
from tests.hostile.ground import Ground, dump

_LONG = {"demo"}
"""Commands that take minutes when they are given what they want."""
_ENVIRONMENT = (
    ("RANK", "x"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "-1"), ("MTKD_HOME", "~nosuchuser/x"), ("MTKD_HOME", "/proc/x"),
    ("MTKD_HOME", ""), ("MTKD_HOME", "x" * 300),
    ("MTKD_HOME", "run.yml"), ("SLURM_PROCID", "x"), ("CUDA_VISIBLE_DEVICES", "7"), ("HOME", ""), ("TMPDIR",
        "/proc/x"), ("COLUMNS", "x"), ("PYTHONHASHSEED", "x"),
    ("MASTER_PORT", "x"), ("TORCHELASTIC_RUN_ID", "1"), ("LANG", "x"), ("RANK", "1"),
)  # fmt: skip
_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "1e3",
    "nan",
    "inf",
    "x",
    "",
    "9" * 4301,
    "9" * 20,
    "1/2",
    "0/0",
    "3/2",
    "1/" + "9" * 30,
    "-1/2",
    "1/2/3",
    "1.5",
    "٣",
    " 1",
    "+1",
)
_OTHERS = ("meta", "mps", "xpu", "cuda", "cuda:99", "cpu:1", "cpu", "hip", "privateuseone", "EDSR", "NoSuch",
    "os:system", "builtins:dict", ":", "num_feat=4", "num_feat=", "=4",
           "num_feat=os.system('touch PWNED')", "args=['touch','PWNED']", "params", "params_ema", "~", "official",
           "fp16", "uint8", "none", "pytorch", "slurm", "sys", "evil", "this.is.no.module",
           "train:optim_g:lr=x", "scale=2", "a:b=c", "=", "edsr_m_x2", "zoo:edsr_m_x2", "../x", "archs", "recipe:",
           "recipe:../benchmark", "recipe:no/such")  # fmt: skip


def actions(
    of: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[argparse.Action]]]:
    """Every command, as its words, with what it may be given."""
    inner = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield path, [action for action in of._actions if action.dest != "help"]
    for action in inner:
        for name, command in action.choices.items():
            yield from actions(command, (*path, name))


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Command lines, most of them nearly right."""
    table = dict(actions(parser()))
    # Copies: what a command writes into them would be in the way of all later cases.
    trees = tuple((f"near/{part.name}", part.relative_to(ground.root).as_posix()) for part in (
        ground.weights, ground.images, ground.encoded, ground.root / "taught/targets"))  # fmt: skip
    weights, image = f"near/{ground.weights.name}/net.pth", f"near/{ground.encoded.name}/rgb.png"
    images, encoded = f"near/{ground.images.name}", f"near/{ground.encoded.name}"
    places = (weights, image, images, encoded, "run.yml", "test.yml", "teach.yml", "folder",
        "out", "out.png", "out/x/y.png", "pipe", "pipe.png", "pipe.yml",
              "folder/pipe.png", "empty", "loop", "run.yml/x", "/dev/null", "/proc/x/y.png", "/dev/full",
              f"near/{ground.weights.name}/net.safetensors", "near/targets")  # fmt: skip
    right: dict[tuple[str, ...], tuple[str, ...]] = {
        ("train",): ("-opt", "run.yml"),
        ("test",): ("-opt", "test.yml"),
        ("check",): ("run.yml",),
        ("config", "diff"): ("run.yml", "test.yml"),
        ("upscale",): (image, "out.png", "--weights", weights),
        ("teach",): ("-opt", "teach.yml"),
        ("demo",): ("--quick", "--out", "/proc/x"),
        ("list",): ("archs",),
        ("zoo", "info"): ("edsr_m_x2",),
        ("zoo", "download"): ("edsr_m_x2",),
        ("zoo", "import"): ("edsr_m_x2", weights),
        ("data", "lay"): ("Kodak24", "--from", images),
        ("data", "check"): (images, "--lq", images, "--scale", "1"),
        ("data", "lr"): (images, "out", "--scale", "2"),
        ("data", "meta"): (images, "out/meta.txt"),
        ("data", "sub"): (images, "out", "--size", "8"),
        ("data", "manifest"): (images,),
        ("zoo", "convert"): (weights, "o.safetensors", "--to", "safetensors"),
    }
    also_right = {("test",): (weights, "--data", images, "--with", "bicubic")}
    anything = st.one_of(
        st.sampled_from(places),
        st.sampled_from(places),
        st.sampled_from(mutations.PATHS),
        st.sampled_from(_NUMBERS),
        st.sampled_from(_OTHERS),
        st.text(max_size=6),
    ).map(lambda text: text.replace("\0", "").encode("utf-8", "replace").decode())
    files = {
        "run.yml": dump(ground.validated(train={"total_iter": 2})),
        "test.yml": dump(ground.test()),
        "teach.yml": dump(ground.taught()),
        "folder/x.png": (ground.encoded / "rgb.png").read_bytes(),
        "evil.py": b"import sys\nsys.exit(0)\n",
    }

    def values(draw: st.DrawFn, action: argparse.Action) -> list[str]:
        if action.nargs == 0:
            return []
        count = draw(st.integers(0, 3)) if action.nargs in ("+", "*", "?") else 1
        pick = st.one_of(anything, st.sampled_from(_NUMBERS)) if action.type is int else anything
        if action.choices and draw(st.booleans()):
            pick = st.sampled_from(sorted(map(str, action.choices)))
        return [draw(pick) for _ in range(count)]

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        command = draw(st.sampled_from(sorted(table)))
        known = table[command]
        line = list(right.get(command, ()))
        if command in also_right and draw(st.booleans()):
            line = list(also_right[command])
        flags = [action for action in known if action.option_strings]
        for _ in range(draw(st.integers(0, 3))):
            way = draw(st.sampled_from(("flag", "flag", "replace", "drop", "extra", "bare")))
            if way == "flag" and flags:
                action = draw(st.sampled_from(flags))
                line += [draw(st.sampled_from(action.option_strings)), *values(draw, action)]
            elif way == "replace" and line:
                line[draw(st.integers(0, len(line) - 1))] = draw(anything)
            elif way == "drop" and line:
                del line[draw(st.integers(0, len(line) - 1))]
            elif way == "extra":
                line.insert(draw(st.integers(0, len(line))), draw(anything))
            elif way == "bare":
                line += [draw(st.sampled_from(("--", "-", "--nothing", "-x", "--help", "--version", "--debug")))]
        if command[0] in _LONG:
            line += ["--out", "/proc/x"]
        if "--compile" in line:
            line = ["--help"]
        facts = {"environment": [draw(st.sampled_from(_ENVIRONMENT))] if draw(st.integers(0, 5)) == 0 else []}
        return Case("commands", ((*command, *line),), files, trees, before="world", facts=facts)

    return case()


def _world(facts: Mapping[str, Any]) -> None:
    """FIFOs, an empty folder, links that lead to themselves, no pauses between attempts, the case's environment."""
    from mtkd.zoo import download

    download.PAUSE = 0.0
    Path("empty").mkdir(exist_ok=True)
    for name in ("pipe", "pipe.png", "pipe.yml", "folder/pipe.png"):
        if not Path(name).exists():
            os.mkfifo(name)
    os.symlink("loop", "loop")
    for name, value in facts["environment"]:
        os.environ[name] = value


sandbox.BEFORE["world"] = _world
