"""Option files and `--force_yml` values: texts and structures of valid ones, changed at one to three places.

Runnable ones go through `check --data` and then the run that they describe, two iterations long: what the check
accepts the run must not refuse, and nothing may be a traceback. An option file is a program and may name any class;
what it names must be a network, a loss, a metric or a data set before it is called, and the canary of these cases is
none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from mtkd.config import layers, load_options, resolved_yaml
from tests.config import samples
from tests.hostile import mutations
from tests.hostile.cases import Case
from tests.hostile.ground import Ground, dump
from tests.hostile.mutations import DIGITS

ROOT = Path(__file__).parents[2]
SHORT = "train:total_iter=2"

_NAMED = (
    "subprocess:Popen",
    "subprocess:check_output",
    "os:system",
    "builtins:exec",
    "builtins:eval",
    "pathlib:Path.touch",
    "shutil:copy",
)
_ARGUMENTS: tuple[Any, ...] = (
    {"args": ["touch", "PWNED"]}, {"command": "touch PWNED"}, {"source": "open('PWNED', 'w')"}, {"src": "run.yml",
        "dst": "PWNED"},
)  # fmt: skip


def text_of(data: Any) -> bytes:
    """A structure as a YAML text, the number of too many digits written out."""
    try:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, ValueError, TypeError):
        text = repr(data)
    return text.replace(f"'{DIGITS}'", "9" * 4301).replace(DIGITS, "9" * 4301).encode("utf-8", errors="replace")


def run_of(kind: str) -> tuple[str, ...]:
    """The command that runs an option file of a sort, shortly."""
    return {
        "train": ("train", "-opt", "run.yml", "--force_yml", SHORT),
        "taught": ("teach", "-opt", "run.yml"),
        "test": ("test", "-opt", "run.yml"),
    }[kind]


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Changed option files."""
    runnable = {"train": ground.validated(), "taught": ground.taught(), "test": ground.test()}
    # Written out: a case is one file, and what is wrong with it should not be that its base is elsewhere.
    texts = [resolved_yaml(load_options(path)) for path in layers.runs_among(sorted((ROOT / "options").rglob("*.yml")))]
    texts += [samples.BASICSR_EDSR, *(dump(data).decode() for data in (samples.TRAIN, samples.TEST))]
    texts += [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests/bridge/options").glob("*.yml"))]

    @st.composite
    def structured(draw: st.DrawFn) -> Case:
        kind = draw(st.sampled_from(sorted(runnable)))
        data = draw(mutations.restructured(runnable[kind]))
        commands = (("check", "run.yml", "--data"), run_of(kind))
        # That a file is meant for `teach`, no check can know.
        return Case("options", commands, {"run.yml": text_of(data)}, facts={"contents": kind == "taught"})

    @st.composite
    def textual(draw: st.DrawFn) -> Case:
        if draw(st.booleans()):
            kind = draw(st.sampled_from(sorted(runnable)))
            content = draw(mutations.rewritten(dump(runnable[kind]).decode()))
            facts = {"contents": kind == "taught"}
            return Case("options", (("check", "run.yml", "--data"), run_of(kind)), {"run.yml": content}, facts=facts)
        text = draw(st.sampled_from(texts))
        content = draw(mutations.rewritten(text))
        command = draw(
            st.sampled_from(
                (("check", "run.yml"), ("check", "run.yml", "--data"), ("config", "diff", "run.yml", "same.yml"))
            )
        )
        return Case("options", (command,), {"run.yml": content, "same.yml": text.encode()})

    @st.composite
    def naming(draw: st.DrawFn) -> Case:
        kind = draw(st.sampled_from(("train", "test")))
        data = json.loads(json.dumps(runnable[kind]))
        bad = {"type": draw(st.sampled_from(_NAMED)), **draw(st.sampled_from(_ARGUMENTS))}
        place = draw(st.sampled_from(("network_g", "metric", "loss", "dataset", "optimizer", "teacher", "model_type")))
        if place == "network_g":
            data["network_g"] = bad
        elif place == "metric":
            data["val"]["metrics"]["psnr"] = bad
        elif place == "dataset":
            name = "train" if kind == "train" else "test_1"
            data["datasets"][name] = {"name": "x", "gt_size": 16, "batch_size_per_gpu": 2, **bad}
        elif place == "loss":
            data.setdefault("train", {})["pixel_opt"] = bad
        elif place == "optimizer":
            data.setdefault("train", {})["optim_g"] = bad
        elif place == "teacher":
            data |= {"model_type": "OutputKD", "teachers": {"t": {"network": bad}}}
        else:
            data["model_type"] = bad["type"]
        return Case("options", (("check", "run.yml", "--data"), run_of(kind)), {"run.yml": text_of(data)})

    return st.one_of(structured(), structured(), structured(), textual(), textual(), naming())


def forced(ground: Ground) -> st.SearchStrategy[Case]:
    """Valid option files with `--force_yml` values that nobody expects."""
    runnable = {"train": ground.validated(), "taught": ground.taught(), "test": ground.test()}
    keys = {kind: [":".join(map(str, path)) for path in mutations.places(data)] for kind, data in runnable.items()}
    more = (
        "train:optim_g:nesterov", "train:optim_g:momentum", "train:optim_g:fused", "train:optim_g:foreach",
        "train:optim_g:etas", "train:optim_g:betas",
        "train:optim_g:differentiable", "train:optim_g:weight_decay", "train:clip_grad_norm", "train:accumulate",
        "train:warmup_iter",
        "train:curriculum", "train:pixel_opt:loss_weight", "train:pixel_opt:reduction", "train:scheduler:milestones",
        "network_g:upscale",
        "network_g:res_scale", "network_g:img_range", "network_g:rgb_mean", "path:param_key_g", "path:strict_load_g",
        "path:resume_state",
        "path:pretrain_network_g", "path:results_root", "datasets:train:filename_tmpl", "datasets:val:filename_tmpl",
        "datasets:train:dataroot_lq",
        "datasets:train:meta_info_file", "datasets:train:io_backend:type", "datasets:train:cache",
        "datasets:train:num_worker_per_gpu",
        "datasets:train:use_rot", "datasets:test_1:name", "val:suffix", "val:tile:size", "val:tile:pad",
        "val:save_img", "val:metrics:psnr:better",
        "precision", "compile", "channels_last", "deterministic", "teacher_precision", "logger:use_tb_logger",
        "logger:wandb:project",
        "dist_params:backend", "method:x", "method", "fusion", "teachers", "", ":", "::", "a:b:c:d", "=", "network_g",
        "datasets", "train",
    )  # fmt: skip
    wild = (
        "{}{0}",
        "{}{",
        "{}_{x}",
        "[2,1]",
        "{a: 1}",
        "[[[",
        "&a [*a]",
        "!!python/object/apply:os.system [touch PWNED]",
        "9" * 4301,
        "1/9",
    )

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        kind = draw(st.sampled_from(sorted(runnable)))
        pairs = []
        for _ in range(draw(st.integers(1, 2))):
            key = draw(st.one_of(st.sampled_from(keys[kind]), st.sampled_from(more)))
            value = draw(st.one_of(mutations.values.map(_word), st.sampled_from(wild), st.text(max_size=8)))
            equals = draw(st.sampled_from(("=",) * 9 + ("",)))
            # compile: true takes a compiler and a minute.
            pairs.append(f"{key}{equals}{value}".replace("\0", "") if key != "compile" else "compile=x")
        command = run_of(kind)[:3]
        tail = (SHORT,) if kind == "train" else ()
        return Case("forced", ((*command, "--force_yml", *pairs, *tail),), {"run.yml": dump(runnable[kind])})

    return case()


def _word(value: Any) -> str:
    if value == DIGITS:
        return "9" * 4301
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return "x"
