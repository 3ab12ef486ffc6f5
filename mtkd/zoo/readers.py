"""The contents of a checkpoint, read without running code.

Pickles go through `torch.load(weights_only=True)`, after their container was looked at; safetensors hold no code.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.zoo.containers import ZIP, damage_named, head_of, one_line, verify, what_it_is

FACTS = "mtkd"
"""Entry of our .pth files, and key of the safetensors metadata, that says what the weights are."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and the facts in the file, {} where it has none.

    Raises:
        MtkdError: it cannot be read, or what it says is not JSON.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            written = (file.metadata() or {}).get(FACTS, "{}")
    except Exception as error:  # noqa: BLE001  broken files raise whatever the bytes happen to trigger
        text = f"{path} cannot be read as safetensors: {one_line(error)}. {what_it_is(path)}"
        raise MtkdError(text.rstrip()) from error
    try:
        facts = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise MtkdError(
            f"{path} cannot be read as safetensors: its metadata `{FACTS}`, which says what the network is, is not "
            f"JSON or nested too deeply ({one_line(error)}). Fetch the file again, or convert the weights anew."
        ) from error
    return state, facts if isinstance(facts, dict) else {}


def read_pickle(path: Path) -> Mapping[str, Any]:
    """The mapping that `torch.save` wrote: tensors, on the CPU, and plain values.

    Raises:
        MtkdError: it is something else, damaged, holds more than it has bytes for, or would need code to be run.
    """
    if known := what_it_is(path):
        raise MtkdError(f"{path} is not a checkpoint. {known}")
    _check_zip(path)
    try:
        with torch.serialization.safe_globals([*_NUMPY_SCALARS, *_NAMES_ALONE]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  broken files raise whatever the bytes happen to trigger
        raise MtkdError(_why_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise MtkdError(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    return content


def _check_zip(path: Path) -> None:
    """Refuse a damaged file, and one that would unpack to more than it holds: torch packs nothing."""
    if not head_of(path).startswith(ZIP):
        return
    with damage_named(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise MtkdError(f"{path} is not a checkpoint: it is a packed or encrypted zip, and torch packs nothing.")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise MtkdError(f"{path} is refused: its members claim more bytes than the file has.")
        damaged = verify(path)
    if damaged:
        raise MtkdError(
            f"{path} is damaged: {damaged} is not what was written (its checksum is wrong). Fetch or copy it again; of "
            "a run's weights take those of another iteration."
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and (named := re.search(r"GLOBAL\s+`?([\w.]+)", text)):
        return (
            f"{path} is refused: to read it, {named[1]} would have to be run, and a checkpoint may run anything that "
            "way. "
            "Only files of tensors and plain values are read. If you trust the file, load it with torch yourself and "
            "save "
            "its state dict alone, torch.save({'params': state_dict}, ...)."
        )
    # torch's text advises to read the file without the safeguard; only its reason is passed on.
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", text) or re.search(r"^((?!.*weights_only).+)", text)
    return (
        f"{path} cannot be read as a checkpoint: it is truncated, damaged, or something else "
        f"({type(error).__name__}: {reason[1].strip()[:200].rstrip('.') if reason else 'no reason given'}). Fetch it "
        "again."
    )


def _numpy_scalars() -> list[Any]:
    """What a pickle of numpy's numbers names: they stand beside weights as a score, and hold no code."""
    scalar = np.float64(0).__reduce__()[0]
    # numpy 1 called the module numpy.core, numpy 2 calls it numpy._core; a file of either is read under either.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = {type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "?")}
    return [*names, np.dtype, *kinds]


_NUMPY_SCALARS = _numpy_scalars()


class _Name:
    """Stands for a class that a file names and that is not needed to read its weights."""

    def __init__(self) -> None:
        raise MtkdError("a class stands in the file for an object, not as a name alone")


_NAMES_ALONE: list[Any] = [(_Name, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
"""PyTorch Lightning files the state of each callback under its class. Nothing of the kind is built or imported."""
