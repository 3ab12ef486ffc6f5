"""`mtkd test -opt FILE`: the network of an option file on its test sets.

`compare` measures networks that are named without an option file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtkd import build
from mtkd.build import build_image_set
from mtkd.config import Options, TileOptions, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.data.kept import learn_sets
from mtkd.inference.evaluate import (
    Evaluation,
    ImageSet,
    MetricFunction,
    build_metrics,
    compile_for_images,
    evaluate,
    save_to,
    val_predict,
)
from mtkd.inference.report import PAGE, Save, Shots, report_of, write_beside
from mtkd.inference.results import describe, print_table, results_folder, write
from mtkd.inference.tiling import check_tiles
from mtkd.runtime.device import autocast, choose_device, move, set_backends
from mtkd.runtime.progress import tracked


def run_test(
    options: Options,
    *,
    device: str | torch.device | None = None,
    command: str | None = None,
    page: bool = False,
) -> list[Evaluation]:
    """Measure `network_g` on every test set of `options`, print the table, write `results/NAME`.

    The folder is made, and a file written into it for trial, before anything is measured. For `model_type: MTKDFusion`
    the network is the fusion network behind its teachers.

    Args:
        page: write `report.html` too, with a few pictures.

    Raises:
        MtkdError: test sets or weights are missing or unusable; or the results cannot be written, after the table is
            printed.
    """
    if not options.val.metrics:
        raise MtkdError(
            "val.metrics is missing, so nothing can be measured. Give, for example, `val: {metrics: {psnr: "
            "{type: calculate_psnr, crop_border: 4}}}`. To enlarge images without gt: `mtkd upscale IN OUT -opt FILE`."
        )
    if not options.datasets.evaluation:
        raise MtkdError("There is no test set. Give one: `datasets.test_1`.")
    images = {
        given.name or key: build_image_set(given, options.scale, phase="test")
        for key, given in options.datasets.evaluation.items()
    }
    set_backends(tf32=options.tf32, deterministic=options.deterministic, sizes_vary=True)
    net = build.output_network(options)
    sets = zip(options.datasets.evaluation, images.values(), strict=True)
    learn_sets(net, {build.names_of_set(options, key): image_set for key, image_set in sets}, flat=True)
    subject = describe(options.name, net, weights=options.path.pretrain_network_g)
    device = torch.device(device) if device else choose_device(options.num_gpu)
    move(net, device, torch.channels_last if options.channels_last else torch.preserve_format)
    if options.val.compile:
        compile_for_images(net, device, partial(autocast, options.precision, device), print)
    metrics = build_metrics(options.val.metrics)
    shots = Shots(images) if page else None
    with results_folder(Path(options.path.results_root) / options.name) as folder:
        rows = [
            _measure(options, name, image_set, net, metrics, device, folder, shots)
            for name, image_set in images.items()
        ]
    named = [(options.name, row) for row in rows]
    facts = {**subject.facts(), "metrics": build.plain(dict(options.val.metrics)), "command": command}
    # Print before writing: a full disk must not lose the numbers.
    print_table([subject], named, scale=options.scale)
    write(folder, named, facts)
    if shots is not None:
        write_beside(
            folder / PAGE,
            lambda: report_of(
                named,
                [subject],
                title=f"{options.name} x{options.scale}",
                scale=options.scale,
                metrics=options.val.metrics,
                asked=[subject.name],
                pictures=shots.pictures(options.scale, [subject.name]),
                files={"option file, written out": resolved_yaml(options)},
                facts={"weights": subject.weights, "precision": options.precision, "command": command},
            ),
        )
    return rows


def in_tiles(options: Options, tile_size: int, tile_pad: int) -> Options:
    """`options` with this `val.tile`.

    Raises:
        MtkdError: the sizes are not valid.
    """
    check_tiles(tile_size, tile_pad)
    tile = TileOptions(tile_size=tile_size, tile_pad=tile_pad)
    return options.model_copy(update={"val": options.val.model_copy(update={"tile": tile})})


def _measure(
    options: Options,
    name: str,
    images: ImageSet,
    net: nn.Module,
    metrics: Mapping[str, MetricFunction],
    device: torch.device,
    folder: Path,
    shots: Shots | None,
) -> Evaluation:
    keep = None if shots is None else shots.keeper(name, options.name)
    saves = [] if keep is None else [keep]
    if options.val.save_img:
        saves.append(save_to(folder / "visualization" / name, options.val.suffix or options.name))
    return evaluate(
        val_predict(net, options),
        images,
        metrics,
        dataset=name,
        device=device,
        autocast=partial(autocast, options.precision, device),
        save=partial(_save, saves) if saves else None,
        progress=lambda steps: tracked(steps, name),
    )


def _save(saves: Sequence[Save], name: str, image: Any) -> None:
    for save in saves:
        save(name, image)
