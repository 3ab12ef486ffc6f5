"""Checkpoint files: read any of them safely, write ours.

Nothing read here can run code: pickles go through `torch.load(weights_only=True)`, safetensors hold no code at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkd.contracts import MtkdError

logger = logging.getLogger("mtkd")

KEYS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Entries that wrap a state dict, in the order in which key "auto" prefers them."""

_EMA = "params_ema"
FACTS = "mtkd"
"""Entry of our .pth files, and key of the safetensors metadata, that says what the weights are."""

_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict without wrapper prefixes, and what the file says about it ({} for files that are not ours).

    `facts` of our files has `arch` ({"type", "args"}) and `scale`, and where they apply `iteration`, `members` (names
    of the teachers a fusion network was trained on, in order), `data`, `source`, `licence`, `published`. `entry` is the
    one that held the state dict, None where the file is it, and `entries` are all that could have.
    """

    state: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    entry: str | None = None
    entries: tuple[str, ...] = ()

    def origin(self, source: str | Path) -> Origin:
        """What a network with these weights says about them; `source` is the file or zoo name."""
        iteration = self.facts.get("iteration")
        if not isinstance(iteration, int):
            named = re.fullmatch(r"net_g_(\d{1,15})", Path(source).stem)
            iteration = int(named[1]) if named else None
        return Origin(str(source), self.entry, iteration, averaged_too=self.entry == "params" and _EMA in self.entries)


@dataclass(frozen=True)
class Origin:
    """Which weights a network has: one file may hold those that were trained and their average, which are two networks.

    Attributes:
        source: the file or zoo name.
        entry: of the file; None where it holds one network alone.
        iteration: of the training, where it is known.
        averaged_too: the entry is "params", and the file has "params_ema" as well.
    """

    source: str
    entry: str | None
    iteration: int | None
    averaged_too: bool = False

    def __str__(self) -> str:
        parts = [f"{self.entry} of {self.source}" if self.entry else self.source]
        if self.iteration is not None:
            parts.append(f"iteration {self.iteration:,d}")
        return ", ".join(parts) + (f" (it has {_EMA} too)" if self.averaged_too else "")


def read_checkpoint(path: Path, *, key: str | None = "auto") -> Checkpoint:
    """State dict and facts of a .pth, .pt, .ckpt or .safetensors file, on the CPU.

    `key` is BasicSR's `param_key`: the entry that holds the state dict, or None for a file that is a bare state dict.
    "auto" takes the first of `KEYS` that is there, else the file itself. As in BasicSR, "params_ema" falls back to
    "params". A safetensors file holds one network and has no such entries, so every usual key reads it.

    Raises:
        MtkdError: the file is missing, truncated, no checkpoint, would need code to be run, or has no entry `key`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MtkdError(f"There is no checkpoint {path}." + (" It is a folder." if path.is_dir() else ""))
    if _is_safetensors(path):
        state, facts = _read_safetensors(path)
        if key not in ("auto", None, *KEYS):
            raise MtkdError(f"{path} is a safetensors file, which has no entry {key!r}: leave the key out.")
        return Checkpoint(_unwrap(state), facts)
    content = _read_pickle(path)
    key = _entry(content, key, path)
    state = _state_of(content, key, path)
    facts = content.get(FACTS, {})
    entries = tuple(name for name in KEYS if isinstance(content.get(name), Mapping))
    return Checkpoint(_unwrap(state), dict(facts) if isinstance(facts, Mapping) else {}, key, entries)


def write_safetensors(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file that says what it is: `facts` as JSON in the metadata. Appears whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    temporary = _temporary(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata={"format": "pt", FACTS: json.dumps(facts)})
        # safetensors makes files for their owner alone, whatever the umask: a shared folder would serve nobody else.
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_pth(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save` that appears whole or not at all."""
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:  # given a name, torch would write that name into the file
            torch.save(dict(content), file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def is_archive(path: Path) -> bool:
    """Whether `path` is a zip or tar of several files, rather than a checkpoint (which torch writes as a zip too)."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("/data.pkl") or name == "data.pkl" for name in archive.namelist())
    if not tarfile.is_tarfile(path):
        return False
    with tarfile.open(path) as archive:
        return not {"storages", "tensors", "pickle"} <= set(archive.getnames())


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        head = file.read(10)
    # Eight bytes of header length, then a JSON object: pickles and zips never look like that.
    return len(head) == 10 and head[8:] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise MtkdError(f"{path} cannot be read as safetensors: {error}. {_what_it_is(path)}".rstrip()) from error
    return state, facts if isinstance(facts, dict) else {}


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  broken files raise whatever the bytes happen to trigger
        raise MtkdError(_why_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise MtkdError(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    return content


def _why_unreadable(path: Path, error: Exception) -> str:
    known = _what_it_is(path)
    if known:
        return f"{path} is no checkpoint. {known}"
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and (named := re.search(r"GLOBAL\s+`?([\w.]+)", text)):
        return (
            f"{path} is refused: to read it, {named[1]} would have to be run, and a checkpoint may run anything that "
            "way. "
            "Only files of tensors and plain values are read. If you trust the file, load it with torch yourself and "
            "save "
            "its state dict alone, torch.save({'params': state_dict}, ...)."
        )
    if "legacy .tar" in text:
        return (
            f"{path} is in the tar format of torch 0.1, which is not read. Load it with torch and save its state dict."
        )
    return (
        f"{path} cannot be read as a checkpoint: it is truncated, damaged, or something else "
        f"({type(error).__name__}: {text.splitlines()[0][:200] if text else 'no message'}). Fetch it again."
    )


def _what_it_is(path: Path) -> str:
    """A sentence on files that are commonly mistaken for checkpoints; empty for anything else."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "It is empty."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "It is a web page: the host asked for a click or refused, and the answer was saved. Fetch it in a browser."
        )
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer: run `git lfs pull` where it came from."
    if is_archive(path):
        return "It is an archive of several files: unpack it, or use `mtkd zoo import NAME FILE`."
    return ""


def _entry(content: Mapping[str, Any], key: str | None, path: Path) -> str | None:
    """The entry that `key` means in this file."""
    if key == "auto":
        return next((name for name in KEYS if isinstance(content.get(name), Mapping)), None)
    if key == _EMA and key not in content and "params" in content:
        logger.info("%s has no params_ema; its params are used.", path)
        return "params"
    return key


def _state_of(content: Mapping[str, Any], key: str | None, path: Path) -> Mapping[str, Any]:
    if key is not None and key not in content:
        present = ", ".join(list(map(str, content))[:8])
        bare = all(isinstance(value, Tensor) for value in content.values())
        hint = " The file is a bare state dict: set the key to ~ (null)." if bare else ""
        raise MtkdError(f"{path} has no entry {key!r}; it has {present}{', ...' if len(content) > 8 else ''}.{hint}")
    state = content if key is None else content[key]
    where = f"the entry {key!r} of {path}" if key is not None else str(path)
    if not isinstance(state, Mapping) or not state:
        raise MtkdError(f"{where} holds no weights.")
    strange = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise MtkdError(
            f"{where} is no state dict: {', '.join(strange[:8])} {'is' if len(strange) == 1 else 'are'} not tensors. "
            f"If the weights stand under one of these names, give it as the key."
        )
    return state


def _unwrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefixes that DataParallel, DDP and torch.compile put before every name."""
    unwrapped = {}
    for name, tensor in state.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        unwrapped[name] = tensor
    return unwrapped
