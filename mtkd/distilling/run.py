"""`mtkd distill`, step by step. Each step is judged by the files it leaves, so that the same command goes on."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mtkd import zoo
from mtkd.config import NetworkOptions, Options, PathOptions, load_options, make_options
from mtkd.contracts import MtkdError
from mtkd.data.images import write_bytes
from mtkd.distilling.option_file import RUN, option_text, with_length
from mtkd.distilling.plan import answering, device_of, length_of, look, write_plan
from mtkd.distilling.request import Request, request
from mtkd.distilling.work import Work
from mtkd.inference.report import PAGE
from mtkd.inference.run_test import run_test
from mtkd.runtime.files import atomic
from mtkd.runtime.progress import Log, clock
from mtkd.targets.make import teach
from mtkd.targets.store_check import size_text
from mtkd.training.loop import train

if TYPE_CHECKING:
    from mtkd.export import Exporter

STEPS = ("check", "split", "targets", "option file", "training", "export", "test")


@dataclass(frozen=True)
class Distilled:
    """What a distillation has made.

    Attributes:
        out: its folder.
        options: the option file, for `mtkd train -opt`.
        weights: the student, a safetensors file that says what it is.
        onnx: the same for other programs; None where the extra `onnx` is not installed.
        report: the page with scores and pictures.
        scores: row of the table ("bicubic", "teacher NAME", "student") -> metric -> mean over the validation part.
    """

    out: Path
    options: Path
    weights: Path
    onnx: Path | None
    report: Path
    scores: dict[str, dict[str, float]]

    @cached_property
    def network(self) -> nn.Module:
        """The student, lq (N, 3, h, w) in [0, 1] -> sr, in eval mode on the CPU."""
        return zoo.build(self.weights)


def distill(
    photos: Any,
    teachers: Sequence[Any] | Any,
    student: str = "tiny",
    scale: int = 4,
    minutes: float | None = None,
    out: Any = None,
    *,
    log: Log = print,
    **more: Any,
) -> Distilled:
    """Make an own student of own photographs, as `mtkd distill` does: see its help and docs/distill.md.

    Args:
        photos: a folder (sub-folders included), or one image.
        teachers: strong networks, or one: weights files, "zoo:NAME", folders of what they made of the photographs.
        student: a name of `mtkd list archs`.
        scale: of all networks.
        minutes: of training; 10 where neither it nor `iterations` is given.
        out: the folder to write; `distilled/PHOTOS_STUDENT_xSCALE` where none is given.
        log: what gets the lines of progress.
        more: `iterations`, `validation`, `unlabelled`, `from_scratch`, `whole`, `seed`, `device`, as the command.

    Raises:
        MtkdError: anything a user can mend.
        mtkd.training.loop.Stopped: a signal ended the training; the same call goes on.

    `mtkd.distill("photos", ["CRAFT_x4.pth"], minutes=10).network` is a student of the photographs.
    """
    listed = [teachers] if isinstance(teachers, str | Path) else list(teachers)
    asked = request(photos, listed, student=student, scale=scale, minutes=minutes, **more)
    return run(asked, Path(out) if out is not None else default_out(asked), log=log)


def default_out(asked: Request) -> Path:
    """distilled/PHOTOS_STUDENT_xSCALE."""
    photos = Path(asked.photos)
    name = photos.name if photos.is_dir() else photos.stem
    return Path("distilled") / f"{name.replace(' ', '_')}_{asked.student}_x{asked.scale}"


def run(asked: Request, out: Path, *, log: Log = print, command: str | None = None) -> Distilled:
    """Do what `asked` says in the folder `out`, or what is left of it.

    Raises:
        MtkdError: anything a user can mend.
        Stopped: a signal ended the training.
    """
    work, began = Work(out.absolute()), time.perf_counter()
    with work.claimed(asked):
        plan = work.plan()
        if plan is None:
            plan = _plan(asked, work, log)
        else:
            log(f"Going on in {out}: checked and split before.")
        options = _options(work, plan)
        with _step("targets", log, f"{', '.join(options.teachers)} over {_count(plan)} photographs, once"):
            teach(options, work.store, device=device_of(asked), progress=_indented(log))
        if not work.options.exists():
            _write_options(asked, work, plan, log)
        options = _options(work, plan)
        total = options.training.total_iter
        with _step("training", log, f"{total:,d} iterations of {options.name}; a stop loses nothing"):
            text = work.options.read_text(encoding="utf-8")
            train(options, auto_resume=True, option_text=text, command=command, page=True)
        with _step("export", log, "the network as it is deployed, for mtkd and for other programs"):
            _export(work, log)
        with _step("test", log, "bicubic, teachers, what it began as, and the student, on the validation part"):
            _test(asked, work, options, command, log)
        made = _made(work)
        log(_ending(made, out, time.perf_counter() - began))
    return made


def dry_run(asked: Request, out: Path, *, log: Log = print) -> None:
    """Check everything and say what `run` would do, and how long it would take; write nothing.

    Raises:
        MtkdError: as `run`, before it begins.
    """
    Work(out.absolute()).check(asked)
    with _step("check", log, "photographs, teachers, student, disk"):
        looked = look(asked, out.absolute(), log)
        if any(teacher.net is None for teacher in looked.teachers):
            # Names and sizes of kept answers are held against files, which are written elsewhere.
            with tempfile.TemporaryDirectory() as folder:
                write_plan(asked, looked, Path(folder), log, store=Path(folder, "targets"))
    parts = looked.parts
    log(f"  {len(parts.train)} photographs to train on, {len(parts.validation)} to measure on")
    for teacher in looked.teachers:
        log(f"  teacher {teacher.about}")
    log(f"  student {looked.student.about}")
    length = f"{asked.iterations:,d} iterations" if asked.iterations else f"{asked.minutes:g} minutes of training"
    log(
        f"  targets: about {clock(looked.seconds)}; then {length}, on {looked.device}; {size_text(parts.nbytes())} in "
        f"{out}. Nothing was written."
    )


def _plan(asked: Request, work: Work, log: Log) -> dict[str, Any]:
    with _step("check", log, "photographs, teachers, student, disk"):
        looked = look(asked, work.out, log)
        for teacher in looked.teachers:
            log(f"  teacher {teacher.about}")
        log(f"  student {looked.student.about}, on {looked.device}")
    with _step("split", log, "the files stay where they are"):
        plan = write_plan(asked, looked, work.out, log, root=work.out, store=work.store)
        parts = looked.parts
        log(
            f"  {len(parts.train)} photographs to train on, {len(parts.validation)} to measure on, crops of "
            f"{parts.crop}x{parts.crop}; {size_text(parts.nbytes())} of disk; targets in about {clock(looked.seconds)}"
        )
        plan = {"options": plan, "images": len(parts.train)}
        work.keep_plan(plan)
    return plan


def _count(plan: dict[str, Any]) -> int:
    return int(plan["images"])


def _options(work: Work, plan: dict[str, Any]) -> Options:
    """The options of the file, which is the user's own once it is written."""
    if work.options.exists():
        return load_options(work.options, kind="train")
    return make_options(plan["options"], file=str(work.options))


def _write_options(asked: Request, work: Work, plan: dict[str, Any], log: Log) -> None:
    with _step("option file", log, "yours from here on"):
        plain = with_length(plan["options"], length_of(asked, plan["options"], log))
        write_bytes(work.options, option_text(plain, asked.words(work.out)).encode())


def _test(asked: Request, work: Work, options: Options, command: str | None, log: Log) -> None:
    if work.measured is None:
        for folder in work.results.glob(f"{RUN}*"):
            if not (folder / "metrics.json").exists():
                shutil.rmtree(folder)  # of a start that was killed
        # What is measured is the file that is left, and not the weights that were trained.
        own = PathOptions(pretrain_network_g=str(work.network), results_root=str(work.results))
        described = zoo.describe(str(work.network))
        network = NetworkOptions(type=described.type, args=described.args)
        tested = options.model_copy(update={"train": None, "path": own, "name": RUN, "network_g": network})
        began = options.path.pretrain_network_g
        shown = answering(options)
        if len(shown) < len(options.teachers):
            log("  no rows of teachers: there are no answers of theirs to the validation part")
        run_test(
            tested,
            bicubic=True,
            teachers=len(shown) == len(options.teachers),
            device=device_of(asked),
            command=command,
            page=True,
            beside=[began] if began and began.startswith("zoo:") else [],
            log=_indented(log),
        )
    found = work.measured
    if found is not None and (found / PAGE).is_file():
        with atomic(work.page) as temporary:
            shutil.copyfile(found / PAGE, temporary)


def _export(work: Work, log: Log) -> None:
    from mtkd.export import Exporter  # here, because onnx takes a second to load

    if work.exported:
        log(f"  {work.network.name} is there already")
        return
    exporter = Exporter(zoo.build(work.weights))
    _for_others(exporter, work, log)
    # Last, because its presence means that all is exported.
    log(f"  {exporter.write(work.network, overwrite=True)}")


def _for_others(exporter: Exporter, work: Work, log: Log) -> None:
    try:
        log(f"  {exporter.write(work.onnx, overwrite=True)}")
    except MtkdError as error:
        # The network for mtkd needs no package, and it is what the next command takes.
        log(f"  no {work.onnx.name}: {error}")


def _made(work: Work) -> Distilled:
    results = work.measured
    rows = json.loads((results / "metrics.json").read_text(encoding="utf-8"))["results"] if results else []
    scores = {
        row["network"]: {key: float(value) for key, value in row.items() if key not in ("network", "dataset")}
        for row in rows
    }
    onnx = work.onnx if work.onnx.is_file() else None
    return Distilled(work.out, work.options, work.network, onnx, work.page, scores)


def _ending(made: Distilled, out: Path, seconds: float) -> str:
    lines = [f"Done in {clock(seconds)}. In {out}:", f"  {made.weights.name}: the network, for mtkd"]
    if made.onnx is not None:
        lines.append(f"  {made.onnx.name}: the network, for other programs")
    lines += [
        f"  {made.report.name}: scores and pictures of bicubic, teachers and student",
        f"  {made.options.name}: the option file, yours from here on",
        f"  {RUN}/: the run, with its curves in report.html and its checkpoints",
        f"Next: mtkd upscale photo.jpg out.png --weights {out / made.weights.name}",
    ]
    if better := _no_worse(made.scores):
        remedy = "keep that, give more or other photographs, or train longer (--minutes, another --out)"
        lines.insert(1, f"It is no better than {better} yet: {remedy}.")
    return "\n".join(lines)


def _no_worse(scores: dict[str, dict[str, float]]) -> str:
    """The rows that are no teacher's and have as good a PSNR as the student; empty where none has."""
    psnr = {name: values.get("psnr", 0.0) for name, values in scores.items() if "teacher" not in name}
    return " and ".join(name for name, value in psnr.items() if name != RUN and value >= psnr.get(RUN, value))


@contextmanager
def _step(name: str, log: Log, about: str) -> Iterator[None]:
    """Announce a step, and say how long it took."""
    number, began = STEPS.index(name) + 1, time.perf_counter()
    log(f"{number}/{len(STEPS)} {name}: {about}")
    yield
    log(f"{number}/{len(STEPS)} {name}: done in {clock(time.perf_counter() - began)}")


def _indented(log: Log) -> Callable[[str], None]:
    return lambda text: log(f"  {text}")
