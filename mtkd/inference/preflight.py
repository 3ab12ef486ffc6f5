"""Trials of networks, metrics and images before a run.

Training, `mtkd check --data` and `mtkd test` share these functions, so that all find the same problems. None writes a
file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd import build, catalog, zoo
from mtkd.config import FusionOptions, Options, Problem, TeacherOptions, TrainSetOptions
from mtkd.contracts import MtkdError, Task
from mtkd.data.foreign import ForeignImages
from mtkd.data.kept import answering_anything
from mtkd.data.paired import PairedImages
from mtkd.inference.evaluate import MetricFunction, build_metrics
from mtkd.methods.base import Method
from mtkd.runtime.background import prefetch
from mtkd.runtime.modes import evaluating
from mtkd.runtime.pixels import to_tensor

ImageSets = Mapping[str, PairedImages | ForeignImages]

_SIDE = 48
"""Side of the lq image that networks are tried on where no crop size is given: a multiple of most window sizes."""
_SHOWN = 20
_TRIED_SIDE = 512
"""Pixels of an image that metrics are tried on: more than any needs, and a scan of 180 megapixels would take 14 GB."""


def try_networks(options: Options) -> list[Problem]:
    """A problem where a network cannot be built, its weights cannot be loaded, or it makes no image `scale` times as
    large of an image, which has 3 channels, or 1 with `color: y`.

    Weights that are missing are not a problem here (see `check_paths`); of a `zoo:` name that was not fetched yet only
    the network is built. Memory and time are those of one small image through every network.
    """
    problems: list[Problem] = []

    def tried(key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:  # noqa: BLE001  a class from outside may raise anything
            problems.append(options.problem(key, _reason(error)))
        return None

    networks = {name: teacher for name, teacher in options.teachers.items() if isinstance(teacher, TeacherOptions)}
    sections = {("teachers", name): teacher for name, teacher in networks.items()}
    if isinstance(options.fusion, FusionOptions):
        sections["fusion",] = options.fusion  # pyright: ignore[reportArgumentType]
    for key, section in sections.items():
        scale = section.scale or options.scale if isinstance(section, TeacherOptions) else None
        if section.network is not None:
            network = section.network
            tried((*key, "network"), lambda: build.build_network(network, scale))  # noqa: B023  called at once
    student = None if options.network_g.is_none else tried(("network_g",), lambda: _student(options))
    if problems:
        return problems
    cls = catalog.get("method", options.model_type)
    if student is not None and cls.predictor is Method.predictor:
        tried(("network_g",), lambda: try_output(options, student, options.network_g.type))
    stored = options.is_train and options.target_store is not None
    names = list(options.teachers)
    taught = any(cls.needs(options.method, names, fusion=options.fusion is not None, stored=stored))
    inside = [options.method, *(term.args for term in options.train.terms.values())] if options.train else []
    if problems or (taught and not all(_fetched(section.pretrain) for section in sections.values())):
        return problems
    teachers = tried(("teachers",), lambda: build.build_teachers(options, stored=stored)) if taught else {}
    for name, teacher in (teachers or {}).items():
        tried(("teachers", name), lambda: try_teacher(options, teacher, name))  # noqa: B023
    if problems or student is None or not _fetched(inside):
        return problems
    # num_samples only sizes what a method keeps of the images (CRD's queue). Counting them would mean opening them.
    task = Task(options.scale, num_samples=1, total_steps=options.train.total_iter if options.train else 1)
    method = tried(("model_type",), lambda: build.build_method(options, student, teachers, task))
    if method is not None and cls.predictor is not Method.predictor:
        predictor = method.predictor(student)
        tried(("network_g",), lambda: try_output(options, predictor, options.network_g.type))
    return problems


def try_output(options: Options, net: nn.Module, what: str) -> None:
    """`try_network` on an image of a training crop's size."""
    train = options.datasets.train
    side = train.gt_size // options.scale if isinstance(train, TrainSetOptions) else _SIDE
    try_network(net, what, scale=options.scale, side=side, channels=options.channels)


def try_teacher(options: Options, net: nn.Module, name: str) -> None:
    """`try_output` of a teacher; with `color: y` the error says what to do with teachers of RGB."""
    try:
        try_output(options, net, f"The teacher {name}")
    except MtkdError as error:
        if options.color == "rgb" or getattr(net, "image_channels", 3) == 1:
            raise
        if options.is_train:
            remedy = (
                "keep its images: write `target_store: FILE`, and `mtkd teach -opt` this file runs it in RGB; the "
                "student gets Y of what it stored."
            )
        else:
            remedy = "measure it in a file without `color`, where `test_y_channel: true` measures its Y."
        raise MtkdError(
            f"The teacher {name} takes RGB, and with `color: y` networks get Y alone, one channel. Take a teacher of "
            f"Y, or {remedy}"
        ) from error


def try_network(net: nn.Module, what: str, *, scale: int, side: int = _SIDE, channels: int = 3) -> None:
    """Run `net` (lq -> sr, float32, on any device) on one image of `side` pixels a side; nothing of it changes.
    Teachers inside that are kept answers answer it with black.

    Raises:
        MtkdError: it cannot take a (1, channels, h, w) image, or makes something else than (1, channels, h * scale,
            w * scale) of it.
    """
    rule = f"{_RULES[channels == 1]}{_channels(net, channels)}"
    device = next((value.device for value in net.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(net), answering_anything(net):
            sr = net(torch.rand(1, channels, side, side, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise MtkdError(
            f"{what} cannot run on an image of {channels} channel{'s' if channels > 1 else ''}, {side}x{side} pixels: "
            f"{_reason(error)}. {rule[0].upper()}{rule[1:]}."
        ) from error
    wanted = (1, channels, side * scale, side * scale)
    if not isinstance(sr, Tensor) or tuple(sr.shape) != wanted:
        found = tuple(sr.shape) if isinstance(sr, Tensor) else type(sr).__name__
        raise MtkdError(
            f"{what} makes {found} of an image of {(1, channels, side, side)}, and at scale {scale} it must be "
            f"{wanted}: {rule}."
        )


def try_images(options: Options, sets: ImageSets | None = None) -> list[Problem]:
    """A problem for each validation or test image that cannot be decoded, or decodes to another size than its header
    has.

    Args:
        sets: the opened data sets by their keys; opened here when None, and a set that cannot be is a problem too.
    """
    problems: list[Problem] = []
    for key, images in (_opened(options, problems) if sets is None else sets).items():
        broken: list[str] = []

        def read(index: int, images: PairedImages | ForeignImages = images) -> str | None:
            try:
                images[index]
            except (MtkdError, OSError, MemoryError) as error:
                return str(error) or type(error).__name__
            return None

        indices = range(len(images))
        if isinstance(images, PairedImages):
            with closing(prefetch(read, indices)) as results:
                broken += filter(None, results)
        else:
            broken += filter(None, map(read, indices))
        for text in broken[:_SHOWN]:
            problems.append(options.problem(("datasets", key), text))
        if len(broken) > _SHOWN:
            problems.append(options.problem(("datasets", key), f"and {len(broken) - _SHOWN} more images."))
    return problems


def try_metrics(
    options: Options, sets: ImageSets | None = None, *, device: torch.device | str = "cpu"
) -> list[Problem]:
    """A problem for each metric of `val.metrics` that cannot be built, lacks its weights, or cannot measure the
    smallest images of the sets.

    Without any validation or test set metrics are not used, and not tried.

    Args:
        sets: as in `try_images`, whose problems are not repeated here.
    """
    problems: list[Problem] = []
    opened = _opened(options, []) if sets is None else sets
    smallest = smallest_images({f"datasets.{key}": images for key, images in opened.items()}, device)
    for metric, given in options.val.metrics.items() if smallest else ():
        key = ("val", "metrics", metric)
        try:
            (function,) = build_metrics({metric: given}).values()
        except Exception as error:  # noqa: BLE001  a metric from outside may raise anything
            problems.append(options.problem(key, _reason(error)))
            continue
        if (why := refusal(function, smallest)) is not None:
            problems.append(options.problem(key, why.replace(f"val.metrics.{metric}: ", "")))
    return problems


def smallest_images(sets: ImageSets, device: torch.device | str) -> list[tuple[str, str, Tensor]]:
    """(set, image, gt) of the lowest and of the narrowest image of each set, `_TRIED_SIDE` pixels of it at most each
    way; what cannot be decoded is left out.
    """
    return [(key, name, gt) for key, images in sets.items() for name, gt in _smallest(images, device)]


def refusal(metric: MetricFunction, images: list[tuple[str, str, Tensor]]) -> str | None:
    """Why `metric` cannot measure one of `images`; None where it can. Metrics have a smallest size (SSIM 11, LPIPS 31,
    NIQE 96, MS-SSIM 161 pixels).
    """
    for dataset, name, gt in images:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                metric((gt + 0.1 * torch.rand_like(gt)).clamp(0, 1), gt).reshape(())
        except Exception as error:  # noqa: BLE001  a metric from outside may raise anything
            height, width = gt.shape[-2:]
            return f"on {dataset}, image {name} ({height}x{width}, height x width): {_reason(error)}"
    return None


def raise_if_any(problems: list[Problem]) -> None:
    """Raise one MtkdError that lists `problems`; nothing happens when there are none."""
    if len(problems) == 1:
        raise MtkdError(f"{problems[0].key}: {problems[0].message}")
    if problems:
        lines = [f"  {problem.key}: {problem.message}" for problem in problems]
        raise MtkdError("\n".join([f"{len(problems)} problems, found before the first iteration:", *lines]))


def _student(options: Options) -> nn.Module:
    net = build.build_network(options.network_g, options.scale)
    source = options.path.pretrain_network_g
    if source and _fetched(source):
        build.load_weights(net, source, key=options.path.param_key_g, strict=options.path.strict_load_g)
    return net


def _fetched(value: Any) -> bool:
    """Whether every `zoo:NAME` in `value` is on the disk; for a plain text, whether the file is."""
    if isinstance(value, str):
        path = zoo.converted_path(zoo.entry(value)) if value.startswith("zoo:") else Path(value).expanduser()
        return path.is_file()
    if isinstance(value, Mapping):
        value = value.values()
    parts = value if isinstance(value, Iterable) else ()
    return all(_fetched(part) for part in parts if not isinstance(part, str) or part.startswith("zoo:"))


_RULES = (
    "images are RGB, so networks take and make 3 channels",
    "`color: y` gives Y alone, so networks take and make 1 channel",
)


def _channels(net: nn.Module, channels: int) -> str:
    taken = inspect.signature(type(net)).parameters
    names = " and ".join(name for name in ("num_in_ch", "num_out_ch", "in_chans") if name in taken)
    if not names or channels == 1:
        return f" (set {names} to 1)" if names else ""
    luma = "; a network of Y needs `color: y` in each data set" if getattr(net, "image_channels", 3) == 1 else ""
    return f" (leave {names} at 3{luma})"


def _opened(options: Options, problems: list[Problem]) -> ImageSets:
    sets: dict[str, PairedImages | ForeignImages] = {}
    for key, given in options.datasets.evaluation.items():
        try:
            sets[key] = build.build_image_set(given, options.scale, phase=key.split("_")[0])
        except MtkdError as error:
            problems.append(options.problem(("datasets", key), str(error)))
    return sets


def _smallest(images: PairedImages | ForeignImages, device: torch.device | str) -> list[tuple[str, Tensor]]:
    if isinstance(images, PairedImages):
        order, sizes = range(len(images)), images.sizes
        chosen = {min(order, key=lambda i: sizes[i][side]) for side in (0, 1)} if sizes else set()
    else:
        chosen = {0}
    found = []
    for index in sorted(chosen):
        try:
            image = images[index]
        except (MtkdError, OSError, MemoryError):
            continue
        found.append((image.name, to_tensor(image.gt[:_TRIED_SIDE, :_TRIED_SIDE], device)))
    return found


def _reason(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    if isinstance(error, MtkdError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0]}"
