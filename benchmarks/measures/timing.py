"""What every measurement shares: cases timed side by side, and the form of a section of results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Times = dict[str, list[float]]
"""case -> seconds per call, one value a round."""


@dataclass(frozen=True)
class Aim:
    """A ratio that was promised, and what came out.

    Attributes:
        about: what is divided by what, in words.
        wanted: the bound.
        measured: the ratio, median over rounds.
        at_least: whether the ratio must be at least `wanted`, or at most.
    """

    about: str
    wanted: float
    measured: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


@dataclass(frozen=True)
class Effort:
    """How much time a measurement may take.

    Attributes:
        name: "full"; "lease", for minutes on a borrowed GPU; or "quick", which shows that it runs.
        most_rounds: upper bound of the rounds of `side_by_side`.
        most_seconds: upper bound of the seconds that a case is repeated in a round.
    """

    name: str
    most_rounds: int
    most_seconds: float

    @property
    def quick(self) -> bool:
        """Whether numbers do not matter."""
        return self.name == "quick"

    @property
    def full(self) -> bool:
        """Whether time does not matter."""
        return self.name == "full"

    def rounds(self, wanted: int) -> int:
        """`wanted` rounds, or as many as there is time for."""
        return min(wanted, self.most_rounds)

    def seconds(self, wanted: float) -> float:
        """`wanted` seconds a round and case, or as many as there is time for."""
        return min(wanted, self.most_seconds)


QUICK, LEASE, FULL = Effort("quick", 2, 0.02), Effort("lease", 5, 0.15), Effort("full", 1000, 1000.0)


@dataclass
class Section:
    """Answers to one question.

    Attributes:
        title: the question, as a heading.
        setting: sizes, data and what is compared, one paragraph that a reader needs to repeat it.
        rows: table rows with the same keys, which become the headings; numbers as measured, rounded when shown.
        aims: promises that these rows decide.
        notes: what a reader must know to read the rows rightly.
    """

    title: str
    setting: str
    rows: list[dict[str, Any]]
    aims: list[Aim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The section as plain data for JSON."""
        return {**asdict(self), "aims": [{**asdict(aim), "met": aim.met} for aim in self.aims]}


def wait(device: str) -> None:
    """Until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def side_by_side(
    cases: Mapping[str, Callable[[], object]], device: str, *, rounds: int, seconds: float = 0.5, warm_up: int = 2
) -> Times:
    """Time `cases` round after round, case after case, so that a machine that slows down slows all of them.

    Args:
        device: "cpu" or "cuda".
        rounds: values per case.
        seconds: a case is repeated within a round for about this long, at least once.
        warm_up: calls of each case that are not counted; compilation and caches happen there.
    """
    repeats = {}
    for name, case in cases.items():
        for _ in range(max(warm_up - 1, 0)):
            case()
        wait(device)
        began = time.perf_counter()
        case()
        wait(device)
        repeats[name] = max(1, round(seconds / (time.perf_counter() - began)))
    times: Times = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            wait(device)
            began = time.perf_counter()
            for _ in range(repeats[name]):
                case()
            wait(device)
            times[name].append((time.perf_counter() - began) / repeats[name])
    return times


def ratios(times: Times, numerator: str, denominator: str) -> list[float]:
    """`numerator` / `denominator`, round by round."""
    return [a / b for a, b in zip(times[numerator], times[denominator], strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
