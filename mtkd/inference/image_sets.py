"""The images that `mtkd test` measures on without an option file: folders, or the sets of `options/benchmark.yml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtkd import build
from mtkd.config import EvalSetOptions, load_options
from mtkd.contracts import MtkdError
from mtkd.data.foreign import ForeignImages
from mtkd.data.paired import PairedImages
from mtkd.runtime import shipped
from mtkd.runtime.progress import Log

ImageSets = dict[str, PairedImages | ForeignImages]
BENCHMARK = Path("options/benchmark.yml")  # the user's own in the working folder, else the one that comes with mtkd
"""The option file whose `datasets` are measured on where none are named; at every scale."""
_GT, _HR, _LQ = "gt", "HR", "lq"
"""Folders inside a folder of test images: gt, or HR as in datasets/README.md, and lq beside gt."""


def folder_sets(folders: Sequence[Path], scale: int) -> ImageSets:
    """A set of test images for each folder, with its name.

    A folder holds gt images, or `gt` (or `HR`) and perhaps `lq` beside `gt`; without lq it is made of gt.

    Raises:
        MtkdError: a folder is named twice, or its images cannot be used.
    """
    names = [folder.resolve().name for folder in folders]
    sets: ImageSets = {}
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            name = f"{folder.resolve().parent.name}/{name}"
        if name in sets:
            raise MtkdError(
                f"--data: two folders are called {name}, and the sets of a table need different names. Rename one."
            )
        gt = next((folder / inner for inner in (_GT, _HR) if (folder / inner).is_dir()), folder)
        lq = folder / _LQ if (folder / _LQ).is_dir() else None
        if lq is not None and gt != folder / _GT:
            raise MtkdError(f"{folder} holds `{_LQ}` without `{_GT}` beside it. Put the images to compare with there.")
        sets[name] = PairedImages(dataroot_gt=gt, dataroot_lq=lq, scale=scale)
    return sets


def benchmark_sets(scale: int, log: Log) -> ImageSets:
    """The sets of `options/benchmark.yml` that are here; `log` gets a line for each of the others.

    Raises:
        MtkdError: none of its sets is here.
    """
    ways = (
        "Give folders of gt images, `--data FOLDER ...`, or put the usual sets where datasets/README.md says "
        f"and run in the folder that holds `datasets`. Other sets: an {BENCHMARK} of yours."
    )
    file = BENCHMARK if BENCHMARK.is_file() else shipped.file(str(BENCHMARK))
    log(f"No --data is given: the test sets are those of {file}.")
    options = load_options(file, kind="test")
    sets: ImageSets = {}
    for key, section in options.datasets.evaluation.items():
        name = section.name or key
        if isinstance(section, EvalSetOptions) and not Path(section.dataroot_gt).is_dir():
            log(f"Left out, not found: {name} ({section.dataroot_gt}).")
        else:
            sets[name] = build.build_image_set(section, scale, phase="test")
    if not sets:
        raise MtkdError(f"No test images: none of the sets of {file} is here. {ways}")
    return sets
