"""`mtkd test -opt FILE`: the network and the teachers of an option file on its test sets.

`compare` measures networks that are named without an option file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mtkd import build
from mtkd.archs.ensemble import FusedTeacher
from mtkd.build import build_image_sets
from mtkd.config import Options, resolved_yaml
from mtkd.config.untested import why_untested
from mtkd.contracts import MtkdError
from mtkd.data.kept import kept_inside
from mtkd.inference.baselines import Memoized, bicubic_row
from mtkd.inference.compare import tile_options
from mtkd.inference.evaluate import Evaluation, compile_for_images, save_to
from mtkd.inference.image_sets import ImageSets
from mtkd.inference.measure import Setting, measure, place, prepared_metrics, with_costs
from mtkd.inference.named import Target, find_target, networks_of, unique
from mtkd.inference.report import PAGE, Shots, report_of, write_beside
from mtkd.inference.results import Subject, print_table, results_folder, write
from mtkd.runtime.device import choose_device, set_backends
from mtkd.runtime.progress import Log

LEAVE_OUT = "--without teachers"


def run_test(
    options: Options,
    *,
    bicubic: bool = False,
    teachers: bool = True,
    cost: bool = False,
    device: str | torch.device | None = None,
    command: str | None = None,
    page: bool = False,
    beside: Sequence[str] = (),
    log: Log = print,
) -> list[tuple[str, Evaluation]]:
    """Measure every network of `options` on every test set, print the table, write `results/NAME`; return (network's
    name, its result on a set).

    The networks are the teachers, their mean, their fused image where there is a fusion network, and `network_g` where
    the options give its weights, which has the name of the options. For `model_type: MTKDFusion` that is the fusion
    network behind its teachers. The folder is made, and a file written into it for trial, before anything is measured.

    Args:
        bicubic: measure MATLAB's bicubic enlargement too.
        teachers: measure them, where there are any.
        cost: measure latency and peak memory of each network too.
        page: write `report.html` too, with a few pictures.
        beside: more networks by name, as `mtkd test NETWORK` takes them; the page compares `network_g` with the first.

    Raises:
        MtkdError: test sets or weights are missing or unusable, a metric cannot be used, or nothing is left to measure;
            nothing is measured then. Or the results cannot be written, after the table is printed.
    """
    if (why := why_untested(options)) is not None:
        raise MtkdError(why)
    if not options.datasets.evaluation:
        raise MtkdError("There is no test set. Give one: `datasets.test_1`.")
    teachers = teachers and bool(options.teachers)
    has_own = options.path.pretrain_network_g is not None
    if not teachers and not has_own:
        raise MtkdError(
            "There is no network to measure: path.pretrain_network_g gives no weights, and the teachers are left out. "
            f"Give weights, or leave out `{LEAVE_OUT}`."
        )
    sets = build_image_sets(options, phase="test")
    images: ImageSets = {given.name or key: sets[key] for key, given in options.datasets.evaluation.items()}
    set_backends(tf32=options.tf32, deterministic=options.deterministic, sizes_vary=True)
    setting = Setting(
        scale=options.scale,
        metrics=options.val.metrics,
        device=torch.device(device) if device else choose_device(options.num_gpu),
        val=options.val,
        precision=options.precision,
        memory_format=torch.channels_last if options.channels_last else torch.preserve_format,
        channels=options.channels,
    )
    metrics = prepared_metrics(setting, images)
    advice = f" To measure network_g without its teachers: `{LEAVE_OUT}`." if has_own else ""
    more = networks_of([find_target(spec) for spec in beside], teachers=False)
    subjects = _subjects(options, more, teachers=teachers, bicubic=bicubic, advice=advice)
    own = subjects[-1] if has_own else None
    sets = zip(options.datasets.evaluation, images.values(), strict=True)
    known = {build.names_of_set(options, key): image_set for key, image_set in sets}
    place(subjects, setting, known, advice=advice)
    if own is not None and options.val.compile:
        _compile(own, setting, log)
    if teachers:
        log(_announcement(options, has_own=has_own))
    shots = Shots(images) if page else None
    with results_folder(Path(options.path.results_root) / options.name) as folder:
        saving = [partial(_saver, folder, options)] if options.val.save_img else []
        keepers = [*saving, *([shots.keeper] if shots else [])]
        rows = measure(subjects, images, metrics, setting, keepers=keepers, log=log)
    if cost:
        subjects = with_costs(subjects, setting, log=log)
    # Print before writing: a full disk must not lose the numbers.
    print_table(subjects, rows, scale=options.scale)
    about = subjects[-1].facts() if has_own else {"name": options.name}
    write(folder, rows, {**about, **setting.facts(subjects, images), "command": command})
    if shots is not None:
        asked = [subject.name for subject in subjects[len(subjects) - len(more) - has_own :]]
        _write_page(folder / PAGE, options, rows, subjects, asked, shots, command, setting.device, log)
    return rows


def _write_page(
    path: Path,
    options: Options,
    rows: Sequence[tuple[str, Evaluation]],
    subjects: Sequence[Subject],
    asked: Sequence[str],
    shots: Shots,
    command: str | None,
    device: torch.device,
    log: Log,
) -> None:
    weights = options.path.pretrain_network_g
    write_beside(
        path,
        lambda: report_of(
            rows,
            subjects,
            title=f"{options.name} x{options.scale}",
            scale=options.scale,
            metrics=options.val.metrics,
            asked=asked,
            pictures=shots.pictures(options.scale, asked),
            files={"option file, written out": resolved_yaml(options)},
            facts={"weights": weights, "precision": options.precision, "command": command},
            device=device,
        ),
        log,
    )


def in_tiles(options: Options, tile_size: int, tile_pad: int) -> Options:
    """`options` with this `val.tile`.

    Raises:
        MtkdError: the sizes are not valid.
    """
    tile = tile_options(tile_size, tile_pad)
    return options.model_copy(update={"val": options.val.model_copy(update={"tile": tile})})


def _subjects(
    options: Options, more: Sequence[Subject], *, teachers: bool, bicubic: bool, advice: str
) -> list[Subject]:
    """The rows of the table, `more` and then `network_g` last."""
    target = Target(options.name, options.name, options.scale, options=options)
    has_own = options.path.pretrain_network_g is not None
    networks = networks_of([target], teachers=teachers, advice=advice)
    # network_g first, so that it keeps its name.
    own, others = (networks[-1:], networks[:-1]) if has_own else ([], networks)
    named = unique([*own, *([bicubic_row(options.scale)] if bicubic else []), *others, *more])
    return [*named[len(own) :], *named[: len(own)]]


def _announcement(options: Options, *, has_own: bool) -> str:
    number = len(options.teachers)
    rows = f"{number} teachers, their mean" if number > 1 else "the teacher"
    if number > 1 and options.fusion not in (None, "mean"):
        rows += ", their fused image"
    if has_own:
        return f"Measured beside network_g: {rows}. They cost time; `{LEAVE_OUT}` leaves them out."
    unused = "" if options.network_g.is_none else "; path.pretrain_network_g gives no weights of network_g"
    return f"Measured: {rows}{unused}."


def _compile(own: Subject, setting: Setting, log: Log) -> None:
    """Compile `network_g` for images of all sizes; a fusion behind its teachers network by network, because what
    remembers their answers cannot be.
    """
    if not isinstance(own.net, FusedTeacher):
        compile_for_images(own.net, setting.device, setting.autocast, log)
        return
    for member in own.net.ensemble.members.values():
        net = member.net if isinstance(member, Memoized) else member
        if not kept_inside(net):
            compile_for_images(net, setting.device, setting.autocast, log)
    compile_for_images(own.net, setting.device, setting.autocast, log, part=own.net.fusion)


def _saver(folder: Path, options: Options, dataset: str, network: str) -> Callable[[str, np.ndarray], None]:
    """Takes the images of `network`: NAME_SUFFIX.png, those of the others with their network's name."""
    own = options.val.suffix or options.name
    suffix = own if network == options.name else re.sub(r"\W+", "_", network).strip("_")
    return save_to(folder / "visualization" / dataset, suffix)
