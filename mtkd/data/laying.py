"""Known image sets laid out where the recipes look for them, from archives and folders of any layout.

Where a manifest has the pixels, they alone tell what an image is, whatever it is called. Where only names are known, an
image is taken by its name, from a folder that is not one of lq images, and only if no other file could be meant.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mtkd.contracts import MtkdError
from mtkd.data import incoming
from mtkd.data.headers import read_header
from mtkd.data.images import decode_image, read_image, try_writing, write_bytes, write_image
from mtkd.data.incoming import Incoming
from mtkd.data.known import KnownSet
from mtkd.data.laid import State, difference, how_known, inspect, lq_problems
from mtkd.data.manifests import Form, digest
from mtkd.data.paired import raise_problems
from mtkd.data.preparing import for_each, write_meta
from mtkd.data.resize import bicubic_lq, levels_from_bicubic
from mtkd.runtime import given
from mtkd.runtime.background import BackgroundCalls
from mtkd.runtime.progress import Log, Progress

MOST_PIXELS = 1 << 27
"""An image that claims more is not decoded: it is a bomb, and in no known set."""
_LQ_FOLDER = re.compile(
    r"(^|[\W_])(lr|lq|x[2348]|srf|sub|unknown|wild|mild|difficult)([\W_]|$)|^(lr|lq)|(lr|lq)$|bicubic|bicx", re.I
)
_LOOKED_AT = 3
"""lq images of a folder that are held against MATLAB's bicubic; `mtkd data check --bicubic` holds all."""
_ROUNDING = 2
"""Levels of 255 by which two implementations of the same filter may differ."""
_SHORT = 20.0
"""Seconds."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.I)
"""Names that are devices on Windows, from where the folder may be read."""


class Planned(NamedTuple):
    """The place of an image that its name tells."""

    state: State
    name: str


class _Job:
    """One call of `lay`: what is still wanted, and what came so far."""

    def __init__(self, states: Sequence[State], *, link: bool, scales: Sequence[int]) -> None:
        self.states, self.link, self.scales = states, link, scales
        self.by_pixels = [state for state in states if state.manifest.has_pixels]
        self.planned: dict[tuple[Path, str], Planned] = {}
        self.near: dict[tuple[Path, str], str] = {}
        """(HR folder, name) -> what a file that is called so, or like it, was instead."""
        self.passed: dict[Path, list[tuple[Path, str]]] = {}
        """HR folder -> (source, name) of files that are called so, and lie in folders of lq images."""
        self._placed: set[Path] = set()
        self._lock = threading.Lock()

    def wants_pixels(self) -> bool:
        """Some image that its pixels tell is missing, or has come, but not whole."""
        with self._lock:
            return any(
                state.missing or any(state.images[name] in self._placed for name in state.cut)
                for state in self.by_pixels
            )

    def take(self, image: Incoming) -> None:
        """Put `image` where it belongs; nothing happens when it belongs nowhere."""
        planned = self.planned.get((image.source, image.name))
        stem = _stem(image.name)
        meant = [] if planned else [state for state in self.by_pixels if stem in state.missing]
        try:
            encoded = image.read()
            size = read_header(str(image), encoded).size
            if size[0] * size[1] > MOST_PIXELS:
                raise MtkdError(f"{image} claims {size[0]}x{size[1]} pixels; no image of a known set is so large")
            fitting = [state for state in self.by_pixels if size[::-1] in state.manifest.sizes]
            form = digest(decode_image(encoded, str(image))) if planned or fitting else None
        except MtkdError as error:
            for state in [planned.state] if planned else meant:
                self.near[state.hr, planned.name if planned else stem] = str(error).rstrip(".")
            return
        if planned is not None:
            self._put(planned.state, planned.name, image, encoded, None)
        for state in fitting:
            for name in state.manifest.by_form.get(form, ()) if form else ():
                self._put(state, name, image, encoded, form)
        for state in meant:
            if form is None or stem not in state.manifest.by_form.get(form, ()):
                self.near[state.hr, stem] = f"{image} {difference(size, state.manifest.forms[stem])}"

    def _put(self, state: State, name: str, image: Incoming, encoded: bytes, form: Form | None) -> None:
        path = state.hr / f"{name}{PurePosixPath(image.name).suffix.lower()}"
        with self._lock:
            old = state.images.get(name)
            if old is not None and not (old in self._placed and self._better(state, name, form)):
                return
            if self.link and image.file is not None:
                _link(path, image.file)
            else:
                write_bytes(path, encoded)
            state.images[name] = path
            if form is not None:
                state.forms[name] = form
            if old is not None and old != path:
                old.unlink(missing_ok=True)
            self._placed.add(path)

    def _better(self, state: State, name: str, form: Form | None) -> bool:
        """`form` serves more of the wanted scales than the one that is there, or as many and has more pixels."""
        whole, here = state.manifest.forms.get(name, ()), state.forms.get(name)
        if form is None or here is None:
            return False

        def worth(form: Form) -> tuple[int, int]:
            fits = [scale for scale in self.scales if form.lq_size(scale) == whole[0].lq_size(scale)]
            return len(fits), form.width * form.height

        return worth(form) > worth(here)


def lay(
    sets: Sequence[KnownSet],
    sources: Sequence[Path],
    root: Path,
    *,
    scales: Sequence[int] = (2, 3, 4),
    link: bool = False,
    workers: int = 1,
    log: Log = print,
) -> None:
    """Lay out `sets` under `root` from archives and folders, with lq images and meta_info files.

    What is there already and right stays as it is, so that a call that was ended goes on when it is repeated; what is
    there and is not of the set is never overwritten. Files get the names of the manifest and keep their bytes.

    Args:
        sources: archives (zip, tar, packed tar) and folders, searched with their sub-folders.
        scales: of the lq images, MATLAB's bicubic; none makes none.
        link: make symbolic links to the files instead of copies; folders only.
        workers: threads.
        log: gets a line for each folder.

    Raises:
        MtkdError: a file in the way, an archive that is refused, a name that several files have: before anything is
            written. Or images that were not found, or lq images of another filter that were there: then what was found
            is in its place.
    """
    for source in sources:
        incoming.check_source(source)
        if link and not source.is_dir():
            raise MtkdError(
                f"{source} is an archive, and --link makes links to files. Unpack it, or leave --link away."
            )
    states = []
    for known in sets:
        for part in known.parts:
            with Progress(f"Looking at {known.name}/{part.hr}", _patient(log)) as progress:
                states.append(inspect(known, part, root, pixels=True, workers=workers, progress=progress))
    raise_problems(
        "These files are in the way; remove or rename them",
        [text for state in states for text in state.wrong]
        + [f"{path} is not an image of this set" for state in states for path in state.strangers],
    )
    job = _Job(states, link=link, scales=scales)
    names = {source: incoming.names_in(source) for source in sources}
    for state in states:
        if state.lacking and not state.manifest.has_pixels:
            job.planned |= _plan(job, state, names)
    wanted = {
        source: found if job.wants_pixels() else [name for name in found if (source, name) in job.planned]
        for source, found in names.items()
    }
    if any(wanted.values()):
        try_writing(root)  # a disk that refuses is found before hours of reading
        _take_all(job, wanted, workers, log)
    problems = _finish(job, names, workers, log)
    raise_problems("Not everything could be laid out", problems)


def _take_all(job: _Job, wanted: dict[Path, list[str]], workers: int, log: Log) -> None:
    total, done = sum(map(len, wanted.values())), 0
    with Progress("Reading", _patient(log)) as progress, BackgroundCalls(workers=workers, waiting=workers + 2) as calls:
        for source, found in wanted.items():
            for image in incoming.images_in(source, found):
                calls.submit(job.take, image)
                done += 1
                progress(min(done, total), total)
                if not job.planned and not job.wants_pixels():
                    return


def _finish(job: _Job, names: dict[Path, list[str]], workers: int, log: Log) -> list[str]:
    """Make lq images and meta files of what is complete; what is to be said of the rest."""
    problems: list[str] = []
    anything = any(state.images for state in job.states)
    for state in job.states:
        if state.lacking:
            beside = [other for other in job.states if other.folder == state.folder and other is not state]
            if not state.images and any(other.images for other in beside):
                log(f"{state.hr}: no image of it was given.")
                continue
            problems.append(f"{state.hr}: {state.said_missing()}")
            problems += [text for (hr, name), text in job.near.items() if hr == state.hr and name in state.missing]
            if passed := job.passed.get(state.hr):
                problems.append(
                    f"{state.hr}: {len(passed)} files that are called so were left out, because their folder is called "
                    f"like one of lq images: {passed[0][1]} in {passed[0][0]}. If they are not, give --from that folder"
                )
            continue
        state.images = {name: state.images[name] for name in sorted(state.images)}
        log(f"{state.hr}: {len(state.images)} images, {how_known(state)}.")
        for scale in job.scales:
            if unfit := state.unfit(scale):
                problems.append(
                    f"{state.hr}: at x{scale}, {len(unfit)} of {len(state.images)} images ({unfit[0]}, ...) lack their "
                    "last rows or columns: they come from an archive for another scale. Remove them and give the "
                    f"whole images, or leave {scale} out of --scale"
                )
            else:
                problems += _make_lq(state, scale, workers, log)
        log(write_meta(state.hr, state.folder / state.part.meta, 1))
    if not anything:
        for source in filter(Path.is_dir, names):
            if held := incoming.archives_in(source):
                problems.append(
                    f"{source} holds archives, which are not opened: name them, as in --from {source / held[0]}"
                )
    return problems


def _make_lq(state: State, scale: int, workers: int, log: Log) -> list[str]:
    files = list(state.lq_files(scale))
    there = [(name, file) for name, file in files if file.exists()]
    todo = [(name, file) for name, file in files if not file.exists()]

    def one(of: tuple[str, Path]) -> None:
        name, file = of
        write_image(file, bicubic_lq(read_image(state.images[name]), scale))

    folder = state.part.lq_folder(state.folder, scale)
    with Progress(f"Making lq x{scale} of {state.folder.name}/{state.part.hr}", _patient(log)) as progress:
        for_each(one, todo, workers, f"{folder} cannot be made", progress)
    log(f"{folder}: {len(todo)} made, {len(state.images) - len(todo)} were there.")
    return lq_problems(state, scale, bicubic=False, workers=workers) or _foreign_lq(state, there, scale)


def _foreign_lq(state: State, there: Sequence[tuple[str, Path]], scale: int) -> list[str]:
    """Whether lq images that were there come from another filter than MATLAB's bicubic, judged by a few of them."""
    for name, file in there[:: max(1, len(there) // _LOOKED_AT)][:_LOOKED_AT]:
        if (apart := levels_from_bicubic(read_image(file), read_image(state.images[name]), scale)) > _ROUNDING:
            return [
                f"{file} is not MATLAB's bicubic of {state.images[name].name} (up to {apart} of 255 levels apart): "
                f"another filter made it. Remove {file.parent}, and this command makes it"
            ]
    return []


def _plan(job: _Job, state: State, names: dict[Path, list[str]]) -> dict[tuple[Path, str], Planned]:
    """The files that are the missing images of a set whose pixels are not known: (source, name) -> its place."""
    found: dict[str, list[tuple[Path, str]]] = {}
    folder = state.folder.name.lower()
    for source, inside in names.items():
        for name in inside:
            folders = _folders(source, name)
            stem = PurePosixPath(name).stem
            here = (
                stem in state.manifest.forms
                if state.manifest.forms
                else any(folder in part.lower() for part in folders)
            )
            if not here or stem in state.images:
                continue
            # What lies above the folder that was given is the user's business, except that it may name the set.
            if any(map(_LQ_FOLDER.search, folders[1:])):
                job.passed.setdefault(state.hr, []).append((source, name))
            else:
                found.setdefault(stem, []).append((source, name))
    problems, plan = [], {}
    for stem, files in sorted(found.items()):
        own = [file for file in files if state.part.hr.lower() in map(str.lower, _folders(*file))]
        chosen = own if len(own) == 1 else files
        if len(chosen) > 1:
            shown = " and ".join(f"{name} in {source}" for source, name in chosen[:2])
            problems.append(f"{stem}: {shown} are called so; give --from a folder that holds one of them")
        elif _DEVICES.fullmatch(stem):
            problems.append(f"{chosen[0][1]}: Windows takes the name for a device")
        else:
            given.check_name(stem)
            plan[chosen[0]] = Planned(state, stem)
    if not state.manifest.forms and found and len(found) != state.lacking:
        problems.append(
            f"{len(found)} images were found, and {state.lacking} are missing: their names are not known here"
        )
    raise_problems(f"It is not clear which files are the images of {state.hr}", problems)
    return plan


def _folders(source: Path, name: str) -> list[str]:
    """The folder around the source, the source without suffixes, the folders in it."""
    inside = PurePosixPath(name.replace("\\", "/")).parent.parts
    above = ("", *source.resolve().parts)[-2:]
    return [above[0], above[1].split(".")[0], *inside]


def _stem(name: str) -> str:
    """Name without folders, suffix and what SelfExSR adds to the names of HR images."""
    return re.sub(r"_SRF_\d+_HR$", "", PurePosixPath(name.replace("\\", "/")).stem)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.symlink(os.path.abspath(target), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _patient(log: Log) -> Log:
    """`log` without what is said in the first seconds: short jobs say at their end what they did."""
    began = time.monotonic()
    return lambda text: log(text) if time.monotonic() - began > _SHORT else None
