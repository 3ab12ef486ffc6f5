"""Pay the teachers once: run them over the training images, keep the answers, train students from the store.

The target of an output-level method never changes, so it is computed once per image at full size (no crop borders in
its context) and stored as uint8. A store carries the fingerprint of what made it: teacher and fusion weights,
their arguments and order, the scale and the images. Training from a store that does not match is an error.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mtkd import zoo
from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.data.store import ImageStore
from mtkd.data.training import TrainingSet, open_training_set
from mtkd.engine import build
from mtkd.engine.evaluate import to_image, to_tensor
from mtkd.engine.tiling import self_ensemble, tiled


def open_training_images(options: Options, progress: Callable[[str], None] | None = None) -> TrainingSet:
    """The training images of `options`, decoded once into the cache folder (`MTKD_HOME`, or the platform's)."""
    if options.datasets.train is None:
        raise MtkdError("The option file has no `datasets.train` section.")
    given = options.datasets.train
    return open_training_set(
        dataroot_gt=given.dataroot_gt,
        dataroot_lq=given.dataroot_lq,
        scale=options.scale,
        meta_info_file=given.meta_info_file,
        filename_tmpl=given.filename_tmpl,
        min_gt_size=given.gt_size,
        cache_dir=zoo.home() / "datasets",
        progress=progress,
    )


def fingerprint(options: Options, images: TrainingSet) -> dict[str, Any]:
    """What determines the targets of `options`: networks with their weights' hashes, in order, scale and images."""
    members = [
        {"name": name, "network": _network(teacher.network), "sha256": _file_hash(teacher.pretrain)}
        for name, teacher in options.teachers.items()
    ]
    fusion: Any = options.fusion
    if options.fusion is not None and options.fusion != "mean":
        fusion = {"network": _network(options.fusion.network), "sha256": _file_hash(options.fusion.pretrain)}
    content = hashlib.sha256()
    for name, size in zip(images.gt.names, images.gt.sizes, strict=True):
        content.update(f"{name} {tuple(size)}\n".encode())
    content.update(images.lq.digest().encode())
    return {"teachers": members, "fusion": fusion, "scale": options.scale, "images": content.hexdigest()}


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

    Args:
        ensemble_x8: average over the eight flips and rotations of each lq.
        tile_size: run larger lq images in tiles of this many pixels, with `tile_pad` pixels of context.

    Raises:
        MtkdError: `path` exists, weights are missing, or the declared teachers do not make one image.
    """
    if path.exists():
        raise MtkdError(f"{path} already exists; remove it, or name another target_store.")
    images = open_training_images(options, progress)
    marks = fingerprint(options, images)
    teachers = build.build_teachers(options)
    if len(teachers) != 1:
        raise MtkdError(
            f"{len(teachers)} teachers are declared ({', '.join(teachers)}); say how they become one image with `fusion`."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    (net,) = teachers.values()
    net = net.eval().to(device)

    def predict(lq: torch.Tensor) -> torch.Tensor:
        if tile_size is None:
            return net(lq)
        return tiled(net, lq, scale=options.scale, tile_size=tile_size, tile_pad=tile_pad)

    began, count = time.perf_counter(), len(images.lq)

    def answers() -> Any:
        with torch.no_grad():
            for index in range(count):
                lq = to_tensor(images.lq[index], device)
                yield to_image(self_ensemble(predict, lq) if ensemble_x8 else predict(lq))
                done = index + 1
                if done == count or done % max(count // 10, 1) == 0:
                    left = (time.perf_counter() - began) / done * (count - done)
                    progress(f"targets: {done} of {count} images, {left:.0f} s left")

    facts = {"fingerprint": marks, "x8": ensemble_x8}
    ImageStore.write(path, names=images.gt.names, images=answers(), facts=facts)
    return ImageStore(path)


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


def _network(options: Any) -> dict[str, Any]:
    return {"type": options.type, "args": build.plain(options.args)}


def _file_hash(source: str) -> str:
    digest = hashlib.sha256()
    with zoo.resolve(source).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
