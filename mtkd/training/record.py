"""What a training state records of its run, by which a resumed run knows itself: another run is never taken up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd.config import Options
from mtkd.config.diff import flat, with_new_names
from mtkd.contracts import MtkdError
from mtkd.training.data import TrainingData

_KEPT = (
    "model_type", "scale", "network_g", "train.optim_g.type", "train.optim_d.type", "datasets.train.gt_size",
    "datasets.train.color",
)  # fmt: skip
"""Keys whose change makes another run."""
_ELSEWHERE = ("name", "path", "logger", "manual_seed", "num_gpu", *_KEPT)
_BATCH = ("datasets.train.batch_size_per_gpu", "train.accumulate")
_CONTENTS = {
    "pixels": "the pixels of the training images ({name}) were others, or another program decoded them",
    "answers": "the kept answers of the teacher {name} were others",
    "targets": "the targets in {name} were others",
    "teachers": "the weights of the teacher {name} were others",
}
_NAMED = {"targets": ("target_store",), "teachers": ("teachers", "fusion")}
"""Keys that name files of such contents. Where one changes, the contents may, and the line about the key says so."""
_SHOWN = 12
NEW_RUN = "or start a new run from its weights, with another `name` and path.pretrain_network_g"


def record(options: Options, world_size: int, data: TrainingData, teachers: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What a training state records of its run, compared when it is resumed: options, images, targets, teachers,
    processes.

    Args:
        teachers: name -> network, with its weights, on the CPU.
    """
    images, pixels = data.images, {}
    if images is not None:
        names = [list(images.names), [list(size) for size in images.sizes]]
        known = {"count": len(images), "digest": hashlib.sha256(json.dumps(names).encode()).hexdigest()}
        # An lq that is made of gt may differ in its last bit between machines.
        made = images.gt is not None and getattr(options.train_set, "dataroot_lq", None) is None
        stores = {"gt": images.gt, "lq": None if made else images.lq}
        pixels = {name: store.mark() for name, store in stores.items() if store is not None}
    else:
        known = {"count": len(data.items or ())}
    plain = json.loads(json.dumps(flat(options), default=str))
    parts = {
        "pixels": pixels,
        "answers": {name: store.mark() for name, store in data.answers.items()},
        "targets": {"target_store": data.targets.mark()} if data.targets is not None else {},
        "teachers": {name: _digest(net) for name, net in teachers.items()},
    }
    return {"options": plain, "images": known, "world_size": world_size} | {
        part: marks for part, marks in parts.items() if marks
    }


def _digest(net: nn.Module) -> str:
    """SHA-256 of the values of `net`, whatever their names and the format of their file."""
    sums = []
    for value in net.state_dict().values():
        if not isinstance(value, Tensor) or value.layout != torch.strided or nn.parameter.is_lazy(value):
            continue  # what a class from outside keeps beside its weights
        value = torch.view_as_real(value) if value.is_complex() else value
        value = value.int_repr() if value.is_quantized else value
        content = value.detach().contiguous().flatten().view(torch.uint8).numpy()
        sums.append(hashlib.sha256(content.data).hexdigest())
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()


def compare(then: Mapping[str, Any] | None, now: Mapping[str, Any], path: Path) -> list[str]:
    """A line for each harmless change between two `record`s; `then` is None in states that keep none.

    Raises:
        MtkdError: what changed makes another run, each difference named.
    """
    if then is None:
        return [f"{path.name} does not record its options and images; they are not compared."]
    differing: list[str] = []
    before, after = with_new_names(then.get("options", {})), dict(now["options"])

    def changed_line(key: str, old: Any, new: Any) -> str:
        return f"{key} was {_text(old)}, here it is {_text(new)}"

    def differ(key: str) -> bool:
        return before.get(key) != after.get(key)

    keys = list(dict.fromkeys([*before, *after]))
    differing += [
        changed_line(key, before.get(key), after.get(key)) for key in keys if is_under(key, _KEPT) and differ(key)
    ]
    if then.get("images") != now["images"]:
        old, new = then.get("images", {}), now["images"]
        here = "others" if old.get("count") == new["count"] else str(new["count"])
        differing.append(f"the training images were {old.get('count')}, here they are {here}")
    for part, told in _CONTENTS.items():
        if not any(differ(key) for key in keys if is_under(key, _NAMED.get(part, ()))):
            kept, here = then.get(part, {}), now.get(part, {})
            differing += [told.format(name=name) for name in kept if name in here and kept[name] != here[name]]
    old_batch, new_batch = _batch(then), _batch(now)
    if old_batch != new_batch:
        parts = "batch_size_per_gpu x accumulate x processes"
        differing.append(f"{parts} was {old_batch}, here it is {new_batch}")
    if differing:
        raise MtkdError(
            f"{path} was trained with other settings: {few(differing)}. Going on would mix two runs. Give the old "
            f"values back, {NEW_RUN}."
        )
    changed = [
        changed_line(key, before.get(key), after.get(key))
        for key in keys
        if not is_under(key, _ELSEWHERE) and differ(key)
    ]
    if then.get("world_size") != now["world_size"]:
        changed.append(changed_line("the number of processes", then.get("world_size"), now["world_size"]))
    return [f"Changed since the checkpoint: {few(changed)}."] if changed else []


def _batch(run: Mapping[str, Any]) -> Any:
    size = run.get("world_size")
    for key in _BATCH:
        factor = run.get("options", {}).get(key)
        # A class from outside may have no fixed batch size.
        size = size * factor if isinstance(size, int) and isinstance(factor, int) else size
    return size


def is_under(key: str, places: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `places`, or lies in one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _text(value: Any) -> str:
    return "not given" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def few(texts: list[str]) -> str:
    """The first dozen of `texts`, and how many more there are."""
    return "; ".join(texts[:_SHOWN]) + (f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
