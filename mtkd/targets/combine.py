"""Make one store of several networks' answers, without running any: their mean, weighted or blended with gt."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mtkd import __version__
from mtkd.build import image_cache, open_training_images
from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.data.answers import TRAIN, Answers, place_of
from mtkd.data.images import expanded, try_writing
from mtkd.data.paired import raise_problems
from mtkd.data.store import ImageStore, StoreDtype, StoreWriter
from mtkd.data.training import TrainingSet
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.runtime.progress import Log, Progress
from mtkd.targets.store_check import bytes_to_write, check_disk, complete_already, exists

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def combine(
    options: Options,
    path: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    *,
    weights: Sequence[float] | None = None,
    gt: float = 0.0,
    dtype: StoreDtype = "uint8",
    progress: Log = print,
) -> ImageStore:
    """Write `(1 - gt) * sum_i w_i source_i + gt * ground truth` for every training image to the store `path`.

    The sum is float32, image by image, on [0, 1]; a uint8 store is clamped and rounded as an image file is. With equal
    weights it is exactly the mean. Interrupted, it goes on where it stopped when called again; a store that is complete
    already and was made of the same answers and weights is left as it is.

    Args:
        options: of a training; only its training images and its scale are read.
        path: the store; training takes it as `target_store` beside no `teachers`.
        sources: stores, or folders of images named as the training images they answer, each at gt size, or folders that
            hold such a one as `train`. Folders are decoded once, into the image cache. One is allowed: a folder becomes
            a store. None with `gt` 1.
        weights: one for each source, finite and above 0, divided by their sum; None for equal ones.
        gt: share of the ground truth, in [0, 1]; 1 is the ground truth alone, cut to sides that the scale divides.
        dtype: "uint8", or "float16", which keeps what 8 bits round away, unclamped, in twice the space.

    Raises:
        MtkdError: no source, weights that are none, sources that do not answer the training images (every problem of
            every source at once), training images without gt where it is blended in, a store at `path` that was made
            otherwise, or no room on the disk.
    """
    path = expanded(path)
    shares = _shares(sources, weights, gt)
    finished = exists(path)
    if not finished:
        try_writing(path.absolute().parent)
    with Progress("decoding the training images", progress) as decoding:
        images = open_training_images(options, decoding)
    if gt and images.gt is None:
        raise MtkdError("The training images have no ground truth (no dataroot_gt), so that none can be blended in.")
    marks = {"scale": options.scale, "images": images.lq.digest()}
    exact = getattr(options.train_set, "meta_info_file", None) is None
    stores = _opened(sources, images, marks, exact, progress)
    facts: dict[str, Any] = {
        "fingerprint": marks,
        "combined": {"sources": [store.digest() for store in stores], "weights": shares, "gt": float(gt)},
        "dtype": dtype,
    }
    if finished:
        store = complete_already(path, {**facts, "mtkd": ImageStore(path).facts.get("mtkd")})
        progress(f"targets: {path} is complete already")
        return store
    check_disk(path, bytes_to_write(path, images.sizes, dtype))
    writer = StoreWriter(path, images.names, images.sizes, {**facts, "mtkd": __version__}, dtype=dtype, durable=True)
    try:
        with Progress("targets", progress) as made:
            missing = writer.missing()
            if len(missing) < len(images):
                progress(f"targets: going on with {len(missing)} of {len(images)} images")
            for done, i in enumerate(missing, start=1):
                truth = images.gt[i] if gt and images.gt is not None else None
                blended = blend([store[i] for store in stores], shares, truth, gt)
                writer.put(i, to_image(blended) if dtype == "uint8" else _half(blended, images.names[i]))
                made(done, len(missing))
        return writer.finish()
    finally:
        writer.close()


def blend(
    answers: Sequence[NDArray[Any]], shares: Sequence[float], truth: NDArray[Any] | None = None, gt: float = 0.0
) -> Tensor:
    """`(1 - gt) * sum_i w_i answer_i + gt * truth` of images (H, W, 3), uint8 or float in [0, 1], as (1, 3, H, W)
    float32, not clamped.

    Args:
        shares: one weight for each answer; they are divided by their sum.
    """
    if not answers and truth is not None:
        return to_tensor(truth).float()
    most = max(shares)
    # By the largest: equal weights become 1, and the result exactly the mean.
    relative = [share / most for share in shares]
    total = torch.zeros(())
    for image, weight in zip(answers, relative, strict=True):
        total = total + to_tensor(image).float() * weight
    total = total / sum(relative)
    return total if truth is None else (1 - gt) * total + gt * to_tensor(truth)


def _shares(sources: Sequence[Any], weights: Sequence[float] | None, gt: float) -> list[float]:
    """The weights, which sum to 1."""
    if gt == 1:
        if sources:
            raise MtkdError(
                "Ground truth with a share of 1 leaves nothing to the answers. Name none, or a smaller share."
            )
        return []
    if not sources:
        raise MtkdError("There is nothing to combine: name at least one store or folder of answers.")
    if not 0 <= gt < 1:
        raise MtkdError(f"The share of the ground truth must lie in [0, 1], found {gt}.")
    places = [expanded(source).resolve() for source in sources]
    for number, source in enumerate(sources):
        if places[number] in places[:number]:
            raise MtkdError(f"{source} is given twice. Name it once, and say by `weights` (--mix) how much it counts.")
    given = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(sources):
        raise MtkdError(f"{len(given)} weights are given for {len(sources)} sources of answers. Give one for each.")
    wrong = [weight for weight in given if not (math.isfinite(weight) and weight > 0)]
    if wrong:
        raise MtkdError(f"Weights must be finite and above 0, found {wrong[0]}. Leave a source out that is not wanted.")
    relative = [weight / max(given) for weight in given]
    return [weight / sum(relative) for weight in relative]


def _opened(
    sources: Sequence[str | os.PathLike[str]],
    images: TrainingSet,
    marks: dict[str, Any],
    exact: bool,
    progress: Log,
) -> list[ImageStore]:
    found: list[Answers] = []
    problems: list[str] = []
    for source in sources:
        try:
            place = place_of(str(source), (TRAIN,), flat=True) or source
            found.append(Answers(place, images.names, images.sizes, exact=exact, marks=marks))
        except MtkdError as error:
            problems.append(str(error))
    if len(sources) == 1 and problems:
        raise MtkdError(problems[0])
    raise_problems("Not all sources answer the training images", problems)
    stores = []
    for answers in found:
        with Progress(f"decoding the answers in {answers.place}", progress) as decoding:
            stores.append(answers.decoded(image_cache(), progress=decoding))
    return stores


def _half(image: Tensor, name: str) -> NDArray[Any]:
    kept = image[0].permute(1, 2, 0).half()
    if not kept.isfinite().all():
        raise MtkdError(f"The combined image of {name} is not finite. Make the stores it comes from again.")
    return kept.numpy()
