"""What CUDA graphs bring: steps of the students with `compile: graphs` beside the same steps without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from typing import Any

from measures import runs
from measures.timing import Effort, Section, ratios, side_by_side, spread
from mtkd.training.compiled import compile_run

ALONE, STORE = "student only", "from store"


def measure(device: str, effort: Effort) -> Iterator[Section]:
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    if device == "cpu":
        yield section(rows, ["CUDA only."])
        return
    # The slow compiler last: it takes a minute for each of these networks.
    wanted = [("graphs", "EDSR_M", "bf16"), ("graphs", "EDSR_M", "fp32"), ("graphs", "SwinIR_S", "bf16")]
    wanted += [("reduce-overhead", "EDSR_M", "bf16")]
    if effort.full:
        wanted = list(product(("graphs", "reduce-overhead"), runs.STUDENTS, ("fp32", "bf16")))
    for mode, student, precision in wanted:
        with runs.workplace() as folder:
            plain = runs.recipe(student, folder, device, small=effort.quick)
            for name, options in (
                (ALONE, runs.student_only(plain, precision=precision, compile=mode)),
                (STORE, runs.from_store(plain, folder, precision=precision, compile=mode)),
            ):
                graphs, eager = runs.Steps(options), runs.Steps(options.model_copy(update={"compile": False}))
                began = time.perf_counter()
                compile_run(graphs.run)
                taken = time.perf_counter() - began
                times = side_by_side(
                    {"eager": eager, "graphs": graphs},
                    device,
                    rounds=effort.rounds(15),
                    seconds=effort.seconds(0.5),
                    warm_up=5,
                )
                ratio = spread(ratios(times, "eager", "graphs"))
                rows.append(
                    {
                        "compile": mode,
                        "student": student,
                        "precision": precision,
                        "case": name,
                        "ms, eager": spread(times["eager"])["median"] * 1e3,
                        "ms, compiled": spread(times["graphs"])["median"] * 1e3,
                        "times as fast": ratio["median"],
                        "low": ratio["low"],
                        "high": ratio["high"],
                        "compiling, s": taken,
                    }
                )
                yield section(rows, notes)


def section(rows: list[dict[str, Any]], notes: list[str]) -> Section:
    """What is known after some of the rows."""
    return Section(
        title="compile: CUDA graphs",
        setting=(
            "The same steps as in stage 2, compiled as the row says beside steps that are not, on the option files' "
            f"batch of {runs.LQ}x{runs.LQ} lq. `{ALONE}`: L1 to gt. `{STORE}`: MTKD with its target from memory. "
            "Compiling is what the run waits for before its first iteration, with what inductor's cache holds then."
        ),
        rows=rows,
        notes=notes,
    )
