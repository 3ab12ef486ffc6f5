"""SIGKILL at random times and at every kind of file event, over all that writes: afterwards it goes on, and nothing
shows.

A plan is one uninterrupted process, whose results and number of file events are kept, and any number of interrupted
ones: each is ended once to three times and started again, as a user or a scheduler would, until it says that it is
done. All that lasts is compared bit for bit: weights, EMA, optimizers and the method's own modules, best results, the
rows of metrics without their times, digests of stores, fetched weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mtkd import catalog, zoo
from mtkd.archs.dctswin import DCTSwin
from mtkd.archs.privileged import PrivilegedTeacher
from mtkd.data.store import ImageStore
from tests.hostile import sandbox, server
from tests.hostile.cases import Case, Outcome, failed
from tests.hostile.ground import Ground, dump

MOST_STARTS = 12
"""A process that is not done after so many starts is stuck."""

_FSRCNN = {"type": "FSRCNN", "num_feat": 8, "num_shrink": 4, "num_map": 1}
_PRIVILEGED = {
    "type": "PrivilegedTeacher", "encoder_feat": 8, "encoder_shrink": 4, "decoder": dict(_FSRCNN),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Something that writes.

    Attributes:
        steps: commands, each repeated until it exits with 0 before the next begins.
        ranks: processes that run every command together.
        seconds: limit of one start.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    files: Mapping[str, bytes]
    trees: tuple[tuple[str, str], ...] = ()
    before: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    seconds: float = 60.0


@dataclass(frozen=True)
class Ended:
    """How one interrupted process came out.

    Attributes:
        kills: how often it was ended before it was done.
        failure: a word of `cases.FAILURES`, or "difference" or "stuck"; empty when nothing shows.
        text: what is wrong.
    """

    plan: str
    kills: int
    failure: str
    text: str


def plans(ground: Ground) -> dict[str, Plan]:
    """All plans by name."""
    found = [_trained(ground, name, options) for name, options in _methods(ground).items()]
    train = ("train", "-opt", "run.yml", "--auto_resume")
    sgd = {"optim_g": {"type": "SGD", "lr": 1e-3, "momentum": 0.9}, "accumulate": 2, "clip_grad_norm": 1.0}
    found.append(_trained(ground, "train SGD accumulate", ground.validated(train=sgd)))
    found.append(_trained(ground, "train bf16", ground.validated(precision="bf16")))
    on_disk = ground.validated()
    on_disk["datasets"]["train"] |= {"residence": "disk", "num_worker_per_gpu": 1}
    found.append(_trained(ground, "train from disk", on_disk))
    taught = dump(ground.taught())
    teach = ("teach", "-opt", "run.yml")
    found += [
        Plan("teach", (teach,), {"run.yml": taught}),
        Plan("teach float16", ((*teach, "--dtype", "float16", "--x8"),), {"run.yml": taught}),
        Plan("teach and train", (teach, train), {"run.yml": taught}),
        Plan(
            "teach shards",
            ((*teach, "--shard", "1/2"), (*teach, "--shard", "2/2"), (*teach, "--merge")),
            {"run.yml": taught},
        ),
    ]
    good = (ground.weights / "net.pth").read_bytes()
    facts: dict[str, Any] = {
        "behaviour": "plain", "sha256": hashlib.sha256(good).hexdigest(), "size": len(good), "member": None,
        "mirror": False, "vouched": True,
        "original": str(ground.weights / "net.pth"),
    }  # fmt: skip
    download = ("zoo", "download", server.NAME, "--weights-dir", "w")
    packed = server.archives(good)["zip"]
    found += [
        Plan("download", (download,), {"body": good}, before="host", facts=facts),
        Plan("download that breaks off", (download,), {"body": good}, before="host", facts={**facts,
            "behaviour": "cut"}),
        Plan(
            "download of an archive", (download,), {"body": packed}, before="host",
            facts={**facts, "sha256": hashlib.sha256(packed).hexdigest(), "size": len(packed), "member": server.MEMBER},
        ),
        Plan("import", (("zoo", "import", server.NAME, "body", "--weights-dir", "w"),), {"body": good}, before="host",
            facts=facts),
        Plan("convert", (("zoo", "convert", "w.pth", "o.safetensors", "--to", "safetensors"),), {"w.pth": good}),
        Plan("upscale", (("upscale", str(ground.images), "out", "--weights", str(ground.weights / "net.pth"),
            "--skip_existing"),), {}),
    ]  # fmt: skip
    ranked = ground.validated()
    ranked["datasets"]["train"]["batch_size_per_gpu"] = 1
    found.append(Plan("two ranks", ((*train, "--launcher", "pytorch"),), {"run.yml": dump(ranked)}, ranks=2))
    return {plan.name: plan for plan in found}


def _trained(ground: Ground, name: str, options: Mapping[str, Any]) -> Plan:
    return Plan(
        f"train {name}".replace("train train", "train"),
        (("train", "-opt", "run.yml", "--auto_resume"),),
        {"run.yml": dump(dict(options))},
    )


def _methods(ground: Ground) -> dict[str, dict[str, Any]]:
    """A tiny run of every method of the catalog; a new method must get its line here."""
    privileged = ground.weights / "privileged.safetensors"
    if not privileged.exists():
        torch.manual_seed(5)
        arguments = {key: value for key, value in _PRIVILEGED.items() if key != "type"} | {"upscale": 2}
        facts = {"arch": {"type": "PrivilegedTeacher", "args": arguments}, "scale": 2}
        zoo.write_safetensors(privileged, PrivilegedTeacher(**arguments).state_dict(), facts)
    edsr = {
        "network": {"type": "EDSR", "num_feat": 6, "num_block": 1},
        "pretrain": str(ground.weights / "t.safetensors"),
    }
    other = {
        "network": {"type": "EDSR", "num_feat": 4, "num_block": 1},
        "pretrain": str(ground.weights / "net.safetensors"),
    }
    teacher = {"teachers": {"edsr": edsr}}
    fusion: dict[str, Any] = {
        "type": "DCTSwin",
        "num_teachers": 2,
        "embed_dim": 8,
        "depths": [1],
        "num_heads": [2],
        "num_feat": 4,
    }
    fused = ground.weights / "fusion.safetensors"
    if not fused.exists():
        torch.manual_seed(6)
        arguments = {key: value for key, value in fusion.items() if key != "type"} | {"upscale": 2}
        facts = {"arch": {"type": "DCTSwin", "args": arguments}, "scale": 2, "members": ["edsr", "other"]}
        zoo.write_safetensors(fused, DCTSwin(**arguments).state_dict(), facts)
    wide = {"network_g": {"type": "EDSR", "num_feat": 8, "num_block": 2}}
    critic = {"optim_d": {"type": "Adam", "lr": 1e-3}, "holistic_opt": {}, "critic_opt": {}, "penalty_opt": {}}
    options: dict[str, dict[str, Any]] = {
        "SRModel": {},
        "SwinIRModel": {"train": {"pixel_opt": {"type": "L1Loss"}}},
        "OutputKD": teacher,
        "MTKDFusion": {"teachers": {"edsr": edsr, "other": other}, "network_g": fusion},
        "MTKD": {"teachers": {"edsr": edsr, "other": other}, "fusion": {"network": fusion, "pretrain": str(fused)}},
        "SRKD": teacher,
        "FAKD": teacher,
        "FitNet": teacher,
        "AT": teacher,
        "PKT": teacher,
        "CRD": {**teacher, "method": {"positions": 20, "queue_size": 50, "radius": 1}},
        "DUKD": {**teacher, "method": {"tiles": 2}},
        "StructuredKD": {**teacher, "method": {"critic_feat": 4}, "train": critic},
        "PISRTeacher": {"network_g": _PRIVILEGED},
        "PISR": {
            "network_g": _FSRCNN,
            "teachers": {"privileged": {"network": _PRIVILEGED, "pretrain": str(privileged)}},
        },
        "CSD": {**wide, "method": {"width": 0.5, "vgg": "random", "negatives": 2}},
        "OnlineTeacher": {"method": {"margin": -1.0, "num_feat": 4, "num_block": 1}},
    }
    assert options.keys() == catalog.METHODS.keys(), "every method needs its tiny run here"
    return {name: ground.validated(model_type=name, **changes) for name, changes in options.items()}


@dataclass(frozen=True)
class Reference:
    """The uninterrupted process: what it left, its file events and its seconds, per command."""

    results: Mapping[str, Any]
    events: tuple[int, ...]
    seconds: tuple[float, ...]


class Killer:
    """Runs plans in folders under `root` and remembers their references."""

    def __init__(self, ground: Ground, root: Path) -> None:
        self.ground, self.root = ground, root
        self.plans = plans(ground)
        self._references: dict[str, Reference] = {}

    def reference(self, plan: Plan) -> Reference:
        """Results of the uninterrupted process.

        Raises:
            RuntimeError: it does not end with exit code 0.
        """
        if plan.name not in self._references:
            with sandbox.scratch(self.root, "reference") as folder:
                self._lay_out(plan, folder)
                events, seconds = [], []
                for command in plan.steps:
                    began = time.monotonic()
                    outcome, seen = self._start(plan, command, folder, None, None)
                    if outcome.code != 0:
                        raise RuntimeError(
                            f"{plan.name}: {command} ended with {outcome.codes}: {outcome.stderr[-1500:]}"
                        )
                    events.append(seen)
                    seconds.append(time.monotonic() - began)
                self._references[plan.name] = Reference(results(folder), tuple(events), tuple(seconds))
        return self._references[plan.name]

    def interrupt(self, plan: Plan, seed: int, *, keep: Path | None = None) -> Ended:
        """One process of `plan` with kills that `seed` decides, compared with the reference."""
        rng = random.Random(f"{plan.name} {seed}")
        reference = self.reference(plan)
        with sandbox.scratch(self.root, f"kill-{seed}") as folder:
            self._lay_out(plan, folder)
            ended = self._until_done(plan, reference, rng, folder)
            if ended.failure and keep is not None:
                target = keep / f"kills-{ended.failure}-{plan.name.replace(' ', '_')}-{seed}"
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(folder, target, ignore_dangling_symlinks=True)
                repeat = f"python -m tests.hostile.soak --kill '{plan.name}' --seed {seed}"
                (target / "said.txt").write_text(f"{ended.failure}: {ended.text}\nrepeat: {repeat}\n", encoding="utf-8")
        return ended

    def _until_done(self, plan: Plan, reference: Reference, rng: random.Random, folder: Path) -> Ended:
        kills = 0
        for number, command in enumerate(plan.steps):
            wanted = rng.randint(1, 3)
            for start in range(MOST_STARTS):
                kill, until = None, None
                if start < wanted:
                    if rng.random() < 0.7:
                        kill = sandbox.Kill(event=rng.randint(1, max(1, reference.events[number])))
                    else:
                        until = rng.uniform(0.0, reference.seconds[number] * 1.1)
                outcome, _ = self._start(plan, command, folder, kill, until, victim=rng.randrange(plan.ranks))
                if outcome.signal == signal.SIGKILL and not outcome.hung:
                    kills += 1
                    continue
                if outcome.code == 0:
                    break
                failure = self._failed(outcome, command)
                if failure:
                    return Ended(
                        plan.name,
                        kills,
                        failure,
                        f"{' '.join(command)}: codes {outcome.codes}, signal {outcome.signal}: {outcome.stderr[-800:]}",
                    )
                if start >= wanted:
                    return Ended(plan.name, kills, "stuck", f"{' '.join(command)}: {outcome.stderr[-800:]}")
            else:
                return Ended(plan.name, kills, "stuck", f"{' '.join(command)}: not done after {MOST_STARTS} starts")
        differences = list(compare(reference.results, results(folder)))
        return Ended(plan.name, kills, "difference" if differences else "", "; ".join(differences[:6]))

    @staticmethod
    def _failed(outcome: Outcome, command: tuple[str, ...]) -> str:
        if outcome.hung:
            return "hang"
        if outcome.signal:
            return "crash"
        return "traceback" if failed(outcome, command) else ""

    def _lay_out(self, plan: Plan, folder: Path) -> None:
        sandbox.lay_out(Case("kills", (), plan.files, plan.trees), self.ground.root, folder)

    def _start(
        self,
        plan: Plan,
        command: tuple[str, ...],
        folder: Path,
        kill: sandbox.Kill | None,
        until: float | None,
        *,
        victim: int = 0,
    ) -> tuple[Outcome, int]:
        """Outcome of one start, and its file events; of several ranks, that of the victim."""
        if plan.ranks == 1:
            child = sandbox.start(
                (command,), folder, before=plan.before, facts=plan.facts, kill=kill, seconds=plan.seconds
            )
            return child.wait(until=until), child.events
        return self._ranks(plan, command, folder, kill, until, victim)

    def _ranks(
        self,
        plan: Plan,
        command: tuple[str, ...],
        folder: Path,
        kill: sandbox.Kill | None,
        until: float | None,
        victim: int,
    ) -> tuple[Outcome, int]:
        """Ranks as torchrun starts them: when one ends badly, the others are ended too."""
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(plan.ranks),
            "LOCAL_WORLD_SIZE": str(plan.ranks),
        }
        children = [
            sandbox.start(
                (command,), folder, kill=kill if rank == victim else None, seconds=plan.seconds, name=f"rank{rank}",
                environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
                    "TORCHELASTIC_RUN_ID": "x"},
            )
            for rank in range(plan.ranks)
        ]  # fmt: skip
        began, late = time.monotonic(), False
        while all(_state_of(child.pid) != "Z" for child in children):
            if time.monotonic() - began > (plan.seconds if until is None else until):
                children[victim].kill()
                late = until is None
                break
            time.sleep(0.01)
        # The others may be about to end by themselves; torchrun waits a while too.
        limit = time.monotonic() + 10
        while time.monotonic() < limit and any(_state_of(child.pid) != "Z" for child in children):
            time.sleep(0.02)
        for child in children:
            if _state_of(child.pid) != "Z":
                child.kill()
        outcomes = [child.wait() for child in children]
        if late:
            return replace(outcomes[victim], hung=True), 0
        by_signal = [outcome for outcome in outcomes if outcome.signal == signal.SIGKILL]
        bad = [outcome for outcome in outcomes if outcome.code != 0 and not outcome.signal]
        if by_signal:
            # One was ended; what the other says of it is not judged, but it must not be a traceback.
            broken = [outcome for outcome in bad if self._failed(outcome, command)]
            return (broken or by_signal)[0], 0
        return (bad or outcomes)[0], max(child.events for child in children)


def _state_of(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def results(folder: Path) -> dict[str, Any]:
    """All that lasts in `folder`, by relative path."""
    found: dict[str, Any] = {}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if path.suffix in (".pth", ".state"):
            found[name] = _digest_of(torch.load(path, map_location="cpu", weights_only=True))
        elif path.suffix == ".safetensors" and "home" not in path.parts:
            found[name] = _digest_of(zoo.read_checkpoint(path).state)
        elif path.name == "metrics.jsonl":
            found[name] = [_row(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".png":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name.startswith("targets") and not path.name.endswith((".done", ".lock")):
            found[name] = ImageStore(path).digest()
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        # Leftovers of killed writers are hidden files; they are nobody's result.
        if (
            path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.name != "body"
        ):
            yield path


def _row(line: str) -> Any:
    row = json.loads(line)
    return {key: value for key, value in row.items() if not key.startswith("seconds")}


def _digest_of(value: Any) -> Any:
    """The same structure with hashes in the place of tensors; times and commands are left out."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{plain.dtype} {tuple(plain.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return {
            str(key): _digest_of(item)
            for key, item in value.items()
            if key not in ("date", "time", "command", "host", "pid")
        }
    if isinstance(value, list | tuple):
        return [_digest_of(item) for item in value]
    return value


def compare(wanted: Any, found: Any, at: str = "") -> Iterator[str]:
    """Where two results differ."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*wanted, *found]):
            if key not in found:
                yield f"{at}{key} is missing"
            elif key not in wanted:
                yield f"{at}{key} is too many"
            else:
                yield from compare(wanted[key], found[key], f"{at}{key}/")
    elif isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            yield f"{at} has {len(found)} entries, uninterrupted {len(wanted)}"
        for number, (one, other) in enumerate(zip(wanted, found)):
            yield from compare(one, other, f"{at}{number}/")
    elif wanted != found and not (wanted != wanted and found != found):
        yield f"{at} is {str(found)[:80]}, uninterrupted {str(wanted)[:80]}"
