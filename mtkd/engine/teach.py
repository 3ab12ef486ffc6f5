"""Pay the teachers once: run them over the training images, keep the answers, train students from the store.

The target of an output-level method never changes, so it is computed once per image at full size (no crop borders in
its context) and stored as uint8. A store carries the fingerprint of what made it: teacher and fusion weights,
their arguments and order, the scale and the images. Training from a store that does not match is an error.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mtkd import zoo
from mtkd.config import ItemTrainSetOptions, Options
from mtkd.contracts import MtkdError
from mtkd.data.store import ImageStore, StoreWriter
from mtkd.data.training import TrainingSet, open_training_set
from mtkd.engine import build
from mtkd.engine.evaluate import Predict, to_image, to_tensor
from mtkd.engine.tiling import self_ensemble, tiled


def open_training_images(options: Options, progress: Callable[[int, int], None] | None = None) -> TrainingSet:
    """The training images of `options`, decoded once into the cache folder (`MTKD_HOME`, or the platform's)."""
    if options.datasets.train is None:
        raise MtkdError("The option file has no `datasets.train` section.")
    if isinstance(options.datasets.train, ItemTrainSetOptions):
        raise MtkdError(
            f"datasets.train.type is {options.datasets.train.type}, which makes its own crops; targets are made for "
            "the whole images of a PairedImageDataset."
        )
    return open_training_set(
        options.datasets.train.model_dump(),
        scale=options.scale,
        cache_dir=zoo.home().parent / "datasets",
        progress=progress,
    )


def fingerprint(options: Options, images: TrainingSet) -> dict[str, Any]:
    """What determines the targets of `options`: networks with their weights' hashes, in order, scale and lq images.

    An option file that names a store and no teachers is held to scale and images alone.
    """
    marks: dict[str, Any] = {"scale": options.scale, "images": images.lq.digest()}
    if not options.teachers:
        return marks
    marks["teachers"] = [{"name": name, **_weights(teacher)} for name, teacher in options.teachers.items()]
    marks["fusion"] = options.fusion
    if options.fusion is not None and options.fusion != "mean":
        marks["fusion"] = _weights(options.fusion)
    return marks


def teach(
    options: Options,
    path: Path,
    *,
    ensemble_x8: bool = False,
    tile_size: int | None = None,
    tile_pad: int = 16,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] = print,
) -> ImageStore:
    """Write the targets of `options` for all its training images to the store `path` (uint8, gt size).

    Interrupted, it goes on where it stopped when called again with the same networks and images.

    Args:
        ensemble_x8: average over the eight flips and rotations of each lq.
        tile_size: run larger lq images in tiles of this many pixels, with `tile_pad` pixels of context.

    Raises:
        MtkdError: `path` exists, weights are missing, or the declared teachers do not make one image.
    """
    if path.exists():
        raise MtkdError(f"{path} already exists; remove it, or name another target_store.")
    build.set_backends(options)
    images = open_training_images(options)
    facts = {"fingerprint": fingerprint(options, images), "x8": ensemble_x8}
    teachers = build.build_teachers(options)
    if len(teachers) != 1:
        raise MtkdError(
            f"{len(teachers)} teachers are declared ({', '.join(teachers)}); say with `fusion` how they become one."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    (net,) = teachers.values()
    predict: Predict = net.eval().to(device)
    if tile_size is not None:
        predict = partial(tiled, predict, scale=options.scale, tile_size=tile_size, tile_pad=tile_pad)
    if ensemble_x8:
        predict = partial(self_ensemble, predict)

    writer = StoreWriter(path, images.gt.names, images.gt.sizes, facts)
    try:
        missing = writer.missing()
        if len(missing) < len(images.lq):
            progress(f"targets: going on with {len(missing)} of {len(images.lq)} images")
        began = time.perf_counter()
        with torch.no_grad():
            for done, index in enumerate(missing, start=1):
                writer.put(index, to_image(predict(to_tensor(images.lq[index], device))))
                if done == len(missing) or done % max(len(missing) // 10, 1) == 0:
                    left = (time.perf_counter() - began) / done * (len(missing) - done)
                    progress(f"targets: {done} of {len(missing)} images, {left:.0f} s left")
        return writer.finish()
    finally:
        writer.close()


def open_targets(options: Options, images: TrainingSet) -> ImageStore:
    """The store `options.target_store`, checked against the run.

    Raises:
        MtkdError: there is no such store, or other teachers, images or another scale made it; what differs is named.
    """
    assert options.target_store is not None
    path = Path(options.target_store).expanduser()
    if not path.exists():
        raise MtkdError(f"target_store {path} does not exist. Make it with `mtkd teach -opt FILE`.")
    store = ImageStore(path)
    stored, wanted = store.facts.get("fingerprint", {}), fingerprint(options, images)
    differing = [key for key in wanted if stored.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        raise MtkdError(
            f"target_store {path} was made by another run: its {', '.join(differing)} differ from the option file's "
            f"({key}: stored {stored.get(key)}, here {wanted[key]}). Make a new one with `mtkd teach -opt FILE`."
        )
    return store


def _weights(options: Any) -> dict[str, Any]:
    network = {"type": options.network.type, "args": build.plain(options.network.args)}
    return {"network": network, "sha256": _file_hash(options.pretrain), "param_key": options.param_key}


def _file_hash(source: str) -> str:
    digest = hashlib.sha256()
    with zoo.resolve(source).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
