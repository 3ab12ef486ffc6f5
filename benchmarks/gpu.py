"""Check, measure and train on a GPU that is there for minutes only, most worthwhile things first.

    python benchmarks/gpu.py --minutes 10 --out results
    python benchmarks/gpu.py --minutes 8 --out results --parts train --state state  # goes on where a call stopped
    python benchmarks/gpu.py --minutes 3 --out results --rehearse    # everything at toy size, on the CPU

Three parts, in this order, each with its own share of the time; what one leaves goes to the next:

check   every test marked `cuda`
speed   the CUDA columns of `benchmarks/speed.py`, cut to what the minutes allow
train   a grid of `mtkd bench` (`--grid`), its jobs side by side, one seed of every row first, resumable

    python benchmarks/gpu.py --keep results    # puts what came back into benchmarks/results, and into the reports

What is measured is written to `--out` at once, to at most eight files of at most 16 MiB, so that an end at any second
loses only what was running. What fails is recorded with its error, and the rest goes on. The command ends within
`--minutes`, with a table of one screen.

    make gpu-bundle     # fills .gpu/ with what a machine without an index needs, and with .gpu/run.sh, which calls this
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
PARTS = ("check", "speed", "train")
SHARES = {"check": 0.2, "speed": 0.45, "train": 0.35}
"""Of the time, for parts that come together."""
PIECES = ("stage2", "training", "scaling", "inference", "graphs", "wavelet", "attention")
"""Measures of the speed part, the most worthwhile first."""
REHEARSED = ("stage2", "wavelet")
CLOSING, PACKING, KEEPING = 4.0, 10.0, 10.0
"""Seconds kept for the table, and for packing what the runs need to go on; and between two such packings."""
AFTERWARDS = 30.0
"""Seconds in which versions and hardware are read."""
LOGGED = 6000
"""Characters of the output of what failed that are kept."""
JOBS = 12
"""Runs beside each other: small networks leave most of a GPU idle, and each keeps one core busy."""


def main() -> None:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="the command ends within M minutes")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of results")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="measure nothing: store the results in DIR")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of check,speed,train (default: all)")
    parser.add_argument("--only", nargs="+", choices=PIECES, help="measures of the speed part")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH", help="tests of the check part (default: all)")
    parser.add_argument("--iterations", type=int, help="of every run of the grid, instead of its own")
    parser.add_argument("--grid", type=Path, default=ROOT / "benchmarks/gpu_x4.yml", help="what is trained")
    parser.add_argument("--data", type=Path, help="images of the grid (default: those that it names, or toy ones)")
    parser.add_argument("--state", type=Path, help="folder with state.tar.N of an earlier call, to go on from")
    parser.add_argument(
        "--work", type=Path, help="folder of runs in progress (default: .cache/gpu, or a temporary one)"
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"runs side by side (default: {JOBS})")
    parser.add_argument("--rehearse", action="store_true", help="all parts on the CPU at toy size")
    args = parser.parse_args()
    if args.keep is not None:
        folder = args.keep.resolve()
        os.chdir(ROOT)
        keep(folder)
        return
    if args.minutes is None or args.out is None:
        parser.error("--minutes and --out are needed (or --keep)")
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("out", "grid", "data", "state", "work"):
        if (path := getattr(args, name)) is not None:
            setattr(args, name, path.resolve())
    os.chdir(ROOT)  # where the grid's images are named from, and `-m mtkd` is found
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or (Path(temporary) if args.rehearse else ROOT / ".cache/gpu")
        work.mkdir(parents=True, exist_ok=True)
        Lease(args, [part for part in PARTS if part in parts], work.resolve()).run()


class Lease:
    """One call: its arguments, its clock, and what came out so far."""

    def __init__(self, args: argparse.Namespace, parts: list[str], work: Path) -> None:
        self.args, self.parts, self.out, self.work = args, parts, args.out, work
        self.began = time.time()
        self.end = self.began + 60 * args.minutes - CLOSING
        self.device = "cpu" if args.rehearse else "cuda"
        self.log = self.out / "log.txt"
        self.errors: dict[str, str] = {}
        # Without folders of the machine it runs on.
        words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
        self.facts: dict[str, Any] = {
            "command": "python " + shlex.join(["benchmarks/gpu.py", *words]),
            "commit": _bundled_commit(),
        }

    def run(self) -> None:
        """All parts, then the table."""
        for number, part in enumerate(self.parts):
            left = sum(SHARES[other] for other in self.parts[number:])
            until = time.time() + (self.end - time.time()) * SHARES[part] / left
            print(f"{part}: until second {until - self.began:.0f}", flush=True)
            try:
                getattr(self, part)(until)
            except Exception as error:
                self.failed(part, f"{type(error).__name__}: {str(error)[:200]}", traceback.format_exc())
            print(f"{part}: ended at second {time.time() - self.began:.0f}", flush=True)
        text = self.table()
        (self.out / "table.md").write_text(text, encoding="utf-8")
        print(text, flush=True)

    def failed(self, what: str, error: str, output: str = "") -> None:
        """Record that `what` failed, with the end of its output."""
        self.errors[what] = error
        print(f"{what} failed: {error}", flush=True)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"=== {what} failed: {error}\n{output[-LOGGED:]}\n")

    # -- check ----------------------------------------------------------------

    def check(self, until: float) -> None:
        """Every test marked `cuda`, in some processes when pytest-xdist is there."""
        outcomes = self.out / "check.jsonl"
        outcomes.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "measures.outcomes"]
        command += ["-p", "no:cacheprovider"]
        if self.args.tests:
            command += self.args.tests
        elif self.args.rehearse:
            command += ["tests/data", "tests/methods/test_cuda.py"]
        if _has("xdist") and not self.args.rehearse:
            command += ["-n", "4"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]),
            "MTKD_OUTCOMES": str(outcomes),
        }
        # Where a test calls this script, pytest would take itself for a worker of that test's pytest.
        environment.pop("PYTEST_XDIST_WORKER", None)
        log = self.work / "check.log"
        with log.open("wb") as output:
            code = _within(until, command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        if code not in (0, 1):
            error = "stopped by the clock" if code is None else f"pytest ended with exit code {code}"
            self.failed("check", error, log.read_text(errors="replace"))
        # Where this process has used CUDA, those that it forks cannot.
        self.in_fork("environment", time.time() + AFTERWARDS, self.keep_environment, outcomes)

    def keep_environment(self, outcomes: Path) -> None:
        """Hardware, versions and commit as the last line of `outcomes`; runs in its own process."""
        from mtkd.runtime.environment import environment

        with outcomes.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"environment": {**environment(), **self.commit()}, **self.facts}) + "\n")

    def outcomes(self) -> list[dict[str, Any]]:
        """Tests that ended, one mapping each."""
        file = self.out / "check.jsonl"
        lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return [line for line in lines if "test" in line]

    # -- speed ----------------------------------------------------------------

    def speed(self, until: float) -> None:
        """Each measure in a forked process, which inherits what was imported and shares no CUDA state."""
        import speed  # noqa: F401  before the forks

        for piece in self.args.only or (REHEARSED if self.args.rehearse else PIECES):
            if time.time() > until - 5:
                self.failed(piece, "no time was left for it")
                continue
            self.in_fork(piece, until, self.measure, piece)

    def measure(self, piece: str) -> None:
        """One section of `speed.py`, stored each time that it grows; runs in its own process."""
        import speed
        from measures.timing import LEASE, QUICK

        effort = QUICK if self.args.rehearse else LEASE
        for record in speed.records(piece, self.device, effort, self.facts["command"]):
            record["environment"] = {**record["environment"], **self.commit()}
            speed.store(self.out / speed.file_name(self.device), {piece: record})

    def commit(self) -> dict[str, str]:
        """The commit that the bundle was made of, where the copy has no history of its own."""
        return {"commit": self.facts["commit"]} if self.facts["commit"] else {}

    # -- train ----------------------------------------------------------------

    def train(self, until: float) -> None:
        """A grid of `mtkd bench`: jobs side by side, what they reached, and a state to go on from."""
        from measures import cells

        from mtkd.bench import control, mps
        from mtkd.bench.control import Board, Slots
        from mtkd.contracts import MtkdError
        from mtkd.runtime.environment import environment

        state, small = self.work / "state", self.args.rehearse
        os.environ["MTKD_HOME"] = str(state / "home")
        if self.args.state is not None:
            cells.unpack(self.args.state, state)
        data, iterations = self.args.data, self.args.iterations
        plan = cells.prepare(self.args.grid, state, data=data, iterations=iterations, small=small)
        left: list[str] = []
        kept = {"jobs": -1, "at": 0.0}

        def keep() -> None:
            record = {
                "grid": plan.grid.name,
                **cells.reached(plan),
                "environment": {**environment(), **self.commit()},
                "command": self.facts["command"],
            }
            (self.out / "train.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            left[:] = cells.pack(plan, self.out)

        def show(board: Board) -> None:
            # An end at any second loses what was running, and what ended in the seconds before.
            if len(board.done) != kept["jobs"] and time.time() > kept["at"] + KEEPING:
                keep()
                kept.update(jobs=len(board.done), at=time.time())

        with ExitStack() as stack:
            if mps.program() and not small:
                try:
                    stack.enter_context(mps.sharing())
                except MtkdError as error:
                    self.failed("mps", str(error))
            slots = Slots(2 if small else self.args.jobs, [] if small else control.cuda_devices())
            board = control.run(
                plan,
                cells.waiting(plan),
                slots,
                command=lambda job: cells.command(state, job),
                show=show,
                until=until - cells.STOPPING - (2.0 if small else PACKING),
                patience=cells.STOPPING,
            )
        keep()
        for failure, why in board.failed.items():
            log = control.log_path(state, plan[failure])
            self.failed(failure, why, log.read_text(errors="replace") if log.exists() else "")
        if missing := cells.waiting(plan):
            names = ", ".join(job.name for job in missing[:3])
            self.failed("train", f"{len(missing)} jobs are not finished: {names}{' ...' if missing[3:] else ''}")
        if left:
            print(f"no room for the checkpoints of {', '.join(left)}, which begin anew", flush=True)

    # -------------------------------------------------------------------------

    def in_fork(self, name: str, until: float, call: Callable[..., object], *arguments: Any) -> None:
        """`call(*arguments)` in a process of its own that is ended at `until`."""
        log = self.work / f"{name}.log"

        def child() -> None:
            os.setsid()
            with log.open("wb", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            call(*arguments)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(max(until - time.time(), 0))
        late = process.is_alive()
        if late and process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        if late or process.exitcode:
            error = "stopped by the clock" if late else f"exit code {process.exitcode}"
            self.failed(name, error, log.read_text(errors="replace"))

    def table(self) -> str:
        """What came out, on one screen."""
        from measures.report import shown

        lines = []
        if "check" in self.parts:
            tests = self.outcomes()
            counts = {kind: sum(test["outcome"] == kind for test in tests) for kind in ("passed", "failed", "skipped")}
            lines.append("check: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
            for test in tests:
                if test["outcome"] == "failed":
                    last = test["error"].strip().splitlines()[-1] if test["error"].strip() else ""
                    lines.append(f"  FAILED {test['test'].rpartition('/')[2]}: {last[:120]}")
        if "speed" in self.parts:
            for file in sorted(self.out.glob("speed_*.json")):
                for name, record in json.loads(file.read_text()).items():
                    lines.append(f"speed, {name}: {len(record['rows'])} rows, {record['seconds']:.0f} s")
                    for aim in record["aims"]:
                        sign, verdict = (">=" if aim["at_least"] else "<="), ("met" if aim["met"] else "MISSED")
                        wanted = shown(aim["wanted"])
                        lines.append(f"  {aim['about']}: {shown(aim['measured'])} ({sign} {wanted}, {verdict})")
        if (self.out / "train.json").exists() and "train" in self.parts:
            record = json.loads((self.out / "train.json").read_text())
            lines.append(f"train: {record['cells'] - record['cells left']} of {record['cells']} cells")
            for row in (*record["finished"], *record["unfinished"]):
                (_, name), *others = row.items()
                values = ", ".join(f"{key} {_digits(value)}" for key, value in others if value != "")
                lines.append(f"  {name}: {values}")
        lines += [f"failed: {name}: {error[:160]}" for name, error in self.errors.items()]
        lines.append(f"{time.time() - self.began:.0f} s in all")
        return "\n".join(lines) + "\n"


def keep(results: Path) -> None:
    """Put the results of a call beside those that are stored, under the name of the device, and renew the reports."""
    import speed
    from measures import report

    for file in sorted(results.glob("speed_cuda_*.json")):
        speed.store(speed.RESULTS / file.name, report.load(file))
    if (results / "check.jsonl").exists():
        lines = [json.loads(line) for line in (results / "check.jsonl").read_text().splitlines()]
        tests = {line.pop("test"): line for line in lines if "test" in line}
        about = next((line for line in lines if "environment" in line), None)
        if about is None:
            raise SystemExit("check.jsonl was cut short: it does not say which machine it is from.")
        path = speed.RESULTS / f"gpu_check_{speed.words(about['environment']['device'])}.json"
        kept = json.loads(path.read_text()) if path.exists() else []
        outcomes = [test["outcome"] for test in tests.values()]
        counts = {kind: outcomes.count(kind) for kind in ("passed", "failed", "skipped")}
        path.write_text(json.dumps([*kept, {**about, "counts": counts, "tests": tests}], indent=1) + "\n")
    report.write(ROOT, speed.MEASURES, report.stored(speed.RESULTS))
    if list(results.glob("state.tar.[0-9]")):
        keep_grid(results, speed.RESULTS)


def keep_grid(results: Path, folder: Path) -> None:
    """Put what the report of the grid in `results` is made of into `folder`/NAME, and make the report of all that is
    there.
    """
    import shutil

    from measures import cells

    from mtkd.bench import report
    from mtkd.contracts import MtkdError

    with tempfile.TemporaryDirectory() as state:
        cells.unpack(results, Path(state))
        plan = cells.planned(Path(state))
        there = folder / plan.grid.name
        report.keep(plan, there)
        # With the length that was trained.
        shutil.copyfile(Path(state) / cells.GRID, there / cells.GRID)
    try:
        report.write_report(cells.planned(there), command=json.loads((results / "train.json").read_text())["command"])
    except MtkdError as error:
        raise SystemExit(str(error)) from error


def _within(until: float, command: list[str], **options: Any) -> int | None:
    """Exit code of a command that may run until that time; None when it had to be ended."""
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            return process.wait(max(until - time.time(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def _bundled_commit() -> str | None:
    file = ROOT / ".gpu/commit"
    return file.read_text().strip() if file.exists() else None


def _digits(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if value < 1 else f"{value:.3f}"


if __name__ == "__main__":
    main()
