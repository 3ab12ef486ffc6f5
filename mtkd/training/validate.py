"""Validation of a run: every set measured, the best values kept, the results logged."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from mtkd import build
from mtkd.inference.evaluate import compile_for_images, evaluate_sharded, save_to, val_predict
from mtkd.inference.results import write_results
from mtkd.training.best import judge, note_best, save_best
from mtkd.training.early_stop import count_validation
from mtkd.training.ema import Ema
from mtkd.training.run import Run


def validate(run: Run, done: int) -> None:
    """Measure every validation set, each rank a share of its images; all ranks get the results."""
    options, fabric = run.options, run.fabric
    # A network compiled for training patches would be compiled again for every size of image.
    stance = "force_eager" if options.compile and not options.val.compile else "default"
    student = _student_to_validate(run)
    net = run.method.predictor(student).eval()
    if options.val.compile and run.state.compile_validation:
        part = student if student in net.modules() else net
        run.state.compile_validation = compile_for_images(net, fabric.device, fabric.autocast, run.log.info, part=part)
    deciding = judge(options)
    entry, rows = "params" if run.ema is None else "params_ema", []
    for name, images in run.val_sets.items():
        save = partial(_save_visualization, run, name, done) if options.val.save_img else None
        with torch.compiler.set_stance(stance):
            result = evaluate_sharded(
                val_predict(net, options.val, options.scale),
                images,
                run.metrics,
                dataset=name,
                device=fabric.device,
                autocast=fabric.autocast,
                save=save,
            )
        means = result.means()
        best = note_best(run, name, means, done)
        if deciding is not None and deciding[0] == name:
            last = means[deciding[1]]
            count_validation(run, last, done)
            run.log.score(deciding[1], best[deciding[1]]["val"], last)
        run.log.validation(step=done, dataset=name, label=run.label(name), entry=entry, values=means, best=best)
        rows.append((options.name, result))
    save_best(run, done)
    if run.log.active and run.metrics:
        # `mtkd compare` pairs images, which means in the log do not allow.
        facts = {"name": options.name, "scale": options.scale, "entry": entry, "iteration": done}
        write_results(run.folder.validation, rows, {**facts, "metrics": build.plain(dict(options.val.metrics))})
    fabric.barrier()


def _student_to_validate(run: Run) -> nn.Module:
    if run.ema is not None:
        return run.ema.net
    if not run.options.val.compile:
        return run.method.student
    # A copy: modules are compiled in place, and the student must not train in code compiled for images.
    if run.state.validation_copy is None:
        run.state.validation_copy = Ema(run.method.student, decay=0.0)
    run.state.validation_copy.update()
    return run.state.validation_copy.net


def _save_visualization(run: Run, key: str, done: int, image: str, sr: np.ndarray) -> None:
    # Images of different sets may share a name.
    folder = run.folder.visualization / (key if len(run.val_sets) > 1 else "")
    save_to(folder / image, str(done))(image, sr)
