"""`mtkd test RUN | FILE | zoo:NAME ...`: trained networks side by side on test sets, without an option file.

A run folder holds the description of its network and metrics, a weights file of ours that of its network. All networks
of a table have one scale, and are measured on the same images by the same metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mtkd.config import TileOptions, ValOptions, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.inference import results
from mtkd.inference.baselines import bicubic_row
from mtkd.inference.evaluate import Evaluation
from mtkd.inference.image_sets import benchmark_sets, folder_sets
from mtkd.inference.luma import as_rgb
from mtkd.inference.measure import Setting, measure, place, prepared_metrics, with_costs
from mtkd.inference.named import Target, Which, check_once, find_target, networks_of, unique
from mtkd.inference.report import PAGE, Shots, report_of, write_beside
from mtkd.inference.tiling import check_tiles
from mtkd.runtime import given
from mtkd.runtime.device import named_device, set_backends, usual_device
from mtkd.runtime.progress import Log

Metrics = Mapping[str, Mapping[str, Any]]


def compare(
    targets: Sequence[str],
    *,
    data: Sequence[Path] = (),
    bicubic: bool = False,
    teachers: bool = False,
    cost: bool = False,
    tile_size: int | None = None,
    tile_pad: int = 32,
    device: str | torch.device | None = None,
    command: str | None = None,
    results_root: Path = Path("results"),
    page: bool = False,
    which: Which = "latest",
    log: Log = print,
) -> list[tuple[str, Evaluation]]:
    """Measure trained networks, print one table, write `results/NAME`; return (network's name, its result on a set).

    Every network runs in fp32, on whole images unless `tile_size` is given. NAME is that of the one network, or
    `comparison_xSCALE`.

    Args:
        targets: run folders, weights files that describe themselves, `zoo:NAME`.
        data: folders of gt images, each a set of the folder's name, with lq made by MATLAB's bicubic; or folders that
            hold `gt` (or `HR`) and may hold `lq` beside `gt`. Without any, the sets of `options/benchmark.yml` that are
            here.
        bicubic: measure MATLAB's bicubic enlargement too.
        teachers: measure the teachers that the runs declare too, the mean of several and their fused image.
        cost: measure latency and peak memory of each network too.
        tile_size: run in tiles of so many lq pixels.
        tile_pad: lq pixels of context around each tile.
        page: write `report.html` too, with a few pictures.
        which: weights of run folders, as `find_target` has them.

    Raises:
        MtkdError: something named is missing or cannot be measured, scales or metrics differ, or there are no images;
            nothing is measured then. Or an image cannot be measured; the means before it are logged.
    """
    val = ValOptions() if tile_size is None else ValOptions(tile=tile_options(tile_size, tile_pad))
    where = named_device(device) if device else usual_device()
    found = [find_target(target, which=which) for target in check_once(targets)]
    scale = _common_scale(found)
    if teachers and not any(target.options is not None and target.options.teachers for target in found):
        raise MtkdError(
            "--with teachers: none of the networks declares teachers. Name a run folder whose option file has "
            "`teachers:`."
        )
    images = folder_sets(data, scale) if data else benchmark_sets(scale, log)
    setting = Setting(scale=scale, metrics=_common_metrics(found, scale), device=where, val=val)
    metrics = prepared_metrics(setting, images)
    set_backends(sizes_vary=True)

    baselines = [bicubic_row(scale)] if bicubic else []
    # Networks of Y enlarge RGB images here, so that one table holds them beside others.
    networks = [_in_rgb(subject) for subject in networks_of(found, teachers=teachers)]
    subjects = unique([*baselines, *networks])
    place(subjects, setting, {(dataset,): image_set for dataset, image_set in images.items()})
    name = _folder_name(found, scale)
    shots = Shots(images) if page else None
    with results.results_folder(results_root / name) as folder:
        rows = measure(subjects, images, metrics, setting, keepers=[shots.keeper] if shots else [], log=log)
    if cost:
        subjects = with_costs(subjects, setting, log=log)
    results.print_table(subjects, rows, scale=scale)
    way = f"fp32, {_describe_tiles(val.tile)}"
    log(f"Metrics: {_describe(setting.metrics)}; {way}.")
    results.write(folder, rows, {"name": name, **setting.facts(subjects, images), "command": command})
    if shots is not None:
        asked = [subject.name for subject in subjects[-len(found) :]]
        about = {"metrics": _describe(setting.metrics), "run": way, "command": command}
        written = dict(zip(asked, found, strict=True))
        write_beside(
            folder / PAGE,
            lambda: report_of(
                rows,
                subjects,
                title=f"{asked[0]} x{scale}" if len(asked) == 1 else f"{len(asked)} networks side by side, x{scale}",
                scale=scale,
                metrics=setting.metrics,
                asked=asked,
                pictures=shots.pictures(scale, asked),
                files={key: resolved_yaml(one.options) for key, one in written.items() if one.options is not None},
                facts=about,
                device=where,
            ),
            log,
        )
    return rows


def tile_options(tile_size: int, tile_pad: int) -> TileOptions:
    """`val.tile` of these sizes.

    Raises:
        MtkdError: the sizes are not valid.
    """
    check_tiles(tile_size, tile_pad)
    return TileOptions(tile_size=tile_size, tile_pad=tile_pad)


def _common_scale(found: Sequence[Target]) -> int:
    scales = {target.scale for target in found}
    if len(scales) > 1:
        listed = ", ".join(f"{target.spec} x{target.scale}" for target in found)
        raise MtkdError(f"The scales differ: {listed}. One table has one scale; measure each by itself.")
    return scales.pop()


def _common_metrics(found: Sequence[Target], scale: int) -> Metrics:
    """What the runs measure in validation; else PSNR and SSIM on Y, without a border of `scale` pixels."""
    declared = [
        (target, _on_y(target.options.val.metrics) if target.options.color == "y" else target.options.val.metrics)
        for target in found
        if target.options and target.options.val.metrics
    ]
    if not declared:
        settings = {"crop_border": scale, "test_y_channel": True}
        return {name: {"type": f"calculate_{name}", **settings} for name in ("psnr", "ssim")}
    first, metrics = declared[0]
    for target, other in declared[1:]:
        if _bare(other) != _bare(metrics):
            raise MtkdError(
                f"One table has one set of metrics, and these runs declare different ones (val.metrics): {first.spec} "
                f"{_describe(metrics)}; {target.spec} {_describe(other)}. Measure each by itself, or name the weights "
                "files, models/net_g_latest.pth: files are measured by PSNR and SSIM on Y, crop_border = scale."
            )
    return metrics


def _in_rgb(subject: results.Subject) -> results.Subject:
    net = as_rgb(subject.net)
    return subject if net is subject.net else replace(subject, net=net, bare=subject.net)


def _on_y(metrics: Metrics) -> Metrics:
    """The metrics of a run with `color: y` for the same images in RGB."""
    own = ("calculate_psnr", "calculate_ssim")
    return {name: {**one, "test_y_channel": True} if one["type"] in own else dict(one) for name, one in metrics.items()}


def _bare(metrics: Metrics) -> dict[str, dict[str, Any]]:
    return {name: {key: value for key, value in one.items() if key != "better"} for name, one in metrics.items()}


def _describe(metrics: Metrics) -> str:
    described = []
    for name, settings in _bare(metrics).items():
        arguments = ", ".join(f"{key}: {value}" for key, value in settings.items() if key != "type")
        described.append(f"{name} = {settings['type']}({arguments})")
    return ", ".join(described)


def _describe_tiles(tile: TileOptions | None) -> str:
    return "whole images" if tile is None else f"tiles of {tile.tile_size} lq pixels with {tile.tile_pad} around them"


def _folder_name(found: Sequence[Target], scale: int) -> str:
    name = found[0].name.replace(" ", "_") if len(found) == 1 else f"comparison_x{scale}"
    try:
        given.check_name(name)
    except MtkdError:
        return f"test_x{scale}"
    return name
