"""The training images of an option file, and the store of targets that belongs to them.

A store of targets carries the fingerprint of what made it: teacher and fusion weights, their arguments and order, the
scale and the images. Training from a store that does not match is an error.
"""

from __future__ import annotations

import glob
import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtkd import build, catalog, zoo
from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.store import ImageStore, StoreDtype, missing_images
from mtkd.data.training import TrainingSet
from mtkd.runtime.files import sha256


def fingerprint(options: Options, images: TrainingSet) -> dict[str, Any]:
    """What determines the targets of `options`: networks with their weights' hashes, or kept answers with theirs, in
    order; scale and lq images.

    Where an option file names no teachers, only scale and images are compared.
    """
    marks: dict[str, Any] = {"scale": options.scale, "images": images.lq.digest()}
    if not options.teachers:
        return marks
    names = catalog.get("method", options.model_type).imitated(options.method, list(options.teachers))
    kept = build.open_training_answers(options, images, imitated=True)
    marks["teachers"] = [
        {"name": name, **({"answers": kept[name].digest()} if name in kept else _weights(options.teachers[name]))}
        for name in names
    ]
    marks["fusion"] = options.fusion
    if options.fusion is not None and options.fusion != "mean":
        marks["fusion"] = _weights(options.fusion)
    return marks


def open_targets(options: Options, images: TrainingSet) -> ImageStore:
    """The store `options.target_store`, checked against the run.

    Raises:
        MtkdError: there is no such store, it is damaged, or other teachers, images or another scale made it; what
            differs is named.
    """
    assert options.target_store is not None
    path = expanded(options.target_store)
    if not exists(path):
        shards = any(path.parent.glob(f"{glob.escape(path.name)}.shard-*"))
        remedy = "Shards of it do: `mtkd teach -opt FILE --merge`" if shards else "Make it with `mtkd teach -opt FILE`"
        raise MtkdError(f"target_store {path} does not exist. {remedy}.")
    store = ImageStore(path)
    stored, wanted = store.facts.get("fingerprint"), fingerprint(options, images)
    if not isinstance(stored, dict):
        raise MtkdError(f"{path} is not a store of targets: it has no fingerprint. Make one with `mtkd teach`.")
    differing = _differences({key: stored.get(key) for key in wanted}, wanted)
    if differing:
        remedy = "Make a new one with `mtkd teach -opt FILE`."
        if "combined" in store.facts and options.teachers:
            remedy = "It was combined of kept answers (`mtkd teach --from`): use it in a file without `teachers`."
        raise MtkdError(f"target_store {path} does not match this option file: {_describe(differing)}. {remedy}")
    store.verify()
    return store


def exists(path: Path) -> bool:
    """Whether a file is at `path`; a folder, or an invalid path, is an error."""
    try:
        if path.is_dir():
            raise MtkdError(f"target_store {path} is a folder, and must be a file. Name another place.")
        return path.exists()
    except (OSError, ValueError) as error:
        raise MtkdError(f"target_store {path}: {getattr(error, 'strerror', None) or error}.") from error


def complete_already(path: Path, facts: dict[str, Any]) -> ImageStore:
    """The finished store or shard `path`, when it is whole and was made as `facts` say.

    Raises:
        MtkdError: it is damaged, or was made otherwise; what differs is named.
    """
    store = ImageStore(path)
    check_facts(store, facts, "Name another target_store, or delete this one to make it again.")
    store.verify()
    return store


def check_facts(store: ImageStore, facts: dict[str, Any], remedy: str) -> None:
    """Raise an error that names what differs, and the remedy, unless `store` was made as `facts` say."""
    differing = _differences(store.facts, facts)
    if differing:
        raise MtkdError(f"{store.path} was made differently: {_describe(differing)}. {remedy}")


def _differences(stored: Any, here: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(place, stored value, value here) wherever two trees of plain values differ."""
    if (where == "teachers" or where.endswith(".teachers")) and _are_members(stored) and _are_members(here):
        stored, here = ({str(member["name"]): member for member in part or ()} for part in (stored, here))
        if list(stored) != list(here):
            return [(where, ", ".join(stored) or "none", ", ".join(here) or "none")]
    if where.endswith(".network") or where == "network":
        stored, here = completed(stored), completed(here)
    if not isinstance(stored, dict) or not isinstance(here, dict):
        return [] if stored == here else [(where, stored, here)]
    return [
        found
        for key in dict.fromkeys([*stored, *here])
        for found in _differences(stored.get(key), here.get(key), f"{where}.{key}" if where else key)
    ]


def completed(network: Any) -> Any:
    """`network` with its constructor's defaults written out, so that leaving a default out makes no difference."""
    if not isinstance(network, dict) or network.get("type") not in catalog.ARCHS:
        return network
    try:
        bound = inspect.signature(catalog.get("arch", network["type"])).bind(**network.get("args", {}))
    except TypeError:
        return network
    bound.apply_defaults()
    return {"type": network["type"], "args": build.plain(bound.arguments)}


def _are_members(teachers: Any) -> bool:
    return teachers is None or (
        isinstance(teachers, list) and all(isinstance(part, dict) and "name" in part for part in teachers)
    )


def _describe(differing: Sequence[tuple[str, Any, Any]]) -> str:
    more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
    return "; ".join(f"{where} is {stored} in the store, {here} here" for where, stored, here in differing[:3]) + more


def bytes_to_write(path: Path, sizes: Sequence[tuple[int, int]], dtype: StoreDtype) -> int:
    """Bytes of the images that the store at `path` still lacks; files of half-written stores are sparse."""
    return sum(sizes[i][0] * sizes[i][1] for i in missing_images(path, len(sizes))) * (3 if dtype == "uint8" else 6)


def free_bytes(path: Path) -> int:
    """Free room on the disk where `path` is, or would be made."""
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(folder).free


def size_text(nbytes: float) -> str:
    """A number of bytes as people write it: 812 bytes, 3.4 kB, 12.0 MB, 1.25 GB."""
    for unit, size, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if nbytes >= size:
            return f"{nbytes / size:.{digits}f} {unit}"
    return f"{nbytes:.0f} bytes"


def check_disk(path: Path, nbytes: int) -> None:
    """Raise an error where `nbytes` more do not fit on the disk of `path`."""
    free = free_bytes(path)
    if nbytes > free:
        raise MtkdError(
            f"{path} needs {size_text(nbytes)} more, and its disk has {size_text(free)} free. Make room, or put "
            "target_store elsewhere."
        )


def _weights(options: Any) -> dict[str, Any]:
    named = build.network_of(options)
    network = {"type": named.type, "args": build.plain(named.args)}
    found = {"network": network, "sha256": sha256(zoo.resolve(options.pretrain)), "param_key": options.param_key}
    return found if getattr(options, "scale", None) is None else {**found, "scale": options.scale}
