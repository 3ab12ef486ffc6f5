"""One worker: a warm process that makes cases of a kind from a seed, runs each in a child, and counts how they end.

It reads jobs as lines of JSON and answers each with one line, so that tests and the long run share it:

    {"kind": "images", "seed": 3, "count": 25}          -> {"tally": {"refused": 20, ...}, "failures": [...], ...}
    {"kind": "server", "part": 0, "parts": 2}           -> the first half of the cases that need no seed
    {"kind": "kills", "plan": "train MTKD", "seed": 3}  -> {"tally": {"runs": 1, "kills": 2, ...}, ...}
    {"kind": "kills", ..., "way": "twin"}               -> the same with one way of `kills.WAYS` alone
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hostile import archives, commands, images, options, sandbox, server, states, stores, weights
from tests.hostile.cases import FINE, Case, judge, keep, signature
from tests.hostile.ground import Ground
from tests.hostile.kills import Killer

KINDS: dict[str, Callable[[Ground], st.SearchStrategy[Case]]] = {
    "options": options.cases,
    "forced": options.forced,
    "images": images.cases,
    "archives": archives.cases,
    "weights": weights.cases,
    "states": states.cases,
    "stores": stores.cases,
    "commands": commands.cases,
    "server": server.cases,
}
"""Kinds of input, and how their cases are made."""
ALWAYS: dict[str, Callable[[Ground], list[Case]]] = {
    "weights": weights.always,
    "states": states.always,
    "server": server.always,
}
"""Cases that are tried whatever the seed."""
KILLS = "kills"


class Bench:
    """Ground, strategies and the folder in which cases run."""

    def __init__(self, ground: Ground, scratch: Path, kept: Path) -> None:
        self.ground, self.scratch, self.kept = ground, scratch, kept
        self._strategies: dict[str, st.SearchStrategy[Case]] = {}
        self._killer: Killer | None = None

    def try_case(self, case: Case) -> tuple[str, dict[str, Any] | None]:
        """Verdict of one case, and what is known of a failure."""
        with sandbox.scratch(self.scratch, "case") as folder:
            outcome = sandbox.run(case, self.ground.root, folder)
            verdict = judge(case, outcome)
            if verdict in FINE:
                return verdict, None
            place = keep(case, outcome, verdict, self.ground.root, self.kept)
        return verdict, {"verdict": verdict, "signature": signature(outcome, verdict), "folder": place.name}

    def inputs(self, kind: str, seed: int, count: int) -> dict[str, Any]:
        """Try `count` cases of a kind."""
        if kind not in self._strategies:
            self._strategies[kind] = KINDS[kind](self.ground)
        tally: Counter[str] = Counter()
        failures: list[dict[str, Any]] = []

        @hypothesis.seed(seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            # Failures are counted and kept, not shrunk: one that is would hide the others.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(self._strategies[kind])
        def attack(case: Case) -> None:
            verdict, failure = self.try_case(case)
            tally[verdict] += 1
            if failure is not None:
                failures.append(failure)

        attack()
        return {"tally": dict(tally), "failures": failures}

    def always(self, kind: str, part: int, parts: int) -> dict[str, Any]:
        """Try a share of the cases of a kind that need no seed."""
        tally: Counter[str] = Counter()
        failures: list[dict[str, Any]] = []
        for case in ALWAYS[kind](self.ground)[part::parts]:
            verdict, failure = self.try_case(case)
            tally[verdict] += 1
            if failure is not None:
                failures.append(failure)
        return {"tally": dict(tally), "failures": failures}

    def kills(self, name: str, seed: int, way: str | None) -> dict[str, Any]:
        """Interrupt one plan."""
        ended = self.killer.interrupt(self.killer.plans[name], seed, way=way, keep=self.kept)
        tally = {"runs": 1, **ended.counts, **({ended.failure: 1} if ended.failure else {})}
        failure = {"verdict": ended.failure, "signature": f"{name}: {ended.text[-400:]}", "folder": f"{name} {seed}"}
        return {"tally": tally, "failures": [failure] if ended.failure else []}

    @property
    def killer(self) -> Killer:
        """Plans of the kill test, made when first wanted."""
        if self._killer is None:
            self._killer = Killer(self.ground, self.scratch)
        return self._killer


def main() -> None:
    """Answer jobs until the input ends."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scratch", type=Path, required=True)
    arguments.add_argument("--kept", type=Path, required=True)
    given_ = arguments.parse_args()
    # Nothing that is printed here may stand between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sandbox.warm()
    hypothesis.configuration.set_hypothesis_home_dir(given_.scratch / "hypothesis")
    bench = Bench(Ground(given_.scratch / "ground").make(), given_.scratch / "cases", given_.kept)
    bench.scratch.mkdir()
    answers.write(json.dumps({"ready": sorted(bench.killer.plans)}) + "\n")
    for line in sys.stdin:
        job = json.loads(line)
        began = time.monotonic()
        try:
            if job["kind"] == KILLS:
                answer = bench.kills(job["plan"], job["seed"], job.get("way"))
            elif "part" in job:
                answer = bench.always(job["kind"], job["part"], job["parts"])
            else:
                answer = bench.inputs(job["kind"], job["seed"], job["count"])
        except Exception:
            # Of the instrument itself: no case raises.
            answer = {"broken": traceback.format_exc()[-3000:]}
        answers.write(json.dumps({**job, **answer, "seconds": time.monotonic() - began}) + "\n")


if __name__ == "__main__":
    main()
