"""From an option file to what it describes: networks with their weights, the method, the images."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mtkd import catalog, zoo
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.archs.shrunk import Shrunk
from mtkd.config import AnswersOptions, ItemSetOptions, ItemTrainSetOptions, NetworkOptions
from mtkd.contracts import MtkdError, Task
from mtkd.data.answers import TRAIN, Answers
from mtkd.data.foreign import ForeignImages, ForeignItems
from mtkd.data.kept import KeptAnswers, answers_to
from mtkd.data.paired import PairedImages, PairedLuma, raise_problems
from mtkd.data.store import ImageStore
from mtkd.data.training import TrainingSet, open_training_set
from mtkd.data.unlabelled import UnlabelledImages, images_of_section
from mtkd.methods.base import Method, MethodConfig
from mtkd.runtime.progress import Log, Progress

if TYPE_CHECKING:
    from mtkd.config import FusionOptions, Options, TeacherOptions, TrainSetOptions


def build_network(options: NetworkOptions, scale: int | None = None) -> nn.Module:
    """Network `options.type` of the catalog with its arguments, freshly initialised; `scale` where it has none.

    Raises:
        MtkdError: it does not take these arguments.
    """
    try:
        return catalog.make_network(options.type, options.args, scale=scale)
    except MtkdError:
        raise
    except Exception as error:  # a class from outside may raise anything
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise MtkdError(f"{options.type} cannot be built with {plain(options.args)}: {reason}") from error


def load_weights(net: nn.Module, source: str, *, key: str | None = "auto", strict: bool = True) -> dict[str, Any]:
    """Load `source` (a file or `zoo:NAME`) into `net`, set its `origin` (which weights these are), and return the facts
    stored with them.

    Args:
        key: entry of the file that holds the weights; "auto" takes `params_ema`, then `params`, then the usual others.
        strict: every key must match; `False` loads what fits and reports the rest.

    Raises:
        MtkdError: no such file, an unsafe or broken one, or one that holds another network.
    """
    path = zoo.resolve(source)
    checkpoint = zoo.read_checkpoint(path, key=key)
    zoo.load_into(net, checkpoint.state, strict=strict, source=str(path))
    net.origin = checkpoint.origin(source if source.startswith("zoo:") else path)  # pyright: ignore[reportArgumentType]
    return checkpoint.facts


def network_of(section: TeacherOptions | FusionOptions) -> NetworkOptions:
    """The network of a teacher or of the fusion, from the option file, or from its weights.

    Raises:
        MtkdError: the file leaves it to the weights, which are missing or do not describe a network.
    """
    if section.network is not None:
        return section.network
    found = zoo.describe(section.pretrain, key=section.param_key or "auto")
    return NetworkOptions(type=found.type, args=found.args)


def build_teachers(options: Options, *, stored: bool = False, imitated: bool = False) -> dict[str, nn.Module]:
    """The teachers a method sees, loaded: the declared ones, or one fused teacher when `fusion` is declared; several
    methods together may see both. Those that are kept answers know no images yet: `data.kept.learn_sets`.

    Args:
        stored: their images come from a target store, so that only what reads networks needs any.
        imitated: only those of the image that a target store keeps.

    Raises:
        MtkdError: weights are missing or foreign, or the fusion network was trained with other members or another
            order.
    """
    networks, fused = _needed(options, stored=stored, imitated=imitated)
    members = _members(options, [*networks, *fused])
    result = {name: members[name] for name in networks}
    if not fused:
        return result
    name, one = _fused(options, Ensemble({name: members[name] for name in fused}))
    if name in result:
        raise MtkdError(f"The teacher {name!r} has the name of the fused image of all. Give it another.")
    return {**result, name: one}


def build_ensemble(options: Options) -> tuple[dict[str, nn.Module], FusedTeacher | None]:
    """Every declared teacher, loaded, whatever the method reads of it, and the image that `fusion` makes; None where
    that makes none of two or more.

    Raises:
        MtkdError: as `build_teachers`.
    """
    members = _members(options, options.teachers)
    if options.fusion is None or len(members) < 2:
        return members, None
    _, names = _needed(options, stored=False, imitated=False)
    return members, _fused(options, Ensemble({name: members[name] for name in names}))[1] if names else None


def _members(options: Options, names: Collection[str]) -> dict[str, nn.Module]:
    members: dict[str, nn.Module] = {}
    for name, teacher in options.teachers.items():
        if name not in names:
            continue
        if isinstance(teacher, AnswersOptions):
            members[name] = KeptAnswers(name, teacher.images, options.scale)
            continue
        net = build_network(network_of(teacher), teacher.scale or options.scale)
        load_weights(net, teacher.pretrain, key=teacher.param_key or "auto")
        members[name] = net if teacher.scale is None else as_scale(net, options.scale)
    return members


def as_scale(net: nn.Module, scale: int) -> nn.Module:
    """`net`, or its image made smaller where it enlarges by more than `scale`.

    Raises:
        MtkdError: it enlarges by less.
    """
    return net if getattr(net, "scale", None) == scale else Shrunk(net, scale)


def _needed(options: Options, *, stored: bool, imitated: bool) -> tuple[list[str], list[str]]:
    """The teachers that `build_teachers` gives as they are, and those that it fuses."""
    cls, declared, fusion = (
        catalog.get("method", options.model_type),
        list(options.teachers),
        options.fusion is not None,
    )
    if not imitated:
        return cls.needs(options.method, declared, fusion=fusion, stored=stored)
    found = cls.imitated(options.method, declared)
    return ([], found) if fusion else (found, [])


def open_training_answers(
    options: Options, images: TrainingSet, *, imitated: bool = False, log: Log = print
) -> dict[str, ImageStore]:
    """Teacher -> its answers to the training images, of those that are kept answers and that `build_teachers` gives;
    folders are decoded once, into the cache folder.

    Args:
        imitated: those of the image that a target store keeps; else those that training needs.

    Raises:
        MtkdError: answers are missing, of another size or of other images; all of it is listed.
    """
    needed = {name for part in _needed(options, stored=bool(options.target_store), imitated=imitated) for name in part}
    kept = {name: one for name, one in options.teachers.items() if isinstance(one, AnswersOptions) and name in needed}
    if not kept:
        return {}
    found: dict[str, Answers] = {}
    problems: list[str] = []
    lq = images.lq.digest()
    for name, teacher in kept.items():
        try:
            found[name] = training_answers(options, teacher, images, lq=lq)
        except MtkdError as error:
            problems.append(f"teacher {name!r}, train: {error}")
    raise_problems("Kept answers of teachers cannot be used", problems)
    stores = {}
    for name, answers in found.items():
        with Progress(f"decoding the answers of {name}", log) as decoding:
            stores[name] = answers.decoded(image_cache(), progress=decoding)
    return stores


def training_answers(
    options: Options,
    teacher: AnswersOptions,
    images: TrainingSet | PairedImages | UnlabelledImages,
    *,
    lq: str | None = None,
) -> Answers:
    """The answers of one teacher to the training images, nothing decoded.

    Args:
        lq: digest of the lq images, which a store that says its own must have; None does not compare it.

    Raises:
        MtkdError: they are missing, or do not fit.
    """
    exact = _training_section(options).meta_info_file is None
    marks = {"scale": options.scale, "images": lq}
    return answers_to(teacher.images, (TRAIN,), images, flat=True, exact=exact, marks=marks)


def _fused(options: Options, ensemble: Ensemble) -> tuple[str, FusedTeacher]:
    assert options.fusion is not None
    if options.fusion == "mean":
        return "mean", FusedTeacher(ensemble, MeanFusion(len(ensemble.names)))
    fusion = build_network(network_of(options.fusion))
    facts = load_weights(fusion, options.fusion.pretrain, key=options.fusion.param_key or "auto")
    if "members" not in facts:
        raise MtkdError(
            f"{options.fusion.pretrain} does not list the teachers, in order, that it was trained for; a fusion "
            "checkpoint written by mtkd does. Train one with `model_type: MTKDFusion`."
        )
    ensemble.check_order(facts["members"])
    return "fused", FusedTeacher(ensemble, fusion)


def build_method(
    options: Options,
    student: nn.Module,
    teachers: dict[str, nn.Module],
    task: Task,
    *,
    teacher_precision: str | None = None,
) -> Method:
    """The method `options.model_type`, with the terms that the option file leaves active.

    In training, `zoo:NAME` anywhere in the options of the method and its terms becomes a file, fetched when it is not
    there (`vgg: zoo:vgg19`). In a test nothing is fetched, because there are no terms to use it.

    Args:
        teacher_precision: "fp32", "bf16" or "fp16" to run teachers under an autocast of their own; None for the
            student's.
    """
    cls = catalog.get("method", options.model_type)
    if options.train is None:
        return cls(student, teachers, task, MethodConfig(terms={}, options=options.method))
    terms = {name: zoo.resolve_inside(term.args) for name, term in options.train.terms.items()}
    own = zoo.resolve_inside(options.method)
    return cls(student, teachers, task, MethodConfig(terms, own, teacher_precision=teacher_precision))


def output_network(options: Options) -> nn.Module:
    """The lq -> sr network an option file describes, with its weights, in eval mode; its `origin` names them.

    Raises:
        MtkdError: the file names no weights, or they do not fit; random weights are never used silently.
    """
    if not options.path.pretrain_network_g:
        raise MtkdError(
            "path.pretrain_network_g is not given: name the weights of network_g, a file or `zoo:NAME`. Random weights "
            "are never used silently."
        )
    student = build_network(options.network_g, options.scale)
    facts = load_weights(
        student,
        options.path.pretrain_network_g,
        key=options.path.param_key_g,
        strict=options.path.strict_load_g,
    )
    cls = catalog.get("method", options.model_type)
    if cls.predictor is Method.predictor and cls.deployable is Method.deployable:
        # The student runs alone, without its teachers.
        return student.eval()
    task = Task(scale=options.scale, num_samples=1, total_steps=1)
    method = build_method(options, student, build_teachers(options), task)
    method.check_metadata(facts)
    net = method.predictor(student).eval()
    net.origin = student.origin
    return net


def open_training_images(options: Options, progress: Callable[[int, int], None] | None = None) -> TrainingSet:
    """The training images of `options`, decoded once into the cache folder (`MTKD_HOME`, or the platform's)."""
    section = _training_section(options).model_dump()
    with options.at("datasets", "train"):
        return open_training_set(section, scale=options.scale, cache_dir=image_cache(), progress=progress)


def image_cache() -> Path:
    """The folder of decoded images, in `MTKD_HOME` or the platform's place."""
    return zoo.home().parent / "datasets"


def training_files(options: Options) -> PairedImages | UnlabelledImages:
    """The training images where they lie, nothing decoded."""
    return images_of_section(_training_section(options).model_dump(), scale=options.scale)


def _training_section(options: Options) -> TrainSetOptions:
    train_set = options.train_set
    if isinstance(train_set, ItemTrainSetOptions):
        raise MtkdError(
            f"datasets.train.type is {train_set.type}, which makes its own crops. Targets need the whole images of a "
            "PairedImageDataset."
        )
    return train_set


def open_items(given: ItemSetOptions, scale: int, *, phase: str, seed: int = 0) -> ForeignItems:
    """The data set of a class from outside that a section of the option file describes."""
    return ForeignItems(catalog.get("dataset", given.type), given.model_dump(), phase=phase, scale=scale, seed=seed)


def build_image_set(given: Any, scale: int, *, phase: str = "val") -> PairedImages | ForeignImages:
    """Validation or test images from their section of the option file."""
    if isinstance(given, ItemSetOptions):
        return ForeignImages(open_items(given, scale, phase=phase))
    images = PairedLuma if given.color == "y" else PairedImages
    return images.of_section(given.model_dump(), scale=scale)


def build_image_sets(options: Options, *, phase: str = "val") -> dict[str, PairedImages | ForeignImages]:
    """Key -> images of every validation or test set of `options`."""
    sets = {}
    for key, given in options.datasets.evaluation.items():
        with options.at("datasets", key):
            sets[key] = build_image_set(given, options.scale, phase=phase)
    return sets


def names_of_set(options: Options, key: str) -> tuple[str, ...]:
    """What the evaluation set `key` is called where teachers keep answers by data set: its key, and its `name`."""
    return key, options.datasets.evaluation[key].name


def network_facts(options: Options) -> dict[str, Any]:
    """The facts stored beside the student's weights, by which the file describes itself."""
    return {
        "arch": {"type": options.network_g.type, "args": plain(options.network_g.args)},
        "scale": options.scale,
        "name": options.name,
        "method": options.model_type,
    }


def plain(value: Any) -> Any:
    """`value` with tuples as lists, so that a checkpoint holds only what `weights_only` loading allows."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
