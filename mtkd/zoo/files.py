"""Checkpoint files: read any of them safely, write ours.

Nothing read here can run code: pickles go through `torch.load(weights_only=True)`, safetensors hold no code at all, and
what a file says about itself is data, of which `loading.build_network` builds mtkd's own networks only. What kind of
file it is, its first bytes tell: nothing is unpacked to find out, so neither zeros nor a bomb cost time or memory.
"""

from __future__ import annotations

import errno
import json
import logging
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.runtime.files import atomic

logger = logging.getLogger("mtkd")

KEYS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Entries that wrap a state dict, in the order in which key "auto" prefers them."""

_EMA = "params_ema"
FACTS = "mtkd"
"""Entry of our .pth files, and key of the safetensors metadata, that says what the weights are."""

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
    path = local_file(path, "checkpoint")
    if _is_safetensors(path):
        state, facts = _read_safetensors(path)
        if key not in ("auto", None, *KEYS):
            raise MtkdError(f"{path} is a safetensors file, which has no entry {key!r}: leave the key out.")
        if not state:
            raise MtkdError(f"{path} holds no weights.")
        where, entry, entries = str(path), None, ()
    else:
        content = _read_pickle(path)
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


def has_checksums(path: Path) -> bool:
    """Whether the file begins as those do that `torch.save` writes since 1.6, which hold a CRC of each of their parts.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(4).startswith(_ZIP)


def verify(path: Path) -> str | None:
    """What is damaged in a file that `torch.save` wrote, or None when every checksum in it is right.

    torch writes a CRC of each member and does not look at it on reading. Reading with this takes about a second per GB.
    Files without checksums (safetensors, torch's format before 1.6) are not judged.

    Raises:
        OSError: the file cannot be read.
    """
    if not has_checksums(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if packed := next((member for member in archive.infolist() if member.compress_type), None):
                # torch.save never packs: checking it could unpack without end.
                return f"{_shown(packed.filename)}, which is packed"
            member = archive.testzip()
    except Exception as error:  # broken archives raise whatever the bytes happen to trigger
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # an offset in the table may be negative
            raise
        return "its table of contents"
    return None if member is None else _shown(member)


def _shown(member: str) -> str:
    return " ".join(member.split())[:100]


def write_safetensors(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file that says what it is: `facts` as JSON in the metadata. Appears whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", FACTS: json.dumps(facts)})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


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
            # What the file raised, torch's writer of zips turns into a complaint about positions.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def is_archive(path: Path) -> bool:
    """Whether `path` is a zip or tar of several files, rather than a checkpoint (which torch writes as a zip too)."""
    return _what_it_is(path) == _ARCHIVE


_ZIP = b"PK\x03\x04"
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ARCHIVE = "It is an archive of several files: unpack it, or use `mtkd zoo import NAME FILE`."
_SCRIPT = (
    "It is a TorchScript program, which holds code, and not a file of weights. Load it with torch.jit.load and save "
    "its state dict, torch.save({'params': module.state_dict()}, ...)."
)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _is_safetensors(path: Path) -> bool:
    head = _head(path)[:10]
    # Eight bytes of header length, then a JSON object: pickles and zips never look like that.
    if len(head) == 10 and head[8:] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not head.startswith(_ZIP) and (head[:1] != b"\x80" or head[8:9] == b"{")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            written = (file.metadata() or {}).get(FACTS, "{}")
    except Exception as error:  # noqa: BLE001  broken files raise whatever the bytes happen to trigger
        text = f"{path} cannot be read as safetensors: {_one_line(error)}. {_what_it_is(path)}"
        raise MtkdError(text.rstrip()) from error
    try:
        facts = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise MtkdError(
            f"{path} cannot be read as safetensors: its metadata `{FACTS}`, which says what the network is, is not "
            f"JSON or nested too deeply ({_one_line(error)}). Fetch the file again, or convert the weights anew."
        ) from error
    return state, facts if isinstance(facts, dict) else {}


def _read_pickle(path: Path) -> Mapping[str, Any]:
    if known := _what_it_is(path):
        raise MtkdError(f"{path} is no checkpoint. {known}")
    _check_zip(path)
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  broken files raise whatever the bytes happen to trigger
        raise MtkdError(_why_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise MtkdError(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    return content


def _numpy_scalars() -> list[Any]:
    """What a pickle of numpy's numbers names: they stand beside weights as a score, and hold no code."""
    scalar = np.float64(0).__reduce__()[0]
    # numpy 1 called the module numpy.core, numpy 2 calls it numpy._core; a file of either is read under either.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = {type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "?")}
    return [*names, np.dtype, *kinds]


_NUMPY_SCALARS = _numpy_scalars()


def _check_zip(path: Path) -> None:
    """Refuse a damaged file, and one that would unpack to more than it holds: torch packs nothing."""
    if not _head(path).startswith(_ZIP):
        return
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise MtkdError(f"{path} is no checkpoint: it is a packed or encrypted zip, and torch packs nothing.")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise MtkdError(f"{path} is refused: its members claim more bytes than the file has.")
        damaged = verify(path)
    if damaged:
        raise MtkdError(
            f"{path} is damaged: {damaged} is not what was written (its checksum is wrong). Fetch or copy it again; of "
            "a run's weights take those of another iteration."
        )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever a broken archive makes its reader raise, as one paragraph."""
    try:
        yield
    except MtkdError:
        raise
    except Exception as error:  # noqa: BLE001  broken archives raise whatever the bytes happen to trigger
        raise MtkdError(
            f"{path} cannot be read as a checkpoint: its table of contents is truncated or damaged "
            f"({_one_line(error)}). Fetch it again."
        ) from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200] if text else 'no message'}".rstrip(".")


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


def _what_it_is(path: Path) -> str:
    """A sentence on files that are no checkpoints, by their first bytes; empty for what may be one."""
    head = _head(path)
    if not head:
        return "It is empty."
    if not any(head):
        return "It begins with zeros: it was never written to its end, as after a crash or a full disk. Fetch it again."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "It is a web page: the host asked for a click or refused, and the answer was saved. Fetch it in a browser."
        )
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer: run `git lfs pull` where it came from."
    if any(head.startswith(magic) for magic in _PACKED):
        return _ARCHIVE
    if head[257:262] == b"ustar":
        return _what_the_tar_is(path)
    if head.startswith(_ZIP):
        return _what_the_zip_is(path)
    if head[:1] != b"\x80" and not _begins_like_safetensors(head):
        return (
            "It cannot be read as one: it is truncated, damaged, or something else, for it begins with "
            f"{head[:8].hex(' ')}, as neither torch's files nor safetensors do. Fetch it again."
        )
    return ""


def _begins_like_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"


def _what_the_zip_is(path: Path) -> str:
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] for name in names}
    if "data.pkl" in inner or "data.pkl" in names:
        return _SCRIPT if "constants.pkl" in inner else ""
    return _ARCHIVE


def _what_the_tar_is(path: Path) -> str:
    with _damage_named(path), tarfile.open(path, "r:") as archive:
        names = set(archive.getnames())
    if {"storages", "tensors", "pickle"} <= names:
        return "It is in the tar format of torch 0.1, which is not read. Load it with torch and save its state dict."
    return _ARCHIVE


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
        raise MtkdError(f"{where} is no state dict: {str(odd[0])[:80]} stands where the name of a tensor should.")
    strange = [name[:80] for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise MtkdError(
            f"{where} is no state dict: {', '.join(strange[:8])} {'is' if len(strange) == 1 else 'are'} not tensors. "
            f"If the weights stand under one of these names, give it as the key."
        )
    return state, where


def _check_tensors(state: Mapping[str, Tensor], where: str, file_size: int) -> None:
    """Refuse tensors that are no plain weights, by name; `load_state_dict` would take or break on most of them."""
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
