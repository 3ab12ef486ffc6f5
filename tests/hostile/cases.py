"""What is tried and how it ended: `Case`, `Outcome`, and the one word that `judge` finds for it.

A case is plain data, so that a failing one is kept as a folder (`keep`) and repeated from it (`load`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FINE = ("refused", "accepted")
FAILURES = ("execution", "crash", "hang", "traceback", "wrong", "late")
"""Worst first. `late`: `mtkd check --data` accepted what the run then refused."""
KILL_FAILURES = ("difference", "stuck", "code")
"""Of interrupted processes: results differ; it is never done; another exit code than what happened to it gives."""

_TRACEBACK = re.compile(r"traceback", re.IGNORECASE)
UNFORESEEN = "unexpected error"
"""What the boundary of the command line says of a defect, in the paragraph that names the file with its traceback."""
_EXIT_1_IS_AN_ANSWER = (("config", "diff"), ("zoo", "verify"))


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        kind: which generator made it.
        commands: command lines, run one after the other in one process until one does not exit with 0, and oracles of
            `sandbox.CHECKS` (their names begin with @), which always run.
        files: what lies in the working folder, by relative path.
        trees: folders or files of the ground that are copied there first: (to, from).
        before: name of a function of `sandbox.BEFORE` that runs in the process before the first command.
        facts: what the kind's oracle and `before` need to know.
    """

    kind: str
    commands: tuple[tuple[str, ...], ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    trees: tuple[tuple[str, str], ...] = ()
    before: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = {name: len(content) for name, content in self.files.items()}
        return f"Case({self.kind}, {self.commands}, files={sizes}, facts={dict(self.facts)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def digest(self) -> str:
        """Short name of the contents."""
        seen = hashlib.sha256(json.dumps([self.kind, self.commands, self.trees, self.facts], default=str).encode())
        for name, content in sorted(self.files.items()):
            seen.update(name.encode() + b"\0" + content)
        return seen.hexdigest()[:12]


@dataclass(frozen=True)
class Outcome:
    """How the process of a case ended.

    Attributes:
        codes: exit codes of its commands, 99 for an exception that left `main`.
        signal: number of the signal that ended the process, 0 for none.
        hung: it was ended because its time was over.
        started: what it executed: programs, and files of the canary.
        wrong: what the oracles said.
    """

    folder: Path
    codes: tuple[int, ...]
    signal: int
    hung: bool
    started: tuple[str, ...]
    stdout: str
    stderr: str
    wrong: str
    seconds: float

    @property
    def code(self) -> int:
        """Exit code of the last command that ran; -1 when the process was ended."""
        return self.codes[-1] if self.codes and not self.signal and not self.hung else -1


def failed(outcome: Outcome, command: tuple[str, ...]) -> bool:
    """Whether `command`, the last that ran, ended in a traceback: shown, or in the file that a paragraph names."""
    shown = _TRACEBACK.search(outcome.stderr) and "--debug" not in command
    answer = any(command[: len(name)] == name for name in _EXIT_1_IS_AN_ANSWER)
    return bool(shown) or UNFORESEEN in outcome.stderr or outcome.code == 99 or (outcome.code == 1 and not answer)


def judge(case: Case, outcome: Outcome) -> str:
    """One word of `FINE` or `FAILURES`."""
    if outcome.started:
        return "execution"
    if outcome.hung:
        return "hang"
    if outcome.signal:
        return "crash"
    real = [command for command in case.commands if not command[0].startswith("@")]
    if failed(outcome, real[len(outcome.codes) - 1] if outcome.codes else ()):
        return "traceback"
    if outcome.wrong:
        return "wrong"
    if outcome.code == 0:
        return "accepted"
    # What only decoding or hashing everything would find, `check` may leave to the run, which does it first.
    late = len(outcome.codes) > 1 and real[0][0] == "check" and not case.facts.get("contents")
    return "late" if late else "refused"


def keep(case: Case, outcome: Outcome, verdict: str, ground: Path, root: Path) -> Path:
    """Save a failing case as a folder, with what it said."""
    folder = root / f"{case.kind}-{verdict}-{case.digest()}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    plain = asdict(case)
    plain["files"] = {}
    for number, (name, content) in enumerate(case.files.items()):
        plain["files"][name] = f"{number:02d}{Path(name).suffix[:12]}"
        # The ground lies elsewhere at every run, and option files name it. In other files its length counts.
        text = content.replace(str(ground).encode(), b"@GROUND@") if name.endswith(".yml") else content
        (folder / "files" / plain["files"][name]).write_bytes(text)
    text = json.dumps(plain, indent=2, default=str).replace(str(ground), "@GROUND@")
    (folder / "case.json").write_text(text + "\n", encoding="utf-8")
    said = [
        f"{verdict}: {outcome.wrong or ', '.join(outcome.started) or f'{outcome.codes}, signal {outcome.signal}'}",
        f"repeat: python -m tests.hostile.soak --repeat {folder.name}",
        "commands: " + " && ".join("mtkd " + " ".join(map(repr, command)) for command in case.commands),
        f"--- stderr\n{outcome.stderr[-6000:]}",
        f"--- stdout\n{outcome.stdout[-2000:]}",
    ]
    (folder / "said.txt").write_text("\n".join(said) + "\n", encoding="utf-8", errors="replace")
    return folder


def load(folder: Path, ground: Path) -> Case:
    """The case that `keep` saved."""
    plain = json.loads((folder / "case.json").read_text(encoding="utf-8").replace("@GROUND@", str(ground)))
    read = {name: (folder / "files" / stored).read_bytes() for name, stored in plain["files"].items()}
    plain["files"] = {
        name: content.replace(b"@GROUND@", str(ground).encode()) if name.endswith(".yml") else content
        for name, content in read.items()
    }
    plain["commands"] = tuple(map(tuple, plain["commands"]))
    plain["trees"] = tuple(map(tuple, plain["trees"]))
    return Case(**plain)


def signature(outcome: Outcome, verdict: str) -> str:
    """What failures of one cause have in common: the last line of a traceback and the innermost line of ours."""
    if verdict == "traceback":
        ours = re.findall(r'File "[^"]*/mtkd/([^"]+)", line (\d+), in (\w+)', outcome.stderr)
        raised = re.findall(r"^(\w[\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Bomb\w*))\b", outcome.stderr, re.M)
        if ours:
            return f"{raised[-1] if raised else '?'} in {ours[-1][0]}:{ours[-1][2]}"
        return " ".join(outcome.stderr.split())[-160:]
    if verdict == "execution":
        return outcome.started[0][:120]
    if verdict == "crash":
        ours = re.findall(r'File "[^"]*/mtkd/([^"]+)", line (\d+) in (\w+)', outcome.stderr)
        return f"signal {outcome.signal} in {ours[0][0]}:{ours[0][2]}" if ours else f"signal {outcome.signal}"
    if verdict == "hang":
        ours = re.findall(r'File "[^"]*/mtkd/([^"]+)", line (\d+) in (\w+)', outcome.stderr)
        return f"in {ours[0][0]}:{ours[0][2]}" if ours else "hang"
    text = outcome.wrong or outcome.stderr
    return re.sub(r"\d+", "N", re.sub(r"\S*/\S+", "PATH", " ".join(text.split())))[:160]
