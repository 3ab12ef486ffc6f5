"""Test files that `mtkd test` cannot measure anything with: BasicSR's files without gt, for `mtkd upscale` alone."""

from __future__ import annotations

from mtkd.config.schema import Options


def why_untested(options: Options) -> str | None:
    """Why nothing can be measured by a test file, with what to do; None where something can."""
    lacking = options.sets_without_gt
    if options.is_train or (options.val.metrics and not lacking):
        return None
    if lacking:
        key, given = next(iter(lacking.items()))
        folder = given.args.get("dataroot_lq", "IN")
        return (
            f"datasets.{key} is a {given.type}, which has no gt, so nothing can be measured. Enlarge its images: `mtkd "
            f"upscale {folder} OUT -opt {options.file or 'FILE'}`."
        )
    return (
        "val.metrics is missing, so nothing can be measured. Give, for example, `val: {metrics: {psnr: {type: "
        "calculate_psnr, crop_border: 4}}}`. To enlarge images without gt: `mtkd upscale IN OUT -opt FILE`."
    )


def is_for_upscale(options: Options) -> bool:
    """The file is whole for `mtkd upscale`: all of its sets are images without gt, and no metric is asked for."""
    sets = options.datasets.evaluation
    return (
        not options.is_train
        and not options.val.metrics
        and bool(sets)
        and sets.keys() == options.sets_without_gt.keys()
    )
