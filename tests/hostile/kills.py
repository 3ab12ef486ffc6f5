"""SIGKILL, requests to stop, a full disk and a second process beside the first, at random times and at every kind of
file event, over all that writes: afterwards it goes on, and nothing shows.

A plan is one uninterrupted process, whose results and number of file events are kept, and any number of interrupted
ones: each is disturbed once to three times and started again, as a user or a scheduler would, until it says that it is
done. All that lasts is compared bit for bit: weights, EMA, optimizers and the method's own modules, best results, the
rows of metrics without their times, digests of stores, fetched weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import shutil
import signal
import socket
import time
from collections import Counter
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

WAYS = {"event": 50, "time": 20, "stop": 15, "disk": 7, "twin": 8}
"""What happens to processes, and how often: SIGKILL at a file event or a moment, a request to stop, a full disk, a
second process beside it.
"""
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
class Trouble:
    """What happens to one start of a process; nothing by default.

    Attributes:
        kill: the signal that it sends itself at a file event.
        until: seconds after which it is ended with SIGKILL.
        disk: bytes of the largest file that it can write.
        twin: seconds after which the same command is started a second time.
        anew: the twin does not ask to go on with what is there.
    """

    kill: sandbox.Kill | None = None
    until: float | None = None
    disk: int = sandbox.LARGEST_FILE
    twin: float | None = None
    anew: bool = False

    @property
    def stop(self) -> int:
        """Number of the signal that asks it to stop, 0 when none does."""
        return self.kill.signal if self.kill is not None and self.kill.signal != signal.SIGKILL else 0

    def codes(self) -> set[int]:
        """Exit codes that it may end with."""
        full = self.disk < sandbox.LARGEST_FILE
        return {0} | ({2} if full or self.twin is not None else set()) | ({128 + self.stop} if self.stop else set())


@dataclass(frozen=True)
class Ended:
    """How one interrupted process came out.

    Attributes:
        counts: how often it was ended (`kills`), stopped (`stops`), short of disk (`full`), not alone (`twins`).
        failure: a word of `cases.FAILURES`, or of `cases.KILL_FAILURES`; empty when nothing shows.
        text: what is wrong.
    """

    plan: str
    counts: Mapping[str, int]
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
    on_disk["datasets"]["train"] |= {"cache": "disk", "num_worker_per_gpu": 1}
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
        "RKD": {**teacher, "method": {"grid": 2, "angle_vectors": 6}},
        "DCKD": {
            **teacher,
            "method": {"vqgan": "random", "negatives": 1, "refresh": [2]},
            "train": {"contrast_opt": {}, "distribution_opt": {}},
        },
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
    """The uninterrupted process: what it left, and per command the file events of each of its ranks and its seconds."""

    results: Mapping[str, Any]
    events: tuple[tuple[int, ...], ...]
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
                    (outcome,), seen = self._start(plan, command, folder, Trouble())
                    if outcome.code != 0:
                        raise RuntimeError(
                            f"{plan.name}: {command} ended with {outcome.codes}: {outcome.stderr[-1500:]}"
                        )
                    events.append(seen)
                    seconds.append(time.monotonic() - began)
                self._references[plan.name] = Reference(results(folder), tuple(events), tuple(seconds))
        return self._references[plan.name]

    def interrupt(self, plan: Plan, seed: int, *, way: str | None = None, keep: Path | None = None) -> Ended:
        """One process of `plan` with troubles that `seed` decides, all of one `way` of `WAYS` where it is given,
        compared with the reference.
        """
        rng = random.Random(f"{plan.name} {seed}")
        reference = self.reference(plan)
        with sandbox.scratch(self.root, f"kill-{seed}") as folder:
            self._lay_out(plan, folder)
            ended = self._until_done(plan, reference, rng, folder, way)
            if ended.failure and keep is not None:
                target = keep / f"kills-{ended.failure}-{plan.name.replace(' ', '_')}-{seed}"
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(folder, target, ignore_dangling_symlinks=True)
                repeat = f"python -m tests.hostile.soak --kill '{plan.name}' --seed {seed}"
                (target / "said.txt").write_text(f"{ended.failure}: {ended.text}\nrepeat: {repeat}\n", encoding="utf-8")
        return ended

    def _until_done(self, plan: Plan, reference: Reference, rng: random.Random, folder: Path, way: str | None) -> Ended:
        counts: Counter[str] = Counter()

        def ended(failure: str, text: str) -> Ended:
            return Ended(plan.name, counts, failure, text)

        for number, command in enumerate(plan.steps):
            wanted, words = rng.randint(1, 3), " ".join(command)
            for start in range(MOST_STARTS):
                victim = rng.randrange(plan.ranks)
                trouble = _trouble(rng, plan, reference, number, victim, way) if start < wanted else Trouble()
                outcomes, _ = self._start(plan, command, folder, trouble, victim=victim)
                counts["twins"] += trouble.twin is not None
                for outcome in outcomes:
                    killed = outcome.signal == signal.SIGKILL and not outcome.hung
                    # Before it listens, the signal itself ends it; a shell then says 128 and its number too.
                    stopped = trouble.stop and (outcome.signal == trouble.stop or outcome.code == 128 + trouble.stop)
                    counts["kills"] += killed
                    counts["stops"] += bool(stopped)
                    counts["full"] += trouble.disk < sandbox.LARGEST_FILE and outcome.code == 2
                    if killed or (stopped and outcome.signal):
                        continue
                    said = f"codes {outcome.codes}, signal {outcome.signal}: {outcome.stderr[-1500:]}"
                    if failure := self._failed(outcome, command):
                        return ended(failure, f"{words}: {said}")
                    if plan.ranks == 1 and start < wanted and outcome.code not in trouble.codes():
                        return ended("code", f"{words}, {trouble}: {said}")
                if any(outcome.code == 0 for outcome in outcomes):
                    break
                if start >= wanted and not outcomes[0].signal:
                    return ended("stuck", f"{words}: {outcomes[0].stderr[-800:]}")
            else:
                return ended("stuck", f"{words}: not done after {MOST_STARTS} starts")
        found = results(folder)
        widowed = counts["kills"] and plan.ranks > 1
        if counts["stops"] or widowed:
            # A run that is asked to stop, or that loses one of its ranks, saves where it is, which may be between two
            # checkpoints.
            odd = re.compile(r".*(net_g_\d+\.pth|\d+\.state)")
            found = {name: found[name] for name in found if name in reference.results or not odd.fullmatch(name)}
        wished = reference.results
        if widowed:
            # Losses that a rank took with it are missing in the means of the iterations since the last checkpoint.
            wished, found = _without_losses(wished), _without_losses(found)
        differences = list(compare(wished, found))
        return ended("difference" if differences else "", "; ".join(differences[:6]))

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
        self, plan: Plan, command: tuple[str, ...], folder: Path, trouble: Trouble, *, victim: int = 0
    ) -> tuple[list[Outcome], tuple[int, ...]]:
        """Outcomes of one start, two of one with a twin and of several ranks that of the victim, and the file events
        of each of its ranks.
        """
        if plan.ranks > 1:
            outcome, events = self._ranks(plan, command, folder, trouble.kill, trouble.until, victim)
            return [outcome], events
        common: dict[str, Any] = {"before": plan.before, "facts": plan.facts, "seconds": plan.seconds}
        child = sandbox.start((command,), folder, kill=trouble.kill, largest=trouble.disk, **common)
        if trouble.twin is None:
            return [child.wait(until=trouble.until)], (child.events,)
        time.sleep(trouble.twin)
        again = tuple(word for word in command if not (trouble.anew and word == "--auto_resume"))
        twin = sandbox.start((again,), folder, name="twin", **common)
        return [child.wait(), twin.wait()], (child.events,)

    def _ranks(
        self,
        plan: Plan,
        command: tuple[str, ...],
        folder: Path,
        kill: sandbox.Kill | None,
        until: float | None,
        victim: int,
    ) -> tuple[Outcome, tuple[int, ...]]:
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
            return replace(outcomes[victim], hung=True), ()
        by_signal = [outcome for outcome in outcomes if outcome.signal == signal.SIGKILL]
        bad = [outcome for outcome in outcomes if outcome.code != 0 and not outcome.signal]
        if by_signal:
            # One was ended; what the other says of it is not judged, but it must not be a traceback.
            broken = [outcome for outcome in bad if self._failed(outcome, command)]
            return (broken or by_signal)[0], ()
        return (bad or outcomes)[0], tuple(child.events for child in children)


def _trouble(
    rng: random.Random, plan: Plan, reference: Reference, number: int, victim: int, way: str | None
) -> Trouble:
    """What happens to the rank `victim` in a start of the step `number`."""
    event, seconds = rng.randint(1, max(1, reference.events[number][victim])), reference.seconds[number]
    ways = [name for name in WAYS if plan.ranks == 1 or name not in ("disk", "twin")]
    way = way or rng.choices(ways, [WAYS[name] for name in ways])[0]
    if way == "event":
        return Trouble(kill=sandbox.Kill(event=event))
    if way == "time":
        return Trouble(until=rng.uniform(0.0, seconds * 1.1))
    if way == "stop":
        return Trouble(kill=sandbox.Kill(event=event, signal=rng.choice((signal.SIGTERM, signal.SIGINT))))
    if way == "disk":
        return Trouble(disk=int(10 ** rng.uniform(3.0, 4.7)))
    return Trouble(twin=rng.uniform(0.0, seconds), anew=rng.random() < 0.5)


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


def _without_losses(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [{key: row[key] for key in row if key != "losses"} for row in content]
        if name.endswith("metrics.jsonl")
        else content
        for name, content in found.items()
    }


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
