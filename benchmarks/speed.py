"""How fast mtkd is, measured side by side with what people use today, in one run.

    python benchmarks/speed.py                  # everything, on CUDA when there is one, else on the CPU
    python benchmarks/speed.py --only wavelet data_path
    python benchmarks/speed.py --report         # measures nothing, writes the reports again

Every number is a ratio against something real that ran in the same process, case after case, round after round; tables
show medians and the spread of the rounds. Results are `benchmarks/results/speed_cpu.json` and `speed_cuda.json`, each
section with the machine, versions, commit and command that measured it; sections that are not measured again stay.
From them come `benchmarks/results/speed.md`, with every table, and the section "Speed" of README.md. What was never
measured on a device says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measures import report

from mtkd.engine.log import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
MEASURES = ("stage2", "training", "wavelet", "data_path", "attention", "inference", "scaling", "quality")
"""Modules of `measures`; each has `measure(device, quick) -> Section`."""
DEVICES = ("cpu", "cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, default=MEASURES, metavar="NAME", help=", ".join(MEASURES)
    )
    parser.add_argument("--device", choices=DEVICES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, nothing is stored: shows that it runs")
    parser.add_argument("--report", action="store_true", help="write the reports from the stored results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.report:
        for name in args.only:
            run(name, args)
    if not args.quick:
        report.write(ROOT, MEASURES, {device: load(device) for device in DEVICES})


def run(name: str, args: argparse.Namespace) -> None:
    """Measure one section and store it."""
    print(f"{name} on {args.device} ...", flush=True)
    began = time.perf_counter()
    section = importlib.import_module(f"measures.{name}").measure(args.device, args.quick)
    record = {
        **section.record(),
        "environment": environment(),
        "threads": args.threads,
        "command": "python " + shlex.join(["benchmarks/speed.py", *sys.argv[1:]]),
        "seconds": time.perf_counter() - began,
    }
    print(report.table(record), flush=True)
    if args.quick:
        return
    stored = {**load(args.device), name: record}
    path = RESULTS / f"speed_{args.device}.json"
    path.write_text(json.dumps({key: stored[key] for key in MEASURES if key in stored}, indent=2) + "\n")


def load(device: str) -> dict[str, Any]:
    """Stored sections of `device`, none when nothing was measured there."""
    path = RESULTS / f"speed_{device}.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
