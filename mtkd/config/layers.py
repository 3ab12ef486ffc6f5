"""What an option file leaves to others: `base: FILE`, on which it stands, `{scale}`, `{network_g}` and `{teacher}`.

All are resolved before anything is checked, so that the rest of the package gets complete options.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtkd.config import yaml_loader
from mtkd.config.problems import KeyPath, OptionError, Problem
from mtkd.config.yaml_nodes import Document
from mtkd.contracts import MtkdError
from mtkd.runtime.given import path as given_path
from mtkd.variants import TEACHERS

BASE = "base"
SCALE = "{scale}"
NETWORK = "{network_g}"
TEACHER = "{teacher}"


def load(path: str | Path) -> Document:
    """The document in the file at `path`, laid over its base when it names one.

    The base's path starts at the folder of the file that names it, and it has no base of its own. Mappings are merged,
    key by key; lists and single values take the place of the base's, and so does a mapping whose `type` is another,
    because the other keys belong to the type. `~` takes away what the base says. Two kinds of keys mean something by
    `~` and keep it: a loss term, `train.X_opt` (of a grid's row too), is switched off, and `param_key` reads a bare
    state dict. Keys of the base come first, in its order.

    Raises:
        OptionError: a file cannot be read or is no YAML of the dialect, or the base is none.
    """
    top = yaml_loader.load(path)
    if not isinstance(top.data, dict) or BASE not in top.data:
        return top
    target = base_of(top)
    below = yaml_loader.load(target)
    if not isinstance(below.data, dict):
        raise OptionError([Problem(below.file, None, "", "a base is an option file: a mapping, `key: value` lines.")])
    if BASE in below.data:
        message = f"{top.file} stands on this file, and a base has no base of its own. Write out what it takes from it."
        raise OptionError([Problem(below.file, below.lines[BASE,], BASE, message)])
    del top.data[BASE]
    replaced: set[KeyPath] = set()
    data = _merged(below.data, top.data, (), replaced)
    lines = {
        path: line
        for path, line in below.lines.items()
        if not any(path[:end] in replaced for end in range(1, len(path) + 1))
    }
    files = {path: below.file for path in lines if path not in top.lines}
    return Document(data, top.file, lines | top.lines, files)


def base_of(document: Document) -> Path:
    """The file that `document`, which has the key, names as its base.

    Raises:
        OptionError: it is no path, or nothing is there.
    """
    named = document.data[BASE]

    def fail(message: str) -> OptionError:
        return OptionError([Problem(document.file, document.lines.get((BASE,)), BASE, message)])

    if not isinstance(named, str):
        raise fail(f"must be the path of one option file, found {yaml_loader.dump(named).strip()[:60]}.")
    try:
        target = Path(document.file).parent / given_path(named)
    except MtkdError as error:
        raise fail(str(error)) from error
    if not os.path.exists(target):
        raise fail(f"there is no file {target} (the path starts at the folder of this file).")
    # The path in messages. Past a link, `..` may lead elsewhere.
    short = Path(os.path.normpath(target))
    return short if short.exists() and short.samefile(target) else target


def runs_among(files: Sequence[Path]) -> list[Path]:
    """Those of `files` that others of them do not stand on: a base alone is no run. Broken files stay."""
    standing: set[Path] = set()
    bases: set[Path] = set()
    for file in files:
        with contextlib.suppress(OptionError):
            document = yaml_loader.load(file)
            if isinstance(document.data, dict) and BASE in document.data:
                standing.add(file.resolve())
                bases.add(base_of(document).resolve())
    return [file for file in files if file.resolve() not in bases - standing]


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, as the file of `load` lies over its base; a `~` that takes nothing away is gone too."""
    return _without_nothing(_merged(below, above, (), set()), ())


def _without_nothing(data: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    return {
        key: _without_nothing(value, (*path, key)) if isinstance(value, dict) else value
        for key, value in data.items()
        if value is not None or _means_something(path, key)
    }


def _merged(below: dict[str, Any], above: dict[str, Any], path: KeyPath, replaced: set[KeyPath]) -> dict[str, Any]:
    """`above` over `below`; what is not `below`'s any more is added to `replaced`."""
    merged = dict(below)
    for key, value in above.items():
        was = merged.get(key)
        if isinstance(value, dict) and isinstance(was, dict) and value.get("type", was.get("type")) == was.get("type"):
            merged[key] = _merged(was, value, (*path, key), replaced)
            continue
        replaced.add((*path, key))
        if value is None and key in merged and not _means_something(path, key):
            del merged[key]
        else:
            merged[key] = value
    return merged


def _means_something(path: KeyPath, key: str) -> bool:
    """Whether `~` at this key is a value of its own, and does not just remove the base's."""
    return (path[-1:] == ("train",) and key.endswith("_opt")) or key in ("param_key", "param_key_g")


def place_of(word: str, data: Any, path: KeyPath = ()) -> KeyPath | None:
    """Where a text inside `data` first has `word` (`{scale}`) in it; None where none has."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        found = (place_of(word, value, (*path, key)) for key, value in items)
        return next((place for place in found if place is not None), None)
    return path if isinstance(data, str) and word in data else None


def with_scale(data: Any, scale: int) -> Any:
    """`data` with the number in place of `{scale}` in its texts; a text that is `{scale}` alone becomes the number.

    Nothing else in braces is touched: `{}x4` of BasicSR's `filename_tmpl` stays as it is.
    """
    return _filled(data, SCALE, scale)


def with_network(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with the name of `network_g` in place of `{network_g}` in its texts.

    A network that is written out is called by its `type`. Where there is neither, the reader reports it, and the texts
    stay.
    """
    network = data.get("network_g")
    name = network.get("type") if isinstance(network, dict) else network
    return _filled(data, NETWORK, name) if isinstance(name, str) else data


def with_teacher(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with the teacher of the student's family (`variants.TEACHERS`) in place of `{teacher}` in its texts.

    Raises:
        MtkdError: nobody has said which teacher is that of `network_g`.
    """
    network = data.get("network_g")
    if not isinstance(network, str) or network not in TEACHERS:
        known = ", ".join(f"{teacher} of {student}" for student, teacher in TEACHERS.items())
        raise MtkdError(
            f"{TEACHER} stands for the published teacher of the student's family, and "
            f"{network if isinstance(network, str) else 'a network that is written out'} has none. There are {known}. "
            "Write the teacher's weights instead: a file, or `zoo:NAME`."
        )
    return _filled(data, TEACHER, TEACHERS[network])


def _filled(data: Any, word: str, value: int | str) -> Any:
    if isinstance(data, dict):
        return {key: _filled(item, word, value) for key, item in data.items()}
    if isinstance(data, list):
        return [_filled(item, word, value) for item in data]
    if isinstance(data, str):
        return value if data == word else data.replace(word, str(value))
    return data
