"""Reads `method`, and checks the teachers against what the method needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from mtkd import catalog
from mtkd.config.problems import KeyPath, format_value, key_text
from mtkd.config.read.arguments import check_arguments
from mtkd.config.read.reader import Reader
from mtkd.config.schema import DatasetsOptions, TrainOptions
from mtkd.contracts import Asked, MtkdError


def read_method(reader: Reader, data: Any) -> dict[str, Any]:
    """The options of the method, checked by building its `Config` once."""
    given = reader.mapping(data, ("method",))
    if reader.method is None:
        return given
    if not reader.method.combines:
        return _read_one(reader, reader.model_type, reader.method, given, ("method",))
    result = {}
    for name, value in given.items():
        path = ("method", name)
        if (part := reader.method.combines.get(name)) is None:
            reader.unknown(path, list(reader.method.combines), f"not a method of {reader.model_type}")
            continue
        own = dict(reader.mapping(value, path))
        named = (
            {"teachers": _teachers_named(reader, own.pop("teachers"), (*path, "teachers"))} if "teachers" in own else {}
        )
        if named and part.teacher_use == "none":
            reader.problem((*path, "teachers"), f"has no effect: {name} uses no teacher.")
        result[name] = named | _read_one(reader, name, part, own, path)
    return result


def _teachers_named(reader: Reader, value: Any, path: KeyPath) -> list[str]:
    declared = list(reader.mapping(reader.data.get("teachers"), ("teachers",)))
    names = value if isinstance(value, list) else [value]
    for name in names:
        if name not in declared:
            known = ", ".join(declared) or "none"
            reader.problem(path, f"names {format_value(name)}, which is not under `teachers`: {known}.")
    if not names:
        reader.problem(path, "must name a teacher; without the key it is all of them.")
    return [str(name) for name in names]


def _read_one(reader: Reader, name: str, method: Any, given: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    before = len(reader.problems)
    config = method.Config
    result = check_arguments(reader, config, given, path, f"an option of {name}")
    if len(reader.problems) == before:
        try:
            config(**result)
        except (MtkdError, ValueError, TypeError) as error:
            reader.problem(path, str(error))
    return defaults_of(config) | result


def defaults_of(config: Any) -> dict[str, Any]:
    """What a `Config` takes where the file says nothing, so that resolved.yml and training states tell it."""
    if not is_dataclass(config):
        return {}
    made = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(config)
    }
    return {name: value for name, value in made.items() if value is not MISSING and value is not None}


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
        declared=names,
        terms={name: term.args for name, term in train.terms.items()},
        scale=reader.scale or 1,
        teachers=() if has_store else ("fused",) if fused else names,
        sources=tuple(key for key, there in has.items() if there),
        batch_size=datasets.train.batch_size_per_gpu if datasets.train is not None else None,
    )
    _check_reach(reader, method, train)
    for path, why in reader.method.refuses(asked):
        reader.problem(path, why)
    for path, why in reader.method.ignores(asked):
        reader.notices.append(f"{key_text(path)} {why}")


def _check_reach(reader: Reader, method: dict[str, Any], train: TrainOptions) -> None:
    """Report terms that leave a part of a new network as it began. Taps that a file chooses may be its last layers."""
    assert reader.method is not None
    acting = [name for name, term in train.terms.items() if any(weight for _, weight in term.weight)]
    chosen = [method, *(own for own in method.values() if isinstance(own, dict))]
    begun = reader.mapping(reader.data.get("path"), ("path",)).get("pretrain_network_g")
    if begun or any(own.get("student_taps") for own in chosen):
        return
    if acting and all(reader.method.terms[name].partial for name in acting):
        where = "up to its taps" if reader.method.teacher_use == "network" else "in part"
        without = (
            " Where there is no gt, the target_opt of a method that has it does it, also beside this one: `model_type: "
            "OutputKD + AT`."
        )
        reader.problem(
            ("train", f"{acting[0]}_opt"),
            f"trains {reader.model_type}'s network only {where}, and no term that acts compares its image with "
            "another: the other layers would stay as they began. Give one, such as pixel_opt; its loss_weight may be a "
            "schedule that begins at 0." + (without if reader.method.teacher_use == "network" else ""),
        )


def check_teachers(reader: Reader, method: dict[str, Any], *, has_store: bool) -> None:
    """Report teachers, fusion and stored targets that are missing, or that the method would not use."""
    if not reader.is_train:
        _check_tested(reader, has_store=has_store)
        return
    if reader.method is None:
        return
    parts = reader.method.combines or {reader.model_type: reader.method}
    names, number = reader.model_type, reader.num_teachers
    uses = {part.teacher_use for part in parts.values()}
    use = "image" if "image" in uses else "network" if "network" in uses else "none"
    has_fusion = reader.data.get("fusion") is not None
    has = {"teachers": number > 0, "fusion": has_fusion, "target_store": has_store}
    useless = {"none": tuple(has), "network": ("fusion", "target_store"), "image": ()}[use]
    reason = {"none": f"{names} uses no teacher", "network": f"{names} uses the teacher networks themselves"}
    for key in useless:
        if has[key]:
            reader.problem((key,), f"has no effect: {reason[use]}.")
    _check_answers(reader, method, parts)
    for name, part in parts.items():
        own = method.get(name, {}) if reader.method.combines else method
        named = own.get("teachers") if reader.method.combines else None
        _check_part(reader, name, part, own, number=len(named) if named else number, stored=has_store and not named)
    if has_fusion and use == "image" and number < 2:
        reader.problem(("fusion",), f"has no effect with {number or 'no'} teacher{'s' if number != 1 else ''}.")
    if reader.method.combines and not reader.problems:
        declared = list(reader.mapping(reader.data.get("teachers"), ("teachers",)))
        try:
            reader.method.needs(method, declared, fusion=has_fusion, stored=has_store)
        except MtkdError as error:
            reader.problem(("method",), str(error))


def _check_tested(reader: Reader, *, has_store: bool) -> None:
    """The same for a test file, whose teachers are measured whatever the method."""
    if has_store:
        reader.problem(("target_store",), "has no effect in a test file.")
    _check_whole_images(reader, _kept(reader))
    if reader.data.get("fusion") is not None and reader.num_teachers < 2:
        reader.ignore(("fusion",), "there is 1 teacher" if reader.num_teachers else "there are no teachers")
    if reader.data.get("network_g") is not None and reader.num_teachers and not _gives_weights(reader):
        reader.ignore(
            ("network_g",), "path.pretrain_network_g gives no weights, so that the teachers alone are measured"
        )


def _gives_weights(reader: Reader) -> bool:
    path = reader.data.get("path")
    return isinstance(path, dict) and path.get("pretrain_network_g") is not None


def _check_answers(reader: Reader, method: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Report teachers that are kept answers where networks are needed, or crops that nobody kept."""
    declared, kept = reader.mapping(reader.data.get("teachers"), ("teachers",)), _kept(reader)
    train = reader.sets.get("train")
    kind = train.get("type") if isinstance(train, dict) else None
    for name in kept:
        place = ("teachers", name, "images")
        if isinstance(kind, str) and kind not in catalog.DATASETS:
            reader.problem(place, f"answers whole images, and {kind} makes its own crops. Use a PairedImageDataset.")
        for key, part in parts.items():
            own = method.get(key, {}) if len(parts) > 1 else {}
            if part.teacher_use == "network" and not part.answers_suffice and name in own.get("teachers", declared):
                reader.problem(
                    place,
                    f"{key} reads more of a teacher than its images (features, or answers to other inputs). Give "
                    "`network` and `pretrain`, or use a method that imitates images, such as OutputKD or MTKD.",
                )
    if any(part.teacher_use == "network" and part.answers_suffice for part in parts.values()):
        _check_whole_images(reader, kept)


def _check_whole_images(reader: Reader, kept: Sequence[str]) -> None:
    """Report evaluation in parts or flipped, where teachers that are kept answers are evaluated."""
    val = reader.mapping(reader.data.get("val"), ("val",))
    for key in ("tile", "self_ensemble") if kept and len(reader.sets) > ("train" in reader.sets) else ():
        if val.get(key):
            reader.problem(
                ("val", key),
                f"not possible with teachers that are kept answers ({', '.join(kept)}): they are of whole images, as "
                "these are. Remove it.",
            )


def _kept(reader: Reader) -> list[str]:
    """The teachers that are kept answers."""
    declared = reader.mapping(reader.data.get("teachers"), ("teachers",))
    return [name for name, value in declared.items() if isinstance(value, dict) and value.get("images") is not None]


def _check_part(reader: Reader, name: str, part: Any, own: dict[str, Any], *, number: int, stored: bool) -> None:
    """Report that the method `part` lacks teachers, or has several where it imitates one image."""
    if part.teacher_use == "network" and not number:
        reader.problem(("teachers",), f"required, and missing: {name} needs at least one.")
    if part.teacher_use != "image":
        return
    if not number and not stored:
        message = f"required, and missing: {name} imitates a teacher's image (or give target_store)."
        reader.problem(("teachers",), message)
    has_fusion = reader.data.get("fusion") is not None
    served = stored and bool(reader.method.combines)
    options = {key: value for key, value in own.items() if key != "teachers"}
    if number > 1 and not has_fusion and not served and not part.takes_several_teachers(options):
        reader.problem(
            ("teachers",),
            f"{name} imitates one image, but there are {number} teachers. Fuse them: `fusion: mean`, "
            "or `fusion: {network: {type: DCTSwin}, pretrain: FILE}`.",
        )
