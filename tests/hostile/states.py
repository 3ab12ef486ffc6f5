"""Run folders: training states and weights with changed bytes and contents, files lost, strange files beside them.

A run that was ended at its fourth iteration is resumed. Where it goes on with exit code 0, its final weights must be
those of the uninterrupted run, unless the file says otherwise and all its checksums are right. Nothing may overwrite
weights that a run does not resume from.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tests.hostile import mutations, sandbox
from tests.hostile.cases import Case
from tests.hostile.ground import Ground
from tests.hostile.weights import OPCODES, damage, disguised, payloads, same, saved, tensors_like

RUN = "experiments/tiny"
STATE, MODEL = f"{RUN}/training_states/4.state", f"{RUN}/models/net_g_4.pth"
RESUME = ("train", "-opt", "run.yml", "--auto_resume")


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Ended runs, and what became of them."""
    ended = ground.root / "ended"
    state = torch.load(ended / STATE, weights_only=True)
    raw = {name: (ended / name).read_bytes() for name in (STATE, MODEL)}
    hidden = payloads()
    options = (ended / "run.yml").read_bytes()
    resumed = ("@resumed", str(ground.root / "whole" / RUN / "models/net_g_latest.pth"))

    def case(files: Mapping[str, bytes], *, force: tuple[str, ...] = (), tree: str = "ended", **facts: Any) -> Case:
        trees = ((RUN, f"{tree}/{RUN}"), ("home", f"{tree}/home"), ("run.yml", f"{tree}/run.yml"))
        command = (*RESUME, "--force_yml", *force) if force else RESUME
        return Case("states", (command, resumed), files, trees, facts={"checked": [STATE, MODEL], **facts})

    @st.composite
    def changed(draw: st.DrawFn) -> Case:
        name = draw(st.sampled_from((STATE, STATE, MODEL)))
        return case({name: draw(mutations.mutated(raw[name], most=2))}, damaged=name)

    @st.composite
    def crafted(draw: st.DrawFn) -> Case:
        content = copy.deepcopy(state)
        _craft(draw, content)
        if draw(st.booleans()):
            with contextlib.suppress(
                AttributeError, IndexError, KeyError, TypeError
            ):  # the first change took its place
                _craft(draw, content)
        return case({STATE: saved(content, legacy=draw(st.integers(0, 5)) == 0)}, crafted=True)

    @st.composite
    def structural(draw: st.DrawFn) -> Case:
        plain = {**state, "optimizers": [{**item, "state": dict(item["state"])} for item in state["optimizers"]]}
        try:
            return case({STATE: saved(draw(mutations.restructured(plain)))}, crafted=True)
        except Exception:  # not every value can be saved
            return case({STATE: saved({})}, crafted=True)

    @st.composite
    def pickled(draw: st.DrawFn) -> Case:
        payload = hidden[draw(st.sampled_from(sorted(hidden)))]
        if draw(st.booleans()):
            data = draw(st.sampled_from(OPCODES))
        else:
            data = disguised(
                payload,
                protocol=draw(st.integers(0, 5)),
                place="whole",
                container=draw(st.sampled_from(("zip", "legacy", "raw"))),
            )
        return case({draw(st.sampled_from((STATE, MODEL))): data}, crafted=True)

    @st.composite
    def beside(draw: st.DrawFn) -> Case:
        name = draw(
            st.sampled_from(
                (
                    f"{RUN}/metrics.jsonl", f"{RUN}/resolved.yml", f"{RUN}/environment.json",
                    f"{RUN}/training_states/²³.state",
                    f"{RUN}/training_states/99999999999999999999.state", f"{RUN}/training_states/5.state",
                    f"{RUN}/training_states/x.state",
                    f"{RUN}/training_states/-1.state", f"{RUN}/training_states/ 4.state",
                    f"{RUN}/training_states/8.state/x", f"{RUN}/models/net_g_5.pth",
                    f"{RUN}/models/.net_g_6.pth.1.tmp", f"{RUN}/models/net_g_latest.pth",
                    f"{RUN}/visualization/coffee/coffee_8.png/x", f"{RUN}/tiny.yml",
                )
            )
        )  # fmt: skip
        data = draw(
            st.sampled_from(
                (
                    b"",
                    b"3\n",
                    b"null\n",
                    b"[1]\n",
                    b'{"step": "x"}\n',
                    b'{"step": 1e999}\n',
                    b"\xff\xfe\n",
                    b"{\n",
                    bytes(400),
                    raw[STATE],
                    raw[MODEL],
                )
            )
        )
        return case({name: data}, crafted=True)

    @st.composite
    def lost(draw: st.DrawFn) -> Case:
        tree = draw(st.sampled_from(("whole", "whole", "ended")))
        gone = draw(
            st.sampled_from(
                ("training_states", "models", "4.state", "net_g_4.pth", "metrics.jsonl", "resolved.yml", "home")
            )
        )
        force = draw(
            st.sampled_from(((), ("train:optim_g:lr=0.01",), ("train:total_iter=4",), ("train:total_iter=8",)))
        )
        made = case({}, force=force, tree=tree, gone=gone, forced=bool(force), crafted=bool(force))
        return Case(made.kind, (*made.commands, ("@untouched",)), made.files, made.trees, "lose", made.facts)

    @st.composite
    def other_options(draw: st.DrawFn) -> Case:
        changes = (
            "train:optim_g:type=SGD", "train:optim_g:type=RMSprop", "train:optim_g:type=Adagrad",
            "train:optim_g:type=NAdam", "train:optim_g:type=Rprop",
            "train:optim_g:type=ASGD", "train:optim_g:type=AdamW", "train:optim_g:type=Adamax",
            "train:optim_g:amsgrad=true", "manual_seed=4", "network_g:num_feat=6",
            "network_g:num_block=2", "network_g:type=FSRCNN", "train:ema_decay=0",
            "datasets:train:batch_size_per_gpu=3", "datasets:train:gt_size=12", "scale=3",
            "precision=bf16", "train:accumulate=2", "channels_last=true", "train:pixel_opt:type=MSELoss",
            "train:scheduler:gamma=0.1", "model_type=OutputKD",
            "logger:save_checkpoint_freq=1", "train:total_iter=3", "train:optim_g:weight_decay=0.1",
            "datasets:train:use_hflip=true",
        )  # fmt: skip
        picked = draw(st.lists(st.sampled_from(changes), min_size=1, max_size=2, unique=True))
        return case({"run.yml": options}, force=tuple(picked), crafted=True)

    return st.one_of(
        changed(),
        changed(),
        changed(),
        crafted(),
        crafted(),
        structural(),
        pickled(),
        beside(),
        lost(),
        other_options(),
    )


def always(ground: Ground) -> list[Case]:
    """Every moment of every other type and shape; every file with one bit turned; a finished run without its states."""
    ended = ground.root / "ended"
    trees = tuple((name, f"ended/{name}") for name in (RUN, "home", "run.yml"))
    oracle = ("@resumed", str(ground.root / "whole" / RUN / "models/net_g_latest.pth"))
    found = []
    state = torch.load(ended / STATE, weights_only=True)
    for way in tensors_like(torch.zeros(2)):
        content = copy.deepcopy(state)
        moments = content["optimizers"][0]["state"][0]
        moments["exp_avg"] = tensors_like(moments["exp_avg"])[way]()
        with contextlib.suppress(Exception):  # not every kind of tensor can be saved
            found.append(Case("states", (RESUME, oracle), {STATE: saved(content)}, trees, facts={"crafted": True}))
    for name in (STATE, MODEL):
        whole = (ended / name).read_bytes()
        for part in range(1, 6):
            at = len(whole) * part // 6
            turned = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
            facts = {"damaged": name}
            found.append(Case("states", (RESUME, oracle), {name: turned}, trees, facts=facts))
    finished = tuple((name, f"whole/{name}") for name in (RUN, "home", "run.yml"))
    command = (*RESUME, "--force_yml", "train:optim_g:lr=0.01")
    for gone in ("training_states", "models"):
        facts = {"gone": gone, "crafted": True}
        found.append(Case("states", (command, ("@untouched",)), {}, finished, "lose", facts))
    return found


def _craft(draw: st.DrawFn, content: dict[str, Any]) -> None:
    """Change one thing of a training state in place."""
    moments = content["optimizers"][0]["state"]
    if draw(st.booleans()):
        number = draw(st.sampled_from(sorted(moments, key=str)))
        if not isinstance(moments[number], dict) or not moments[number]:
            return
        name = draw(st.sampled_from(sorted(moments[number])))
        value = moments[number][name]
        if not isinstance(value, torch.Tensor):
            return
        others: dict[str, Callable[[], Any]] = tensors_like(value)
        others |= {
            "huge": lambda: torch.zeros(1_000_000),
            "negative": lambda: -value - 1,
            "longer": lambda: torch.cat([value.flatten(), value.flatten()]),
            "nothing": lambda: torch.zeros(0),
        }
        # Of a number, or of what was changed before, not everything can be made.
        with contextlib.suppress(RuntimeError, IndexError, TypeError):
            moments[number][name] = others[draw(st.sampled_from(sorted(others)))]()
        if draw(st.integers(0, 3)) == 0:
            moments[number][draw(st.sampled_from(("step", "exp_avg_sq", "extra", "max_exp_avg_sq")))] = moments[
                number
            ].pop(name)
        return
    action = draw(
        st.sampled_from(
            (
                "drop",
                "extra",
                "number",
                "iter",
                "groups",
                "params",
                "method",
                "best",
                "progress",
                "seed",
                "optimizers",
                "precision",
                "group",
            )
        )
    )
    groups = content["optimizers"][0]["param_groups"]
    if action == "drop":
        moments.pop(draw(st.sampled_from(sorted(moments, key=str))), None)
    elif action == "extra":
        moments[draw(st.sampled_from((10**6, -1, "x", 10**20)))] = copy.deepcopy(next(iter(moments.values()), {}))
    elif action == "number":
        moments[draw(st.sampled_from(sorted(moments, key=str)))] = draw(
            st.sampled_from((None, [], {}, 3, torch.zeros(2)))
        )
    elif action == "iter":
        content["iter"] = draw(
            st.sampled_from((0, -1, 2, 5, 6, 10**20, 1.5, "4", None, True, [4], float("nan"), torch.tensor(4)))
        )
    elif action == "groups":
        content["optimizers"][0]["param_groups"] = draw(st.sampled_from(([], None, groups * 2, {}, [None], [{}])))
    elif action == "params" and isinstance(groups, list) and groups and isinstance(groups[0], dict):
        groups[0]["params"] = draw(st.sampled_from(([], None, list(range(10**4)), [0] * 8, ["x"], [[1]])))
    elif action == "method":
        content["method"] = draw(st.sampled_from((None, [], {"x": torch.zeros(2)}, {"student.x": torch.zeros(2)}, 3)))
    elif action == "best":
        content["best"] = draw(
            st.sampled_from(
                (None, [], {"val": None}, {"val": {"psnr": 3}}, {"val": {"psnr": {"val": "x", "iter": 2}}}, 3)
            )
        )
    elif action == "progress":
        content["progress"] = draw(
            st.sampled_from(([], {"val": 3}, {"val": 3.0, "iter": -1}, {"val": 3.0, "iter": 2, "since": "x"}, 3))
        )
    elif action == "seed":
        content["seed"] = draw(st.sampled_from((None, -1, 4, 2**70, "3", [3], 3.0)))
    elif action == "optimizers":
        content["optimizers"] = draw(st.sampled_from(([], None, {}, [None], content["optimizers"] * 2)))
    elif action == "precision":
        content["precision"] = draw(st.sampled_from((None, [], {"scale": 2}, 3)))
    elif action == "group" and isinstance(groups, list) and groups and isinstance(groups[0], dict):
        groups[0][draw(st.sampled_from(("lr", "betas", "eps", "fused", "amsgrad", "foreach", "capturable", "x")))] = (
            draw(mutations.values)
        )


def _lose(facts: Mapping[str, Any]) -> None:
    """Remove what the case says is gone, and remember what weights are there."""
    import shutil

    for path in sorted(Path().rglob(facts["gone"]), reverse=True):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in Path(RUN).glob("models/net_g_*.pth"):
        _BEFORE[str(path)] = torch.load(path, weights_only=True)["params"]


_BEFORE: dict[str, dict[str, torch.Tensor]] = {}


def _untouched(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    """Weights of an older run are what they were, unless they were made again bit for bit."""
    for name, state in _BEFORE.items():
        if name.endswith(("latest.pth", "best.pth")) and not code:
            continue
        if not Path(name).exists():
            return f"{name} is gone"
        if not same(torch.load(name, weights_only=True)["params"], state):
            return f"{name} was overwritten by other weights"
    return ""


def ends_as(whole: str) -> bool:
    """Whether the run has no last weights, or those of the file `whole`."""
    latest = Path(RUN, "models/net_g_latest.pth")
    if not latest.exists():
        return True
    mine, theirs = (torch.load(path, weights_only=True) for path in (latest, whole))
    return all(same(mine.get(key, {}), theirs[key]) for key in ("params", "params_ema"))


def _resumed(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    """The resumed run ends where the uninterrupted one does, unless sound files said otherwise."""
    if code or ends_as(arguments[0]) or facts.get("crafted"):
        return ""
    broken = damage(facts["damaged"]) if "damaged" in facts and Path(facts["damaged"]).exists() else ""
    if "damaged" in facts and not broken:
        return ""  # a sound file that says something else
    return f"resumed to other weights; {broken or 'nothing said so'}"


sandbox.BEFORE["lose"] = _lose
sandbox.CHECKS["@untouched"] = _untouched
sandbox.CHECKS["@resumed"] = _resumed
