"""The rows that are measured and not trained: bicubic, each teacher, their mean, the images of fusion networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mtkd import build
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.bench.cells import weights_path
from mtkd.bench.jobs import Job, Plan, options_of
from mtkd.bench.mistakes import BICUBIC, MEAN
from mtkd.bench.scores import test_options, write_scores
from mtkd.contracts import MtkdError
from mtkd.data.kept import learn_sets
from mtkd.inference.baselines import Bicubic, Memoized
from mtkd.inference.evaluate import Evaluation, build_metrics, evaluate
from mtkd.inference.results import describe
from mtkd.runtime.device import choose_device, move
from mtkd.runtime.memory import available_memory
from mtkd.runtime.progress import Log


def measure_teachers(plan: Plan, job: Job, log: Log) -> None:
    """Measure bicubic on every test set, and the teachers, their mean and the fused images on `test.teacher_sets`.

    A teacher that has no answers for a set has no number there.
    """
    grid = plan.grid
    test = test_options(grid, job.scale)
    metrics = build_metrics(test.val.metrics)
    device = choose_device(test.num_gpu)
    found: dict[str, tuple[list[Evaluation], dict[str, Any]]] = {}

    def measure(name: str, net: nn.Module, dataset: str, images: Any, facts: Mapping[str, Any]) -> None:
        move(net, device, torch.preserve_format)
        result = evaluate(net.eval(), images, metrics, dataset=dataset, device=device)
        found.setdefault(name, ([], dict(facts)))[0].append(result)
        log(f"{name} on {dataset}: {', '.join(f'{key} {value:.4f}' for key, value in result.means().items())}")

    for key, section in test.datasets.evaluation.items():
        dataset, key = section.name or key, key.removeprefix("val_")
        images = build.build_image_set(section, job.scale, phase="test")
        measure(BICUBIC, Bicubic(job.scale), dataset, images, {"kind": "baseline"})
        if dataset not in (grid.test.teacher_sets or [dataset]):
            continue
        bare = teachers_of(plan, job.scale, key, images, log)
        complete = len(bare) == len(grid.teachers)
        room = available_memory() // 8 // max(len(bare), 1)
        members: dict[str, nn.Module] = {name: Memoized(net, room=room) for name, net in bare.items()}
        for name, net in bare.items():
            measure(name, members[name], dataset, images, {"kind": "teacher", **_cost(name, net)})
        if complete and len(members) > 1:
            cost = _cost(MEAN, FusedTeacher(Ensemble(bare), MeanFusion(len(bare))))
            mean = FusedTeacher(Ensemble(members), MeanFusion(len(members)))
            measure(MEAN, mean, dataset, images, {"kind": "ensemble", **cost})
        for run in (plan[need] for need in job.needs):
            assert run.cell is not None
            names = list(run.cell.options["teachers"])
            if not bare.keys() >= set(names):
                continue
            title = grid.title_of("runs", run.name.rpartition("_x")[0])
            fusion = fusion_of(plan, run)
            cost = _cost(title, FusedTeacher(Ensemble({name: bare[name] for name in names}), fusion))
            fused = FusedTeacher(Ensemble({name: members[name] for name in names}), fusion)
            measure(title, fused, dataset, images, {"kind": "ensemble", **cost})
    write_scores(plan, job, found, device)


def teachers_of(plan: Plan, scale: int, key: str, images: Any, log: Log) -> dict[str, nn.Module]:
    """The grid's teachers for the `images` of the test set `key`, without those that have no answers for it."""
    options = test_options(plan.grid, scale, sets=(key,), teachers=plan.grid.teachers)
    names = (key, *build.names_of_set(options, f"val_{key}"))
    found: dict[str, nn.Module] = {}
    for name, net in build.build_teachers(options).items():
        try:
            learn_sets(net, {names: images})
        except MtkdError as error:
            log(f"{name} is not measured on {names[-1]}: {error}")
            continue
        found[name] = net
    return found


def fusion_of(plan: Plan, run: Job) -> nn.Module:
    """The trained fusion network of a run."""
    options = options_of(run)
    net = build.build_network(options.network_g, options.scale)
    build.load_weights(net, str(weights_path(plan.out, run.name)))
    return net


def _cost(name: str, net: nn.Module) -> dict[str, Any]:
    subject = describe(name, net)
    return {"parameters": subject.parameters or None, "gmacs": subject.gmacs}
