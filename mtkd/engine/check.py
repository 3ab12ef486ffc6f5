"""`mtkd check --data`: everything about files that a run would trip over, found without starting one."""

from __future__ import annotations

from mtkd.config import ItemSetOptions, Options, Problem, check_paths
from mtkd.contracts import MtkdError
from mtkd.data.paired import PairedImages
from mtkd.engine.build import open_items


def check_data(options: Options) -> list[Problem]:
    """Missing files and folders, and for data sets that are there unpaired, unreadable and wrongly sized images.

    Only image headers are read; of a data set from outside, the first item. A `zoo:` name is not looked up.
    """
    problems = check_paths(options)
    missing = {problem.key.rpartition(".")[0] for problem in problems}
    for key, given in {"train": options.datasets.train, **options.datasets.evaluation}.items():
        where = f"datasets.{key}"
        if given is None or where in missing:
            continue
        try:
            if isinstance(given, ItemSetOptions):
                open_items(given, options.scale, phase=key.split("_")[0])
            else:
                PairedImages.of_section(given.model_dump(), scale=options.scale)
        except MtkdError as error:
            problems.append(Problem(options.file, None, where, str(error)))
    return problems
