"""A bounded, seeded selection of the attack: every kind of input, and every plan of the kill test ended once or more.

Two warm workers share it. The long one is `make soak`; a failing input lies in `.cache/soak/kept`, with the command
that repeats it.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.soak import ALWAYS, KEPT, KILLS, Tally, Worker

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, pidfds and /proc")]

COUNTS = {"options": 24, "forced": 30, "images": 24, "weights": 30, "states": 12, "stores": 16, "commands": 30}
COUNTS |= {"archives": 30, "server": 6}
SEED = 20


class Pool:
    """Workers that share jobs."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        self._free: queue.Queue[Worker] = queue.Queue()
        for worker in workers:
            self._free.put(worker)

    def plans(self) -> list[str]:
        """Names of the plans of the kill test."""
        self.do([{"kind": "commands", "seed": 0, "count": 1}])
        return next(worker.plans for worker in self.workers if worker.plans)

    def do(self, jobs: Sequence[Mapping[str, Any]]) -> Tally:
        """Do all jobs and count them together."""
        tally = Tally()

        def one(job: Mapping[str, Any]) -> None:
            worker = self._free.get()
            try:
                tally.add(worker.do(job))
            finally:
                self._free.put(worker)

        with ThreadPoolExecutor(len(self.workers)) as threads:
            list(threads.map(one, jobs))
        return tally


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    scratch: Path = tmp_path_factory.mktemp("hostile")
    pool = Pool([Worker(scratch / str(number), KEPT) for number in range(2)])
    yield pool
    for worker in pool.workers:
        worker.close()


def causes(tally: Tally) -> str:
    """What failed, the most frequent first."""
    ordered = sorted(tally.causes.items(), key=lambda item: -item[1]["count"])
    return "\n".join(["", *(f"{cause['count']} x {name} ({cause['example']})" for name, cause in ordered)])


@pytest.mark.parametrize("kind", COUNTS)
def test_no_input_runs_code_hangs_crashes_or_goes_wrong_in_silence(pool: Pool, kind: str) -> None:
    # In halves, one for each worker; of unlike seeds, so that they are not the same cases.
    half = COUNTS[kind] // 2
    tally = pool.do([{"kind": kind, "seed": SEED + part, "count": half} for part in range(2)])
    assert tally.inputs() >= half, "hardly anything was tried"
    assert not tally.causes, causes(tally)


@pytest.mark.parametrize("kind", ALWAYS)
def test_nothing_that_was_ever_tried_by_hand_succeeds(pool: Pool, kind: str) -> None:
    tally = pool.do([{"kind": kind, "part": part, "parts": 2} for part in range(2)])
    assert tally.inputs() > 20
    assert not tally.causes, causes(tally)


def test_whatever_is_killed_goes_on_as_if_nothing_had_happened(pool: Pool) -> None:
    plans = pool.plans()
    tally = pool.do([{"kind": KILLS, "plan": plan, "seed": SEED} for plan in plans])
    assert tally.counts[KILLS]["runs"] == len(plans)
    assert tally.kills() >= len(plans) / 2, "kills came too late to end anything"
    assert not tally.causes, causes(tally)


@pytest.mark.parametrize(("way", "count"), [("stop", "stops"), ("disk", "full"), ("twin", "twins")])
def test_a_stop_a_full_disk_and_a_second_process_end_well(pool: Pool, way: str, count: str) -> None:
    plans = ("train SRModel", "train SRModel", "teach", "download", "upscale", "convert")
    jobs = [{"kind": KILLS, "plan": plan, "seed": SEED + k, "way": way} for k, plan in enumerate(plans)]
    tally = pool.do(jobs)
    assert tally.counts[KILLS][count] >= 3
    assert not tally.causes, causes(tally)
