"""Pictures of a report: the images where rows differ most, as bicubic, teachers and students answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mtkd import build
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.bench.cells import weights_path
from mtkd.bench.gather import group_name
from mtkd.bench.jobs import Job, Plan
from mtkd.bench.mistakes import MEAN
from mtkd.bench.scores import test_options
from mtkd.bench.teachers import fusion_of, teachers_of
from mtkd.contracts import MtkdError
from mtkd.data.paired import PairedImages
from mtkd.inference.baselines import Bicubic
from mtkd.inference.named import find_target
from mtkd.report.content import Picture, Report
from mtkd.report.pictures import cropped
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.runtime.progress import Log

Image = NDArray[np.uint8]
_MOST, _SIDE = 6, 192
"""Pictures of a page, and pixels of their sides."""


def pictures(plan: Plan, report: Report, *, most: int = _MOST, side: int = _SIDE, log: Log = print) -> list[Picture]:
    """At most `most` test images, each network run on them again: those of the grid's `pictures`, else those on which
    the rows of a group differ most, from all sets in turn.

    Of each student only the longest training is shown, of each row the first seed whose weights are here. On the CPU.

    Raises:
        MtkdError: no cell's weights are here, or an image is not.
    """
    grid, scale = plan.grid, report.scale
    chosen = [(dataset, name) for dataset, names in grid.pictures.items() for name in names]
    chosen = chosen or _most_different(report, most)
    test = test_options(grid, scale)
    sets = {section.name or key: (key, section) for key, section in test.datasets.evaluation.items()}
    students = list(_students(plan, report, log))
    found = []
    for dataset, name in chosen:
        key, section = sets[dataset]
        images = build.build_image_set(section, scale, phase="test")
        # By name: the folder may have gained images since it was measured.
        names = images.names if isinstance(images, PairedImages) else [pair.name for pair in images]
        if name not in names:
            raise MtkdError(f"pictures: {dataset} has no image {name}.")
        pair = images[list(names).index(name)]
        lq = to_tensor(pair.lq)
        answers = {(group, row): _image(net, lq) for group, row, net in students}
        if dataset in (grid.test.teacher_sets or [dataset]):
            nets = _measured_only(plan, scale, key.removeprefix("val_"), images)
            answers |= {("", row): _image(net, lq) for row, net in nets.items()}
        bicubic = _image(Bicubic(scale), lq)
        found.append(cropped(Picture(dataset=dataset, image=name, gt=pair.gt, bicubic=bicubic, answers=answers), side))
    return found


def _most_different(report: Report, most: int) -> list[tuple[str, str]]:
    """(data set, image), the sets in turn, by the spread of the rows' mean scores on an image within a group."""
    metric = next(iter(report.metrics))
    ranked: dict[str, list[str]] = {}
    for dataset, names in report.images.items():
        if dataset in report.validation:
            continue
        spread = np.zeros(len(names))
        for group in {row.group for row in report.rows if row.group}:
            own = [row.scores[dataset][metric].mean(0) for row in report.rows if row.group == group]
            if len(own) > 1:
                spread = np.fmax(spread, np.ptp(np.stack(own), axis=0))
        ranked[dataset] = [str(names[i]) for i in np.argsort(-spread, kind="stable").tolist()]
    turns = [(dataset, names[turn]) for turn in range(most) for dataset, names in ranked.items() if turn < len(names)]
    return turns[:most]


def _students(plan: Plan, report: Report, log: Log) -> Sequence[tuple[str, str, nn.Module]]:
    """(group, row, network) of every row of each student's longest training that is there."""
    groups = {row.group for row in report.rows if row.group}
    found, without = [], []
    for student, subject in plan.grid.subjects().items():
        lengths = [n for n in plan.grid.iterations if group_name(subject.title, report.scale, n) in groups]
        if not lengths:
            continue
        group = group_name(subject.title, report.scale, max(lengths))
        rows = {row.name: row.seeds for row in report.rows if row.group == group}
        for name in plan.grid.rows:
            title = plan.grid.title_of("rows", name)
            if title in rows:
                runs = [f"{name}_{student}_x{report.scale}_{max(lengths)}_s{seed}" for seed in rows[title]]
                if here := [run for run in runs if weights_path(plan.out, run).exists()]:
                    target = find_target(str(plan.out / "runs" / here[0]))
                    assert target.options is not None
                    found.append((group, title, build.output_network(target.options)))
                else:
                    without.append(f"{title} ({group})")
    if without and not found:
        raise MtkdError(f"{plan.out / 'runs'} holds scores alone, and no weights of cells.")
    if without:
        more = f" and {len(without) - 4} more" if len(without) > 4 else ""
        log(f"The page's pictures leave out {', '.join(without[:4])}{more}: no weights in {plan.out / 'runs'}.")
    return found


def _measured_only(plan: Plan, scale: int, key: str, images: Any) -> Mapping[str, nn.Module]:
    """The teachers, their mean and their fused images for a test set, by the names of their rows."""
    jobs: list[Job] = [job for job in plan.jobs if job.kind == "teachers" and job.scale == scale]
    if not jobs:
        return {}
    bare = teachers_of(plan, scale, key, images, lambda text: None)
    nets: dict[str, nn.Module] = dict(bare)
    if len(bare) == len(plan.grid.teachers) > 1:
        nets[MEAN] = FusedTeacher(Ensemble(bare), MeanFusion(len(bare)))
    for run in (plan[need] for need in jobs[0].needs):
        assert run.cell is not None
        if not weights_path(plan.out, run.name).exists():
            continue
        members = {name: bare[name] for name in run.cell.options["teachers"] if name in bare}
        if len(members) < len(run.cell.options["teachers"]):
            continue
        title = plan.grid.title_of("runs", run.name.rpartition("_x")[0])
        nets[title] = FusedTeacher(Ensemble(members), fusion_of(plan, run))
    return nets


@torch.no_grad()
def _image(net: nn.Module, lq: Any) -> Image:
    return to_image(net.eval()(lq).float())
