"""Run a network over image sets and measure it: the numbers of every table."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn

from mtkd import catalog, zoo
from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from mtkd.data.kept import answering_anything, kept_inside
from mtkd.data.paired import PairedImages
from mtkd.inference.tiling import self_ensemble, tiled
from mtkd.runtime.background import BackgroundCalls, prefetch, staged, to_host
from mtkd.runtime.compiling import compile_networks
from mtkd.runtime.given import errors_of
from mtkd.runtime.pixels import to_pixels, to_tensor
from mtkd.runtime.progress import Log

if TYPE_CHECKING:
    from mtkd.config import ValOptions

Predict = Callable[[Tensor], Tensor]
MetricFunction = Callable[[Tensor, Tensor], Tensor]


class ImageSet(Protocol):
    """What `evaluate` needs of a data set: `mtkd.data.paired.PairedImages` has it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Evaluation:
    """Result on one image set: one row per image, in the set's order.

    Attributes:
        dataset: the set's name.
        images: image names.
        values: metric -> one value per image.
    """

    dataset: str
    images: tuple[str, ...]
    values: dict[str, tuple[float, ...]]

    def means(self) -> dict[str, float]:
        """Metric -> mean over the images, what tables print."""
        return {name: float(np.mean(column)) for name, column in self.values.items()}


def build_metrics(options: Mapping[str, Mapping[str, Any]]) -> dict[str, MetricFunction]:
    """`val.metrics` of an option file -> name -> function of (sr, gt) giving one value per image.

    The key `better` gives the good direction and is not an argument of the metric. `zoo:NAME` as an argument
    becomes a file, fetched when it is not there (`weights: zoo:alexnet` of LPIPS).

    Raises:
        MtkdError: the package of a metric is missing, or its weights cannot be fetched.
    """
    metrics: dict[str, MetricFunction] = {}
    for name, given in options.items():
        arguments = {key: value for key, value in given.items() if key not in ("type", "better")}
        metric = catalog.get("metric", given["type"])
        if (package := getattr(metric, "package", None)) is not None:
            package.load()  # before its weights are fetched
        function = partial(metric, **zoo.resolve_inside(arguments))
        own = given["type"] in catalog.METRICS
        metrics[name] = function if own else partial(_from_outside, f"val.metrics.{name}: {given['type']}", function)
    return metrics


def _from_outside(what: str, metric: MetricFunction, sr: Tensor, gt: Tensor) -> Tensor:
    with errors_of(f"{what} failed on an image of {gt.shape[-2]}x{gt.shape[-1]} pixels (height x width)"):
        return metric(sr, gt)


def val_predict(net: nn.Module, val: ValOptions, scale: int) -> Predict:
    """`net` run as `val` sets it: in tiles, as an x8 self-ensemble, or plainly."""
    predict: Predict = net
    if (tile := val.tile) is not None:
        predict = partial(tiled, net, scale=scale, tile_size=tile.tile_size, tile_pad=tile.tile_pad)
    return partial(self_ensemble, predict) if val.self_ensemble else predict


def compile_for_images(
    net: nn.Module,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[Any]],
    log: Log,
    *,
    part: nn.Module | None = None,
) -> bool:
    """Compile `net` (lq -> sr, in eval mode, on `device`) in place for images of all sizes, once.

    A network that cannot be compiled stays as it was, and `log` gets the reason.

    Args:
        part: compile this module of `net` alone; it may outlive `net`.

    Returns:
        Whether it is compiled.
    """
    part = net if part is None else part
    if part._compiled_call_impl is not None:
        return True

    for teacher in kept_inside(part):
        teacher.stay_uncompiled()

    def trial() -> None:
        with torch.no_grad(), autocast(), answering_anything(net):
            net(to_tensor(np.zeros((48, 64, getattr(net, "image_channels", 3)), np.uint8), device))

    return compile_networks([part], trial, dynamic=True, log=log)


@torch.no_grad()
def evaluate(
    predict: Predict,
    images: ImageSet,
    metrics: Mapping[str, MetricFunction],
    *,
    dataset: str,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    save: Callable[[str, np.ndarray], None] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Evaluation:
    """Measure `predict` (lq -> sr) on every image of `images`.

    The next images are decoded, and earlier ones saved, while the network runs. Images of a class from outside are read
    one by one, on this thread: it may keep a state, or draw random numbers.

    Args:
        metrics: name -> function, see `build_metrics`.
        autocast: context manager for reduced precision.
        save: called with (image name, uint8 sr image) for every image, in order, from one other thread.
        progress: wraps the index iterator, for a progress bar.

    Raises:
        MtkdError: the network or a metric fails on an image, sr and gt differ in size, sr is not finite, or the image
            does not fit into the device's memory; the image is named.
    """
    names: list[str] = []
    finite: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in metrics}
    with closing(_read(images, device)) as pairs, BackgroundCalls(workers=1, waiting=4) as calls:
        for _, (name, staged_lq, staged_gt) in zip(progress(range(len(images))), pairs, strict=True):
            lq, gt = to_tensor(staged_lq, device), to_tensor(staged_gt, device)
            with autocast(), _on(f"{dataset}/{name}", lq):
                sr = predict(lq)
            sr = sr.float()
            if sr.shape != gt.shape:
                raise MtkdError(
                    f"{dataset}/{name}: sr is {tuple(sr.shape[-2:])} for an lq of {tuple(lq.shape[-2:])}, but gt is "
                    f"{tuple(gt.shape[-2:])}. Is the network's scale that of the data set?"
                )
            names.append(name)
            # Metrics clamp: an infinite pixel would count as white or black.
            finite.append(sr.isfinite().all())
            for metric, function in metrics.items():
                with _naming(f"{dataset}/{name}"):
                    columns[metric].append(function(sr, gt).reshape(()))
            if save is not None:
                calls.submit(_save, save, name, to_host(to_pixels(sr)))
    # Read all values once at the end: reading one per image would make the device wait every time.
    values = {name: tuple(torch.stack(column).double().cpu().tolist()) for name, column in columns.items()}
    if finite and not torch.stack(finite).all():
        broken = [name for name, good in zip(names, torch.stack(finite).tolist(), strict=True) if not good]
        raise MtkdError(
            f"{dataset}/{broken[0]}: the network's output is not finite ({len(broken)} of {len(names)} images). In "
            "fp16 values above 65504 overflow: use bf16 or fp32."
        )
    return Evaluation(dataset, tuple(names), values)


def _read(images: ImageSet, device: torch.device | str) -> Generator[tuple[str, Tensor, Tensor], None, None]:
    """(name, lq, gt) of every image, staged for `device`."""

    def read(index: int) -> tuple[str, Tensor, Tensor]:
        image = images[index]
        return image.name, staged(image.lq, device), staged(image.gt, device)

    source = images.images if isinstance(images, _Share) else images
    indices = range(len(images))
    yield from prefetch(read, indices) if isinstance(source, PairedImages) else map(read, indices)


def _save(save: Callable[[str, np.ndarray], None], name: str, pixels: Callable[[], Tensor]) -> None:
    save(name, pixels().numpy())


@contextmanager
def _on(image: str, lq: Tensor) -> Generator[None, None, None]:
    """Errors of a network that runs on `lq` name the image."""
    try:
        with errors_of(f"{image}: the network failed on lq of {lq.shape[-2]}x{lq.shape[-1]} pixels"):
            yield
    except torch.OutOfMemoryError as error:
        raise MtkdError(
            f"{image}: the device ran out of memory on the whole image: {str(error).splitlines()[0]} Set val.tile, for "
            "example `tile: {tile_size: 256, tile_pad: 32}`, or `mtkd test ... --tile 256`. It is not set "
            "automatically, because tiles may change numbers a little."
        ) from error


@contextmanager
def _naming(image: str) -> Generator[None, None, None]:
    try:
        yield
    except MtkdError as error:
        raise MtkdError(f"{image}: {error}") from error


def evaluate_sharded(
    predict: Predict,
    images: ImageSet,
    metrics: Mapping[str, MetricFunction],
    *,
    save: Callable[[str, np.ndarray], None] | None = None,
    **settings: Any,
) -> Evaluation:
    """`evaluate` by all ranks of a distributed run together: each takes every n-th image, all get the whole result.

    `save` is called on rank 0 alone. Without a distributed run this is `evaluate`.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return evaluate(predict, images, metrics, save=save, **settings)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    share = _Share(images, range(rank, len(images), world))
    kept: list[tuple[str, np.ndarray]] = []
    part: Evaluation | None = Evaluation(settings["dataset"], (), {name: () for name in metrics})
    failure: Exception | None = None
    if len(share):
        keep = None if save is None else lambda name, image: kept.append((name, image))
        try:
            part = evaluate(predict, share, metrics, save=keep, **settings)
        except Exception as error:  # noqa: BLE001  raised below, after the others know
            part, failure = None, error
    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, part)
    if failure is not None:
        raise failure
    if None in parts:
        raise MtkdError(
            f"{settings['dataset']}: another process could not measure its images; its error gives the reason."
        )
    if save is not None:
        shots: list[Any] | None = [None] * world if rank == 0 else None
        distributed.gather_object(kept, shots, dst=0)
        for name, image in (pair for shot in shots or [] for pair in shot):
            save(name, image)
    order = sorted((index, owner) for owner in range(world) for index in range(owner, len(images), world))
    names = tuple(parts[owner].images[index // world] for index, owner in order)
    values = {m: tuple(parts[owner].values[m][index // world] for index, owner in order) for m in metrics}
    return Evaluation(settings["dataset"], names, values)


class _Share:
    """Some images of a set."""

    def __init__(self, images: ImageSet, indices: Sequence[int]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.images[self.indices[index]]


def save_to(folder: Path, suffix: str) -> Callable[[str, np.ndarray], None]:
    """A `save` for `evaluate` that writes `folder/NAME_SUFFIX.png`."""

    def save(name: str, image: np.ndarray) -> None:
        # Y is saved as a grey image, as BasicSR does.
        write_image(folder / f"{name}_{suffix}.png", image[..., 0] if image.shape[-1] == 1 else image)

    return save
