"""Weights in repositories of the Hugging Face hub, through huggingface_hub (extra `hub`), which caches files."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkd.contracts import MtkdError

PREFIX = "hf:"
WEIGHTS = "model.safetensors"
"""The file that `push` writes, and that is taken where no file is named."""
_SUFFIXES = (".safetensors", ".onnx", ".pth", ".pt", ".ckpt")
"""Of files that hold a network; pickles among them are read without running anything in them (`zoo.readers`)."""
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_SPEC = re.compile(rf"({_PART}/{_PART})(?:/([^@]+))?(?:@(.+))?")


@dataclass(frozen=True)
class Place:
    """`hf:USER/NAME[/FILE][@REVISION]`, taken apart."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def place(spec: str) -> Place:
    """What `spec` names; nothing is fetched.

    Raises:
        MtkdError: it is not written as `hf:USER/NAME[/FILE][@REVISION]`.

    Example:
        >>> place("hf:ann/photos_x4@v1.0")
        Place(repository='ann/photos_x4', file=None, revision='v1.0')
    """
    found = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if found is None:
        raise MtkdError(
            f"{spec[:200]} names no repository of the Hugging Face hub: write hf:USER/NAME, hf:USER/NAME/FILE for one "
            "of several files, hf:USER/NAME@REVISION for a branch, a tag or a commit."
        )
    return Place(*found.groups())


def fetch(spec: str) -> Path:
    """The weights file that `hf:USER/NAME[/FILE][@REVISION]` means, fetched unless it is in huggingface_hub's cache.

    Without FILE it is `model.safetensors`, else the one file of the repository that can hold a network. Without a
    network connection, or with HF_HUB_OFFLINE=1, the cached file is taken. HF_ENDPOINT names another server.

    Raises:
        MtkdError: the package is missing, the name is none, there is no such repository, revision or file, there are
            several files, or the hub cannot be reached and the file was never fetched.
    """
    where = place(spec)
    hub = package(spec)
    with explained(where):
        if where.file is not None:
            return _download(hub, where, where.file)
        try:
            return _download(hub, where, WEIGHTS)
        except hub.errors.LocalEntryNotFoundError:
            if (cached := _cached(hub, where)) is None:
                raise
            return cached
        except hub.errors.EntryNotFoundError:
            listed = hub.HfApi(endpoint=endpoint()).list_repo_files(where.repository, revision=where.revision)
            return _download(hub, where, _the_one(where, listed))


def package(what: str) -> Any:
    """huggingface_hub.

    Raises:
        MtkdError: it is not installed; the text begins with `what`.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise MtkdError(f"{what} needs the package huggingface_hub ({error}): pip install 'mtkd[hub]'.") from error
    return huggingface_hub


def endpoint() -> str | None:
    """The server that HF_ENDPOINT names; None for the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


def _download(hub: Any, where: Place, file: str) -> Path:
    return Path(hub.hf_hub_download(where.repository, file, revision=where.revision, endpoint=endpoint()))


def _the_one(where: Place, files: list[str]) -> str:
    """The one file among `files` that can hold a network."""
    for suffix in _SUFFIXES:
        found = [file for file in files if file.lower().endswith(suffix)]
        if len(found) == 1:
            return found[0]
        if found:
            at = f"@{where.revision}" if where.revision else ""
            listed = ", ".join(f"{PREFIX}{where.repository}/{file}{at}" for file in found[:5])
            raise MtkdError(f"{where} holds {len(found)} files of weights; name one of them: {listed}.")
    raise MtkdError(f"{where} holds no weights that can be read here: {', '.join(_SUFFIXES)} files are.")


def _cached(hub: Any, where: Place) -> Path | None:
    """The one weights file of the repository that was fetched before, None where there is none."""
    root = Path(hub.constants.HF_HUB_CACHE) / f"models--{where.repository.replace('/', '--')}"
    revision = where.revision or "main"
    try:
        commit = (root / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    folder = root / "snapshots" / commit
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return folder / _the_one(where, files) if any(file.lower().endswith(_SUFFIXES) for file in files) else None


@contextmanager
def explained(where: Place) -> Generator[None, None, None]:
    """Turn what huggingface_hub raises into one sentence with a remedy."""
    hub = package(str(where))
    errors = hub.errors
    try:
        yield
    except MtkdError:
        raise
    except errors.GatedRepoError as error:
        raise MtkdError(
            f"{where}: its owner gives access on request. Ask for it on the page of {where.repository}, then `hf auth "
            "login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MtkdError(
            f"There is no repository {where.repository}, or it is private. Check the name; for a private one run `hf "
            "auth login` first."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MtkdError(
            f"{PREFIX}{where.repository} has no revision {where.revision}: name a branch, a tag or a commit."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise MtkdError(
            f"{where} was never fetched, and the hub cannot be reached ({_short(error)}). Connect to the network, "
            "unset HF_HUB_OFFLINE where it is set, or name a file that is here."
        ) from error
    except errors.EntryNotFoundError as error:
        raise MtkdError(f"{where} has no file {where.file}. Its page lists the files.") from error
    except Exception as error:
        # It passes on what its HTTP library raises, which differs from version to version.
        raise MtkdError(
            f"{where} cannot be had: {_short(error)}. Try again later, or name a file that is here."
        ) from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}"
