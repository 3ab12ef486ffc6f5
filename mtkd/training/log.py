"""The log of a run: BasicSR's log line on screen and in a file, `metrics.jsonl`, TensorBoard, wandb, a progress bar."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkd.runtime import strict_json
from mtkd.runtime.files import atomic
from mtkd.runtime.progress import on_terminal

if TYPE_CHECKING:
    from mtkd.training.bar import TrainingBar


class RunLog:
    """Log of one run. On ranks other than 0 every call does nothing.

    Args:
        folder: run folder for `train_NAME_TIME.log` and `metrics.jsonl`; None to print only.
        name: the run's name.
        total_steps: iterations of the whole run, for the progress bar and the ETA.
        start: iteration it goes on from; TensorBoard drops what was written after it.
        rank: global rank.
        tensorboard: folder for TensorBoard events, or None.
        wandb: BasicSR's `logger.wandb` mapping (`project`, `resume_id`), or None.
        bar: show a progress bar when the screen is a terminal.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        name: str,
        total_steps: int = 0,
        start: int = 0,
        rank: int = 0,
        tensorboard: Path | None = None,
        wandb: Mapping[str, Any] | None = None,
        bar: bool = True,
        prefix: str = "train",
    ) -> None:
        self.active = rank == 0
        self.name, self.total_steps = name, total_steps
        self._file = self._jsonl = self._writer = self._wandb = None
        self._bar: TrainingBar | None = None
        self._began: tuple[float, int] | None = None
        if not self.active:
            return
        if folder is not None:
            stamp = time.strftime("%Y%m%d_%H%M%S")
            self._file = (folder / f"{prefix}_{name}_{stamp}.log").open("a", encoding="utf-8")
            self._jsonl = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard), purge_step=start + 1 if start else None)
        if wandb is not None:
            import wandb as wandb_package

            resume_id = wandb.get("resume_id")
            self._wandb = wandb_package.init(
                project=wandb["project"], name=name, id=resume_id, resume="allow" if resume_id else None
            )
        if bar and total_steps and on_terminal():
            from mtkd.training.bar import TrainingBar

            self._bar = TrainingBar(name, total_steps, start)

    def info(self, text: str) -> None:
        """One message, to the screen and the log file."""
        if not self.active:
            return
        stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        if self._bar is not None:
            self._bar.print(text)
        else:
            print(text, flush=True)
        if self._file:
            self._file.write(f"{stamp} INFO: {text}\n")
            self._file.flush()

    def start_clock(self, step: int) -> None:
        """Begin measuring the time per iteration for the ETA at iteration `step`."""
        self._began = (time.perf_counter(), step)

    def losses(
        self, *, step: int, epoch: int, rate: float, values: Mapping[str, float], seconds: float, keep: bool = True
    ) -> None:
        """BasicSR's line for the iterations since the last one: mean losses, seconds per iteration, ETA.

        Args:
            keep: False for the line of a stopped run: it adds no point to curves and no row to `metrics.jsonl`, which
                must equal those of an uninterrupted run.
        """
        if not self.active:
            return
        eta = ""
        if self._began and step > self._began[1]:
            pace = (time.perf_counter() - self._began[0]) / (step - self._began[1])
            eta = str(datetime.timedelta(seconds=int(pace * (self.total_steps - step))))
        parts = " ".join(f"{name}: {value:.4e}" for name, value in values.items())
        self.info(
            f"[{self.name[:5]}..][epoch:{epoch:3d}, iter:{step:8,d}, lr:({rate:.3e},)] "
            f"[eta: {eta}, time: {seconds:.3f}] {parts}"
        )
        if self._bar is not None and "l_total" in values:
            self._bar.loss(values["l_total"])
        if not keep:
            return
        self._record({"step": step, "epoch": epoch, "lr": rate, "seconds_per_step": seconds, "losses": dict(values)})
        self._curves({f"losses/{name}": value for name, value in values.items()} | {"lr": rate}, step)

    def step(self, done: int) -> None:
        """Iteration `done` is over: moves the bar, where there is one, and reads nothing from the device."""
        if self._bar is not None:
            self._bar.step(done)

    def pause(self, what: str) -> None:
        """Say in the bar that training stands still for `what`."""
        if self._bar is not None:
            self._bar.pause(what)

    def score(self, metric: str, best: float, last: float | None = None) -> None:
        """Show the metric that decides in the bar: its best value so far, and that of the last validation."""
        if self._bar is not None:
            self._bar.score(metric, best, last)

    def validation(
        self, *, step: int, dataset: str, label: str, entry: str, values: Mapping[str, float], best: Mapping[str, Any]
    ) -> None:
        """Result of the validation set `dataset` (its key), called `label` on the screen, with the best so far.

        Args:
            entry: of the checkpoint, the weights that were measured: "params" or "params_ema".
        """
        if not self.active:
            return
        lines = [f"Validation {label} @ {step:,d} iter ({entry})"]
        for name, value in values.items():
            top = best.get(name)
            lines.append(
                f"\t # {name}: {value:.4f}" + (f"\tBest: {top['val']:.4f} @ {top['iter']:,d} iter" if top else "")
            )
        self.info("\n".join(lines))
        self._record({"step": step, "validation": dataset, "entry": entry, "metrics": dict(values)})
        self._curves({f"metrics/{dataset}/{name}": value for name, value in values.items()}, step)

    def close(self) -> None:
        """Flush and close everything."""
        if self._bar is not None:
            self._bar.close()
        for stream in (self._file, self._jsonl, self._writer):
            if stream is not None:
                stream.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _record(self, row: Mapping[str, Any]) -> None:
        if self._jsonl:
            self._jsonl.write(strict_json.dumps(row) + "\n")
            self._jsonl.flush()

    def _curves(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)


def logged_step(path: Path) -> int:
    """Last iteration in `metrics.jsonl`; 0 when there is none."""
    return max((row["step"] for _, row in metric_rows(path)), default=0)


def metric_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, row) of each whole row of `metrics.jsonl`; torn lines are left out."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            text = line.decode()
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield text, row


def trim_metrics(path: Path, step: int, *, losses_due: bool = False, validation_due: bool = False) -> None:
    """Drop the rows of `metrics.jsonl` after iteration `step`, and torn ones: resuming repeats none.

    Args:
        losses_due: drop the losses of iteration `step` too, which are logged again because that was cut short.
        validation_due: drop the validation of iteration `step` too, likewise.
    """
    if not path.exists():
        return

    def again(row: dict[str, Any]) -> bool:
        return row["step"] == step and (validation_due if "validation" in row else losses_due)

    kept = [line for line, row in metric_rows(path) if row["step"] <= step and not again(row)]
    with atomic(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
