"""`mtkd bench`: train a grid of students and make its tables."""

from __future__ import annotations

import argparse
import fnmatch
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkd.commands import arguments
from mtkd.contracts import MtkdError
from mtkd.runtime import given

if TYPE_CHECKING:
    from mtkd.bench.jobs import Job, Plan


def add(subparsers: arguments.SubParsers) -> None:
    """Add `bench` to the sub-parsers of a command line."""
    bench = arguments.command(
        subparsers,
        "bench",
        "train a grid of students side by side and make its tables and its page",
        """mtkd bench benchmarks/cpu_x4.yml --dry_run           # the cells, what they need, hours and disk
  mtkd bench benchmarks/cpu_x4.yml --jobs 2            # all that is missing, then the report; call it again any time
  mtkd bench GRID.yml --shard 3/8                      # in the third task of a job array over a shared disk
  mtkd bench GRID.yml --launcher slurm --jobs 8 --slurm partition=gpu gpus_per_node=1 time=600
  mtkd bench GRID.yml --only 'mtkd_*' --no_report
  mtkd bench benchmarks/cpu_x4.yml --jobs 8 --mps --machine num_gpu=1 compile=graphs   # the same cells on a GPU

A grid file names a protocol (one option file, or changes to one), and rows, students, scales, lengths and seeds; each
combination is a cell, an ordinary run folder in OUT/runs. Cells of one student start from the same weights and see the
same batches. Stage-1 runs, teachers' answers and stores of targets that several cells need are made once, before them.

  name: my_grid
  protocol: {base: options/base/div2k.yml, train: {total_iter: '{iterations}'}}
  iterations: [250000]
  scales: [4]
  seeds: [10, 20, 30]
  students: {edsr_m: edsr_m}
  rows:
    scratch: {model_type: SRModel, train: {pixel_opt: {type: L1Loss}}}
    kd: {base: 'recipe:OutputKD/kd', teachers: {teacher: 'zoo:edsr_l_x{scale}'}}
  test:
    datasets: {test_1: {name: Set5, type: PairedImageDataset, dataroot_gt: datasets/Set5/HR}}
    metrics: {psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: true}}
  baselines: [scratch]

More keys (teachers, runs, targets, {5/8}) are told in docs/bench.md. Killed at any moment, it goes on when called
again; what the file says otherwise than before is made anew, and the old is renamed, never deleted.""",
    )
    bench.add_argument("grid", type=given.path, metavar="GRID.yml", help="the grid")
    bench.add_argument(
        "--out", type=given.path, metavar="DIR", help="folder of runs, stores, scores and report (default: bench/NAME)"
    )
    bench.add_argument("--data", type=given.path, metavar="DIR", help="what {data} in the grid means, else its `data`")
    bench.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="runs side by side, GPUs dealt out among them (default: 1)"
    )
    bench.add_argument(
        "--only", nargs="+", default=(), metavar="PATTERN", help="cells whose names match, and what they need"
    )
    bench.add_argument("--shard", metavar="k/n", help="the k-th of n shares of the cells, for job arrays")
    bench.add_argument(
        "--launcher",
        choices=("none", "slurm", "local"),
        default="none",
        help="slurm: hand --jobs N shares to slurm through submitit; local: the same with processes of this machine",
    )
    bench.add_argument(
        "--slurm", nargs="+", default=(), metavar="KEY=VALUE", help="parameters of submitit's slurm executor"
    )
    bench.add_argument(
        "--machine",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="how cells train here, whatever the grid says: num_gpu, compile, tf32, channels_last",
    )
    bench.add_argument(
        "--mps",
        action="store_true",
        help="start NVIDIA's multi-process service for the --jobs N of this call: several times as fast where networks "
        "are small",
    )
    bench.add_argument("--dry_run", action="store_true", help="show cells, needs, hours and disk; train nothing")
    bench.add_argument("--report_only", action="store_true", help="make the report of what is there; train nothing")
    bench.add_argument(
        "--keep",
        type=given.path,
        metavar="DIR",
        help="copy what the report is made of there, for a repository: no weights",
    )
    bench.add_argument("--no_report", action="store_true", help="train and measure only")
    bench.add_argument("--job", help=argparse.SUPPRESS)
    bench.add_argument("--digest", help=argparse.SUPPRESS)
    bench.set_defaults(run=run)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10_000):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, found {text[:60]!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Make what the grid lacks, then its report; 1 where jobs failed.

    Raises:
        MtkdError: the grid, or an option file of it, is wrong; nothing was begun then.
        Stopped: a signal ended it; what ran has saved.
    """
    from mtkd.bench import control, estimate, launchers, live, mps
    from mtkd.bench.grid import load_grid
    from mtkd.bench.jobs import options_of
    from mtkd.bench.jobs import plan as plan_of
    from mtkd.bench.machine import machine
    from mtkd.bench.scores import check_images

    if args.mps and args.launcher != "none":
        raise MtkdError("--mps belongs to --jobs N of one machine. Start the service in the jobs' own script.")
    if args.slurm and args.launcher != "slurm":
        raise MtkdError("--slurm KEY=VALUE belongs to --launcher slurm.")
    on = machine(args.machine)
    grid = load_grid(args.grid, data=args.data)
    out = args.out or Path("bench") / grid.name
    # Who starts a job has checked the whole grid.
    plan = plan_of(grid, out, check=not args.job).on(on)
    if args.job:
        return _one(plan, args.job, args.digest)
    wanted = _wanted(plan, args)
    if on:
        options_of(plan.cells[0])  # so that a wrong value is told before jobs begin
    if args.dry_run:
        print(estimate.describe(plan, wanted, jobs=args.jobs))
        return 0
    failed = False
    if not args.report_only:
        needed, done = plan.to_make(wanted)
        for scale in {job.scale for job in needed if job.name not in done}:
            check_images(grid, scale)
        (out / "jobs").mkdir(parents=True, exist_ok=True)
        here = [str(args.grid), "--out", str(out), *(["--data", str(args.data)] if args.data else [])]
        here += ["--machine", *args.machine] if args.machine else []
        if args.launcher != "none":
            shares = launchers.submit(args.launcher, ["bench", *here, "--no_report"], args.jobs, args.only, args.slurm)
            failed = launchers.wait(shares, plan, wanted)
        else:
            service = mps.sharing() if args.mps else nullcontext()
            with service, live.Live(partial(print, flush=True)) as show:
                slots = control.Slots(args.jobs, control.cuda_devices())
                board = control.run(
                    plan,
                    wanted,
                    slots,
                    command=lambda job: control.python_command(
                        ["bench", *here, "--job", job.name, "--digest", job.measured]
                    ),
                    show=show,
                )
            print(live.summary(board))
            failed = bool(board.failed)
    if not args.no_report:
        from mtkd.bench.report import write_report

        write_report(plan, command=arguments.command_line())
    if args.keep:
        from mtkd.bench.report import keep

        keep(plan, args.keep)
    return int(failed)


def _one(plan: Plan, name: str, measured: str | None) -> int:
    from mtkd.bench import control, work

    found = [job for job in plan.jobs if job.name == name]
    if not found or measured not in (None, found[0].measured):
        return control.CHANGED
    try:
        work.execute(plan, found[0])
    except work.HeldElsewhere:
        return control.HELD
    return 0


def _wanted(plan: Plan, args: Any) -> list[Job]:
    from mtkd.bench.control import shard

    cells = plan.cells
    if args.only:
        cells = [cell for cell in cells if any(fnmatch.fnmatch(cell.name, pattern) for pattern in args.only)]
        if not cells:
            raise MtkdError(
                f"--only {' '.join(args.only)}: no cell matches. Names are ROW_STUDENT_xSCALE_ITERATIONS_sSEED, such "
                f"as {plan.cells[0].name}."
            )
    if args.shard:
        share = shard(cells, args.shard)
        # What no cell needs is the first share's.
        first = int(args.shard.partition("/")[0]) == 1 and not args.only
        return [*share, *(job for job in plan.jobs if job.kind == "teachers" and first)]
    return [*cells, *(job for job in plan.jobs if job.kind == "teachers" and not args.only)]
