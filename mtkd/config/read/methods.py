"""Reads `method`, and holds the teachers against what the method needs."""

from __future__ import annotations

from typing import Any

from mtkd.config.problems import key_text
from mtkd.config.read.arguments import check_arguments
from mtkd.config.read.reader import Reader
from mtkd.config.schema import DatasetsOptions, TrainOptions
from mtkd.contracts import Asked, MtkdError


def read_method(reader: Reader, data: Any) -> dict[str, Any]:
    """The options of the method, held against its `Config`, which is made once for trial."""
    given = reader.mapping(data, ("method",))
    if reader.method is None:
        return given
    before = len(reader.problems)
    config, path = reader.method.Config, ("method",)
    result = check_arguments(reader, config, given, path, f"an option of {reader.model_type}")
    if len(reader.problems) == before:
        try:
            config(**result)
        except (MtkdError, ValueError, TypeError) as error:
            reader.problem(path, str(error))
    return result


def check_effects(
    reader: Reader,
    method: dict[str, Any],
    train: TrainOptions | None,
    datasets: DatasetsOptions,
    *,
    has_store: bool,
) -> None:
    """Report what training would refuse, in its words, and note what would do nothing.

    What does nothing is a notice: an ablation over a `base` switches terms off and leaves the rest as it is, and files
    of runs that were made before have to be read.
    """
    if reader.method is None or train is None or reader.problems:
        return
    names = tuple(reader.mapping(reader.data.get("teachers"), ("teachers",)))
    fused = reader.data.get("fusion") is not None
    has = {"teachers": bool(names), "fusion": fused, "target_store": has_store}
    asked = Asked(
        options=reader.method.Config(**method),
        terms={name: term.args for name, term in train.terms.items()},
        scale=reader.scale or 1,
        teachers=() if has_store else ("fused",) if fused else names,
        sources=tuple(key for key, there in has.items() if there),
        batch_size=datasets.train.batch_size_per_gpu if datasets.train is not None else None,
    )
    for path, why in reader.method.refuses(asked):
        reader.problem(path, why)
    for path, why in reader.method.ignores(asked):
        reader.notices.append(f"{key_text(path)} {why}")


def check_teachers(reader: Reader, method: dict[str, Any], *, has_store: bool) -> None:
    """Report teachers, fusion and stored targets that are missing, or that the method would not use."""
    if reader.method is None:
        return
    name, use, number = reader.model_type, reader.method.teacher_use, reader.num_teachers
    has_fusion = reader.data.get("fusion") is not None
    has = {"teachers": number > 0, "fusion": has_fusion, "target_store": has_store}
    useless = {"none": tuple(has), "network": ("fusion", "target_store"), "image": ()}[use]
    reason = {"none": f"{name} uses no teacher", "network": f"{name} uses the teacher networks themselves"}
    for key in useless:
        if has[key]:
            reader.problem((key,), f"has no effect: {reason[use]}.")
    if not reader.is_train:
        if has_store and use == "image":
            reader.problem(("target_store",), "has no effect in a test file.")
        return
    if use == "network" and not number:
        reader.problem(("teachers",), f"required, and missing: {name} needs at least one.")
    if use != "image":
        return
    if not number and not has_store:
        message = f"required, and missing: {name} imitates a teacher's image (or give target_store)."
        reader.problem(("teachers",), message)
    if number > 1 and not has_fusion and not reader.method.takes_several_teachers(method):
        reader.problem(
            ("teachers",),
            f"{name} imitates one image, and there are {number} teachers; say how they become one: `fusion: mean`, "
            "or `fusion: {network: {type: DCTSwin}, pretrain: FILE}`.",
        )
    if has_fusion and number < 2:
        reader.problem(("fusion",), f"has no effect with {number or 'no'} teacher{'s' if number != 1 else ''}.")
