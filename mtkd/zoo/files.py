"""Checkpoint files: read any of them safely, write ours.

Nothing read here can run code (`readers`). The facts in a file are data, from which `building.build_described` builds
only mtkd's own networks.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.runtime.files import atomic
from mtkd.zoo.containers import is_safetensors
from mtkd.zoo.readers import FACTS, read_pickle, read_safetensors

logger = logging.getLogger("mtkd")

KEYS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Entries that wrap a state dict, in the order in which key "auto" prefers them."""

_EMA = "params_ema"

_WRAPPERS = ("module.", "_orig_mod.")

NAMES_OF_THE_WHOLE = ("generator.", "net_g.", "netG.", "model.")
"""Prefixes that training programs put before every name; taken off when no name lacks it."""

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_BUFFER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Of counters and index tables, which stand among the weights."""


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
        """The `origin` of a network with these weights; `source` is the file or zoo name."""
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
    "auto" takes the first of `KEYS` that is there, else the file itself. "params_ema" falls back to
    "params". A safetensors file holds one network and has no such entries, so every usual key reads it.

    Raises:
        MtkdError: the file is missing, truncated, no checkpoint, would need code to be run, or has no entry `key`.
    """
    path = local_file(path, "checkpoint")
    if is_safetensors(path):
        state, facts = read_safetensors(path)
        if key not in ("auto", None, *KEYS):
            raise MtkdError(f"{path} is a safetensors file, which has no entry {key!r}: leave the key out.")
        if not state:
            raise MtkdError(f"{path} holds no weights.")
        where, entry, entries = str(path), None, ()
    else:
        content = read_pickle(path)
        entry = _entry(content, key, path)
        entries = tuple(name for name in KEYS if isinstance(content.get(name), Mapping))
        state, where = _state_of(content, entry, path)
        found = content.get(FACTS, {})
        facts = dict(found) if isinstance(found, Mapping) else {}
    _check_tensors(state, where, path.stat().st_size)
    return Checkpoint(_unwrap(state, where), facts, entry, entries)


def local_file(path: str | Path, what: str = "file") -> Path:
    """`path` as a file that is there, `~` resolved.

    Raises:
        MtkdError: there is none, or there can be none of that name.
    """
    try:
        found = Path(path).expanduser()
        if found.is_file():
            return found
        folder = found.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MtkdError(f"There is no {what} {str(path)[:200]!r}: {reason.rstrip('.')}.") from error
    if folder:
        raise MtkdError(f"There is no {what} {found}. It is a folder.")
    raise MtkdError(f"There is no {what} {found}." + (" It is no regular file." if found.exists() else ""))


def write_safetensors(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file that says what it is: `facts` as JSON in the metadata. Appears whole or not at all; the same tensors
    and facts make the same bytes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", FACTS: json.dumps(facts)})
            _order_metadata(temporary)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def _order_metadata(path: Path) -> None:
    """safetensors writes metadata in the order of a hash that changes from process to process."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # spaces may follow
            file.seek(8)
            file.write(text.ljust(length))


def write_pth(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save` that appears whole or not at all, also when the machine stops.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    # Given a name, torch would write that name into the file.
    with atomic(path, durable=True) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:
            # torch's writer of zips hides the error of the file behind one about positions.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _entry(content: Mapping[str, Any], key: str | None, path: Path) -> str | None:
    """The entry that `key` means in this file."""
    if key == "auto":
        return next((name for name in KEYS if isinstance(content.get(name), Mapping)), None)
    if key == _EMA and key not in content and "params" in content:
        logger.info("%s has no params_ema; its params are used.", path)
        return "params"
    return key


def _state_of(content: Mapping[str, Any], key: str | None, path: Path) -> tuple[Mapping[str, Any], str]:
    """The state dict in `content`, and where it stands, in words."""
    if key is not None and key not in content:
        present = ", ".join(list(map(str, content))[:8])
        bare = all(isinstance(value, Tensor) for value in content.values())
        hint = " The file is a bare state dict: set the key to ~ (null)." if bare else ""
        raise MtkdError(f"{path} has no entry {key!r}; it has {present}{', ...' if len(content) > 8 else ''}.{hint}")
    state = content if key is None else content[key]
    where = f"the entry {key!r} of {path}" if key is not None else str(path)
    if not isinstance(state, Mapping) or not state:
        raise MtkdError(f"{where} holds no weights.")
    if odd := [name for name in state if not isinstance(name, str)]:
        raise MtkdError(f"{where} is not a state dict: {str(odd[0])[:80]} stands where the name of a tensor should.")
    strange = [name[:80] for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise MtkdError(
            f"{where} is not a state dict: {', '.join(strange[:8])} {'is' if len(strange) == 1 else 'are'} not "
            f"tensors. If the weights stand under one of these names, give it as the key."
        )
    return state, where


def _check_tensors(state: Mapping[str, Tensor], where: str, file_size: int) -> None:
    """Refuse tensors that are not plain weights, by name; `load_state_dict` would take or break on most of them."""
    claimed = 0
    for name, tensor in state.items():
        if type(tensor) not in (Tensor, nn.Parameter):
            _refuse(where, name, f"a {type(tensor).__name__}")
        if tensor.is_quantized:
            _refuse(where, name, "quantized")
        if tensor.layout is not torch.strided or tensor.is_nested:
            _refuse(where, name, f"sparse ({str(tensor.layout).removeprefix('torch.')})")
        if tensor.is_meta:
            _refuse(where, name, "empty: it has a shape and no values (device meta)")
        allowed = _DTYPES if name.endswith((".weight", ".bias")) else (*_DTYPES, *_BUFFER_DTYPES)
        if tensor.dtype not in allowed:
            _refuse(where, name, str(tensor.dtype).removeprefix("torch."))
        claimed += tensor.numel() * tensor.element_size()
    if claimed > 4 * file_size + (1 << 20):
        raise MtkdError(f"{where} is refused: its tensors claim {claimed:,} bytes, the file has {file_size:,}.")


def _refuse(where: str, name: str, what: str) -> NoReturn:
    raise MtkdError(
        f"{where} cannot be used: {name[:80]} is {what}. Weights are plain tensors of float32, float64, float16 or "
        "bfloat16; save them as such."
    )


def _unwrap(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state dict without the prefixes that wrappers (DataParallel, DDP, torch.compile) and training programs put
    before every name.
    """
    names = {name: name for name in state}
    while True:
        for name, short in names.items():
            while short.startswith(_WRAPPERS):
                short = short.split(".", 1)[1]
            names[name] = short
        whole = next((p for p in NAMES_OF_THE_WHOLE if all(n.startswith(p) for n in names.values())), None)
        if whole is None:
            break
        names = {name: short.removeprefix(whole) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        raise MtkdError(f"{where} holds the same weights twice: with and without a prefix such as `module.`.")
    return {names[name]: tensor for name, tensor in state.items()}
