"""How fast mtkd is, measured side by side with what people use today, in one run.

    python benchmarks/speed.py                  # everything, on CUDA when there is one, else on the CPU
    python benchmarks/speed.py --only wavelet data_path
    python benchmarks/speed.py --report         # measures nothing, writes the reports again

Every number is a ratio against something real that ran in the same process, case after case, round after round; tables
show medians and the spread of the rounds. Results are `benchmarks/results/speed_cpu.json` and, for each GPU,
`speed_cuda_DEVICE.json`, each section with the machine, versions, commit and command that measured it; sections that
are not measured again stay. From them come `benchmarks/results/speed.md`, with every table, and the section "Speed" of
README.md. What was never measured on a device says so. `benchmarks/gpu.py` takes the same measurements in minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measures import report
from measures.timing import FULL, QUICK, Effort

from mtkd.runtime.environment import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
MEASURES = (
    "stage2",
    "graphs",
    "training",
    "wavelet",
    "data_path",
    "attention",
    "inference",
    "scaling",
    "quality",
    "deploy",
)
"""Modules of `measures`; each has `measure(device, effort) -> Iterator[Section]`, a section that grows."""
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
    command = "python " + shlex.join(["benchmarks/speed.py", *sys.argv[1:]])
    if not args.report:
        for name in args.only:
            print(f"{name} on {args.device} ...", flush=True)
            record: dict[str, Any] = {}
            for record in records(name, args.device, QUICK if args.quick else FULL, command):
                if not args.quick:
                    store(RESULTS / file_name(args.device), {name: record})
            print(report.table(record), flush=True)
    if not args.quick:
        report.write(ROOT, MEASURES, report.stored(RESULTS))


def records(name: str, device: str, effort: Effort, command: str) -> Iterator[dict[str, Any]]:
    """Measure one section: its record each time that it has grown, the last one whole."""
    began = time.perf_counter()
    for section in importlib.import_module(f"measures.{name}").measure(device, effort):
        yield {
            **section.record(),
            "environment": environment(device),
            "threads": torch.get_num_threads(),
            "command": command,
            "seconds": time.perf_counter() - began,
        }


def file_name(device: str) -> str:
    """Name of the file of results for the device at hand."""
    if device == "cpu":
        return "speed_cpu.json"
    return f"speed_cuda_{words(torch.cuda.get_device_name())}.json"


def words(device: str) -> str:
    """The name of a device as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def store(path: Path, sections: dict[str, dict[str, Any]]) -> None:
    """Put `sections` into the file beside those that are there."""
    kept = {**report.load(path), **sections}
    path.write_text(json.dumps({key: kept[key] for key in MEASURES if key in kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()
