"""The folder of weights: a name goes in, a checked and converted file comes out.

`NAME.safetensors` is the converted network, `NAME.json` beside it records where it came from, the hash of the original
and the hash of the conversion. `downloads/` holds transfers on their way, archives (several networks share one), and
files whose hash was wrong, set aside as `FILE.bad-HASH`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.runtime import given
from mtkd.runtime.cached import touch
from mtkd.runtime.files import atomic
from mtkd.runtime.files import sha256 as sha256_of
from mtkd.zoo import building, download, files, keymaps, loading, originals, students
from mtkd.zoo.table import ENTRIES, Entry, Source, entry, is_shipped

logger = logging.getLogger("mtkd")


@dataclass(frozen=True)
class Report:
    """What `verify` found of one name."""

    name: str
    ok: bool
    text: str


def home(weights_dir: Path | None = None) -> Path:
    """Folder of the weights: `weights_dir`, else `weights` in `$MTKD_HOME`, else in the platform's cache folder.

    Raises:
        MtkdError: the folder given is not a path.
    """
    if weights_dir is not None:
        return given.path(weights_dir)
    if configured := os.environ.get("MTKD_HOME"):
        try:
            return given.path(configured) / "weights"
        except MtkdError as error:
            raise MtkdError(f"The environment variable MTKD_HOME names no folder. {error}") from error
    import pooch

    return Path(pooch.os_cache("mtkd")) / "weights"


def converted_path(item: Entry, weights_dir: Path | None = None) -> Path:
    """Where the converted file of an entry is or will be; a student lies in the package."""
    if item.shipped:
        return students.file_of(item.name)
    return home(weights_dir) / f"{item.name}.safetensors"


def resolve(spec: str, *, weights_dir: Path | None = None) -> Path:
    """File that `spec` means: "zoo:NAME" is fetched, checked and converted when it is not there yet, the bare name of a
    student is the file in the package where no file is called so, anything else is a path.

    Raises:
        MtkdError: no such name or file, or the weights could not be had; the text says what to fetch by hand and where
            to put it.
    """
    if str(spec).startswith("zoo:"):
        return ensure(entry(str(spec)), weights_dir=weights_dir)
    try:
        return files.local_file(spec)
    except MtkdError as error:
        if str(spec) not in ENTRIES:
            raise
        if is_shipped(str(spec)):
            return ensure(ENTRIES[str(spec)])
        raise MtkdError(f"{error} For the published weights of that name write zoo:{spec}.") from error


def resolve_inside(value: Any) -> Any:
    """`value` with every "zoo:NAME" in it, however deep in lists and mappings, replaced by the path of its file.

    Raises:
        MtkdError: as `resolve`.
    """
    if isinstance(value, str) and value.startswith("zoo:"):
        return str(resolve(value))
    if isinstance(value, Mapping):
        return {key: resolve_inside(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolve_inside(item) for item in value)
    return value


def ensure(item: Entry, *, weights_dir: Path | None = None) -> Path:
    """Converted file of `item`, fetched first if need be, its hash compared with the one recorded at conversion."""
    if item.shipped:
        _check_shipped(item)
        return students.file_of(item.name)
    folder = home(weights_dir)
    target = converted_path(item, weights_dir)
    if target.is_file():
        _check_converted(item, folder)
        touch(target)
        return target
    with _locked(folder, item.name):
        if not target.is_file():  # another process may have been faster
            _obtain(item, folder)
    _check_converted(item, folder)
    return target


def import_file(item: Entry, file: Path, *, weights_dir: Path | None = None) -> Path:
    """Check, convert and put in place a file (or archive) that was fetched by hand; the file itself stays as it is.

    Raises:
        MtkdError: the hash is not the published one, or the file does not hold this network.
    """
    if item.shipped:
        raise MtkdError(
            f"{item.name} comes with the package: {students.file_of(item.name)}. Nothing is to be imported."
        )
    file = files.local_file(file)
    folder = home(weights_dir)
    sha256 = sha256_of(file)
    source = originals.source_of(item, file, sha256)
    with _locked(folder, item.name):
        check = originals.check(item, source, sha256, _record(item, folder), folder)
        state = _loaded(item, _network(item), file, source, folder)
        _write(item, state, source, sha256, check, folder)
    return converted_path(item, weights_dir)


def verify(names: Sequence[str] = (), *, weights_dir: Path | None = None) -> list[Report]:
    """Hash the converted files again: those of `names`, or all that are there."""
    folder = home(weights_dir)
    wanted = [entry(name) for name in names] or [
        e for e in ENTRIES.values() if not e.shipped and converted_path(e, weights_dir).is_file()
    ]
    reports = []
    for item in wanted:
        try:
            if item.shipped:
                _check_shipped(item)
                reports.append(Report(item.name, True, "as it was shipped"))
                continue
            _check_converted(item, folder)
            record = _record(item, folder)
            text = f"unchanged since conversion; original {record['source']['file']}: {record['source']['check']}"
            reports.append(Report(item.name, True, text))
        except MtkdError as error:
            reports.append(Report(item.name, False, str(error)))
    return reports


def _check_shipped(item: Entry) -> None:
    path = students.file_of(item.name)
    if not path.is_file():
        raise MtkdError(f"{path} is missing from this installation of mtkd. Install it again.")
    found, shipped = sha256_of(path), students.index()[item.name]["sha256"]
    if found != shipped:
        raise MtkdError(
            f"{path} has changed since it was shipped: its sha256 is {found}, it was {shipped}. Install mtkd again."
        )


def _check_converted(item: Entry, folder: Path) -> None:
    path = folder / f"{item.name}.safetensors"
    if not path.is_file():
        raise MtkdError(f"{path} is not there: `mtkd zoo download {item.name}` fetches it.")
    record = _record(item, folder)
    if not record:
        raise MtkdError(
            f"{path} has no record {item.name}.json beside it, so it cannot be verified. Copy the record along with "
            "the file, "
            f"or delete the file and run `mtkd zoo download {item.name}`."
        )
    found = sha256_of(path)
    if found != record["sha256"]:
        raise MtkdError(
            f"{path} has changed since it was converted: its sha256 is {found}, recorded is {record['sha256']}. "
            "Delete it and "
            f"run `mtkd zoo download {item.name}`."
        )


def _record(item: Entry, folder: Path) -> dict[str, Any]:
    """What `_write` noted, or {} when there is no note."""
    path = folder / f"{item.name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise MtkdError(f"{path} cannot be read ({error}). Delete it and fetch the weights again.") from error
    source = record.get("source") if isinstance(record, dict) else None
    texts = [source.get(key) for key in ("file", "sha256", "check")] if isinstance(source, dict) else []
    if not texts or not all(isinstance(text, str) for text in (*texts, record.get("sha256"))):
        raise MtkdError(f"{path} is not a record of converted weights. Delete it and fetch the weights again.")
    return record


def _obtain(item: Entry, folder: Path) -> None:
    """Try the sources in turn: a file that lies here already, else a transfer. What is wrong is set aside."""
    reasons = []
    net = _network(item)
    for source in item.sources:
        try:
            with _locked(folder, f"downloads-{source.file}"):
                file = originals.local(source, folder) or originals.fetch(item, source, folder)
                sha256 = sha256_of(file)
                try:
                    check = originals.check(item, source, sha256, _record(item, folder), folder)
                    state = _loaded(item, net, file, source, folder)
                except MtkdError as error:
                    aside = originals.set_aside(file, sha256)
                    raise download.TransferError(f"{error} The file was set aside as {aside}.") from error
                _write(item, state, source, sha256, check, folder)
                if file.parent == folder / "downloads" and source.member is None:
                    file.unlink()
                return
        except download.TransferError as error:
            reasons.append(str(error))
            logger.info("%s from %s: %s", item.name, source.url, error)
    raise MtkdError(originals.not_obtained(item, folder, reasons))


def _network(item: Entry) -> nn.Module:
    return building.build_trusted(item.facts["arch"], source=f"The zoo's entry {item.name}")


def _loaded(item: Entry, net: nn.Module, file: Path, source: Source, folder: Path) -> dict[str, Tensor]:
    """Weights of the original in our naming, proven to fit `net` strictly."""
    with originals.checkpoint_of(file, source, folder) as original:
        state = files.read_checkpoint(original).state
    loading.load_into(net, state, source=f"{source.file} for {item.name}")
    # Of a file that holds more, a network that chooses has taken its own.
    return net.state_dict() if hasattr(net, "adopt") else keymaps.to_basicsr(state)


def _write(
    item: Entry, state: Mapping[str, Tensor], source: Source, sha256: str, check: originals.Check, folder: Path
) -> None:
    """Write the converted file and the record beside it."""
    origin = {"url": source.url, "file": source.file, "sha256": sha256, "check": check}
    target = folder / f"{item.name}.safetensors"
    with atomic(target) as fresh:
        files.write_safetensors(fresh, state, item.facts | {"source": origin})
        record = {"name": item.name, "source": origin, "sha256": sha256_of(fresh)}
        # The record first: a file without one is refused, a record without its file is only a pin.
        with atomic(folder / f"{item.name}.json") as listed:
            listed.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if check == "pinned":
        logger.warning(
            "No hash of %s was ever published. It fits %s exactly, and from now on its sha256 %s is expected.",
            source.file,
            item.name,
            sha256,
        )


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """One process at a time for one name, in a folder that can be written to."""
    from filelock import FileLock

    try:
        (folder / "downloads").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "downloads" / f".{name}.lock"):
            yield
    except OSError as error:
        raise MtkdError(
            f"The weights folder {folder} cannot be written to ({error.strerror or error}). Name another one with "
            "--weights-dir or "
            f"the environment variable MTKD_HOME, or make room in it."
        ) from error
