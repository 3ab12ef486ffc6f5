"""The long attack: `make soak MINUTES=60`, or `python -m tests.hostile.soak`.

Two workers try cases of every kind and kill every plan, each chosen by seed and turn, until the time is over. What is
counted is printed every minute and at the end, written to `benchmarks/results/soak.json`, and brought into
docs/reliability.md. Failing inputs lie in `.cache/soak/kept`, each with what it said:

    python -m tests.hostile.soak --repeat weights-execution-0123456789ab
    python -m tests.hostile.soak --kill "train CSD" --seed 7
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.cases import FAILURES, FINE, KILL_FAILURES, load

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache/soak/kept"
RESULT = ROOT / "benchmarks/results/soak.json"
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"

KILLS = "kills"
ALWAYS = ("weights", "states", "server")
"""Kinds with cases that need no seed."""
COUNTS = {
    "options": 30,
    "forced": 30,
    "images": 20,
    "archives": 20,
    "weights": 20,
    "states": 20,
    "stores": 25,
    "commands": 25,
    "server": 8,
}
"""Cases of one job: a few seconds of each kind."""
KILL_JOBS = 3
"""Plans that are interrupted for every round of jobs over the kinds."""
KILL_COLUMNS = ("runs", "kills", "stops", "full", "twins", *KILL_FAILURES, "traceback", "hang", "crash")


class Worker:
    """A worker process of this package, started anew when it dies."""

    def __init__(self, scratch: Path, kept: Path) -> None:
        self.scratch, self.kept = scratch, kept
        self.plans: list[str] = []
        self._start()

    def _start(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        command = [
            sys.executable,
            "-m",
            "tests.hostile.worker",
            "--scratch",
            str(self.scratch),
            "--kept",
            str(self.kept),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self._log = open(self.scratch / "worker.log", "w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"a worker ended: {self._log.read()[-3000:]}")
        return json.loads(line)

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Answer to one job.

        Raises:
            RuntimeError: the worker itself failed, which is a defect of the instrument; another one stands ready.
        """
        try:
            if not self.plans:
                self.plans = self._answer()["ready"]
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        except (RuntimeError, BrokenPipeError) as error:
            self.close()
            self.plans = []
            self._start()
            raise RuntimeError(f"{dict(job)}: {error}") from error
        if "broken" in answer:
            raise RuntimeError(f"{dict(job)}: {answer['broken']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class Tally:
    """What all jobs counted, for several threads."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.seconds: Counter[str] = Counter()
        self.causes: dict[str, dict[str, Any]] = {}
        self.broken: list[str] = []
        self._lock = threading.Lock()

    def add(self, answer: Mapping[str, Any]) -> None:
        """Count one answer of a worker."""
        kind = answer["kind"]
        with self._lock:
            self.counts.setdefault(kind, Counter()).update(answer["tally"])
            self.seconds[kind] += answer["seconds"]
            for failure in answer["failures"]:
                name = f"{kind}: {failure['verdict']}: {failure['signature']}"
                cause = self.causes.setdefault(name, {"count": 0, "example": failure["folder"]})
                cause["count"] += 1

    def failed(self) -> int:
        """Number of failing cases and interrupted processes."""
        words = (*FAILURES, *KILL_FAILURES)
        return sum(counts[word] for counts in self.counts.values() for word in words) + len(self.broken)

    def inputs(self) -> int:
        """Number of inputs tried."""
        return sum(sum(c[word] for word in (*FINE, *FAILURES)) for kind, c in self.counts.items() if kind != KILLS)

    def kills(self) -> int:
        """Number of processes ended by SIGKILL."""
        return self.counts.get(KILLS, Counter())["kills"]


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Markdown tables of the counts."""
    plural = {
        "execution": "executions",
        "crash": "crashes",
        "hang": "hangs",
        "traceback": "tracebacks",
        "wrong": "wrong results",
        "late": "found late",
    }
    words = [*FINE, *FAILURES]
    rows = ["| input | tried | " + " | ".join(plural.get(word, word) for word in words) + " |"]
    rows.append("|---|" + "---:|" * (len(words) + 1))
    total: Counter[str] = Counter()
    for kind, tally in counts.items():
        if kind != KILLS:
            total.update(tally)
            rows.append(
                f"| {kind} | {sum(tally.values()):,} | "
                + " | ".join(f"{tally.get(word, 0):,}" for word in words)
                + " |"
            )
    rows.append(f"| all | {sum(total.values()):,} | " + " | ".join(f"{total[word]:,}" for word in words) + " |")
    killed = counts.get(KILLS)
    if killed:
        names = {
            "runs": "processes interrupted",
            "full": "full disks",
            "twins": "two at once",
            "difference": "differences",
            "stuck": "never done",
            "code": "wrong exit codes",
        }
        rows += [
            "",
            "| " + " | ".join(names.get(word, plural.get(word, word)) for word in KILL_COLUMNS) + " |",
            "|" + "---:|" * len(KILL_COLUMNS),
        ]
        rows.append("| " + " | ".join(f"{killed.get(word, 0):,}" for word in KILL_COLUMNS) + " |")
    return "\n".join(rows)


def jobs(plans: Sequence[str], seed: int, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Jobs without end: every kind in turn, plans of the kill test between them."""
    kinds = [kind for kind in COUNTS if not only or kind in only]
    turn = itertools.cycle(plans)
    for number in itertools.count():
        for kind in kinds:
            if number == 0 and kind in ALWAYS:
                yield {"kind": kind, "part": 0, "parts": 1}
            yield {"kind": kind, "seed": seed * 1_000_003 + number, "count": COUNTS[kind]}
        if not only or KILLS in only:
            for _ in range(KILL_JOBS):
                yield {"kind": KILLS, "plan": next(turn), "seed": seed * 1_000_003 + number}


def soak(minutes: float, seed: int, only: Sequence[str], count: int) -> Tally:
    """Attack for so long with `count` workers, and say every minute how it stands."""
    tally, began = Tally(), time.monotonic()
    until = began + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="soak-", dir=_memory()) as scratch:
        workers = [Worker(Path(scratch) / str(number), KEPT) for number in range(count)]
        # Any job tells the plans; an empty one of a kind costs nothing.
        first = workers[0].do({"kind": "commands", "seed": seed, "count": 1})
        tally.add(first)
        source, lock = jobs(workers[0].plans, seed, only), threading.Lock()

        def work(worker: Worker) -> None:
            while time.monotonic() < until:
                with lock:
                    job = next(source)
                try:
                    tally.add(worker.do(job))
                except RuntimeError as error:
                    tally.broken.append(str(error)[-2000:])
                    print(f"the instrument failed: {error}", flush=True)

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        said = began
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            if time.monotonic() - said > 60:
                said = time.monotonic()
                spent = said - began
                print(
                    f"{spent / 60:5.1f} min: {tally.inputs():,} inputs ({tally.inputs() / spent:.1f}/s), "
                    f"{tally.kills()} kills, {tally.failed()} failures of "
                    f"{len(tally.causes)} causes",
                    flush=True,
                )
        for worker in workers:
            worker.close()
    return tally


def _memory() -> str | None:
    """A folder in memory where there is one: cases write thousands of files."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 2 << 30 else None


def write(tally: Tally, *, minutes: float, seed: int, workers: int) -> None:
    """Write the result and bring its table into the page."""
    from mtkd.runtime.environment import environment

    result = {
        "command": "python -m tests.hostile.soak " + shlex.join(sys.argv[1:]),
        "environment": environment(),
        "minutes": minutes,
        "seed": seed,
        "workers": workers,
        "inputs": tally.inputs(),
        "kills": tally.kills(),
        "counts": {kind: dict(counts) for kind, counts in sorted(tally.counts.items())},
        "seconds": {kind: round(seconds, 1) for kind, seconds in sorted(tally.seconds.items())},
        "causes": dict(sorted(tally.causes.items(), key=lambda item: -item[1]["count"])),
        "broken": tally.broken,
    }
    # Tracebacks name files of this machine, which nobody else has.
    text = re.sub(r"(?<![\w.)}*-])/(?:[\w.@-]+/)+", "", json.dumps(result, indent=2))
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(f"Written to {RESULT.relative_to(ROOT)}.")
    if PAGE.exists():
        PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")


def with_figures(page: str, result: Mapping[str, Any]) -> str:
    """The page with the figures of a result between its markers."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    facts = result["environment"]
    text = (
        f"{result['minutes']:g} minutes, seed {result['seed']}, {result['workers']} workers on {facts['device']}, "
        f"torch {facts['versions']['torch']}, Python {facts['versions']['python']}, commit {facts['commit']} "
        f"({facts['date'][:10]}).\n\n{table(result['counts'])}\n"
    )
    return f"{head}{BEGIN}\n{text}{END}{tail}"


def repeat(name: str) -> int:
    """Try one kept case again and say how it ends."""
    from tests.hostile import sandbox, worker
    from tests.hostile.cases import judge
    from tests.hostile.ground import Ground

    sandbox.warm()
    with tempfile.TemporaryDirectory() as scratch:
        ground = Ground(Path(scratch) / "ground").make()
        case = load(KEPT / Path(name).name, ground.root)
        assert case.kind in worker.KINDS
        outcome = sandbox.run(case, ground.root, Path(scratch) / "case")
        verdict = judge(case, outcome)
        for command in case.commands:
            print("mtkd", shlex.join(command))
        print(outcome.stdout, outcome.stderr, sep="\n")
        print(f"{verdict}: codes {outcome.codes}, signal {outcome.signal} {outcome.wrong} {' '.join(outcome.started)}")
    return 0 if verdict in FINE else 1


def kill(plan: str, seed: int) -> int:
    """Interrupt one plan again as `seed` says."""
    from tests.hostile import sandbox
    from tests.hostile.ground import Ground
    from tests.hostile.kills import Killer

    sandbox.warm()
    with tempfile.TemporaryDirectory() as scratch:
        killer = Killer(Ground(Path(scratch) / "ground").make(), Path(scratch) / "cases")
        ended = killer.interrupt(killer.plans[plan], seed, keep=KEPT)
    print(f"{plan}: {dict(ended.counts)}, {ended.failure or 'no difference'} {ended.text}")
    return 1 if ended.failure else 0


def main() -> int:
    """Run the attack, or repeat one case of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="KIND", choices=[*COUNTS, KILLS])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", metavar="FOLDER", help="try one kept case again")
    parser.add_argument("--kill", metavar="PLAN", help="interrupt one plan again, as --seed says")
    given = parser.parse_args()
    if given.repeat:
        return repeat(given.repeat)
    if given.kill:
        return kill(given.kill, given.seed)
    began = time.monotonic()
    tally = soak(given.minutes, given.seed, given.only, given.workers)
    print(table(dict(sorted(tally.counts.items()))))
    for name, cause in sorted(tally.causes.items(), key=lambda item: -item[1]["count"]):
        print(f"{cause['count']:6d}  {name}  ({cause['example']})")
    write(
        tally,
        minutes=round((time.monotonic() - began) / 60, 1),
        seed=given.seed,
        workers=given.workers,
    )
    return 1 if tally.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
