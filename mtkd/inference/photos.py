"""The images that `mtkd upscale` is given, each with the file that it becomes: files, folders, patterns, streams."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtkd.contracts import MtkdError
from mtkd.data.formats import PHOTO_SUFFIXES
from mtkd.data.images import IMAGE_SUFFIXES, expanded
from mtkd.runtime.progress import Log

STREAM = "-"
"""Standard input as IN, standard output as OUT."""
FORMATS = ("png", "webp", "jpg", "same")
_LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Job:
    """An image and what it becomes.

    Attributes:
        source: the file; what messages call it where it comes from elsewhere.
        out: the file to write; of a stream only its suffix says something.
        data: the bytes of the image where they were read already.
        stream: the result goes to standard output.
    """

    source: Path
    out: Path
    data: bytes | None = None
    stream: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        jobs: the images that are left to make, in order.
        into: where they go, for messages.
        alone: one image was named, so that its problem is that of the whole.
        quality: of JPEG and WebP; None for the usual one.
    """

    jobs: list[Job]
    into: str
    alone: bool
    quality: int | None = None


def plan(
    sources: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,
    quality: int | None = None,
    recursive: bool = True,
    overwrite: bool = False,
    skip_existing: bool = False,
    stdin: Callable[[], bytes] | None = None,
    log: Log = print,
) -> Plan:
    """What `sources` become in `destination`; no image is opened and nothing is written.

    Args:
        sources: images, folders, patterns such as `photos/**/*.jpg`, `-` for standard input.
        destination: the image to write, the folder to fill, or `-`. A folder's own folders are kept in it; several
            folders, and those among several sources, are kept by name.
        format: one of `FORMATS`; "same" writes gif, avif, heic and others that are only read as PNG. None takes the
            suffix of `destination`, and PNG in a folder.
        quality: of JPEG and WebP, 1 to 100.
        recursive: folders with the folders in them, but for hidden ones, links, and `destination`.
        stdin: gives what standard input holds.

    Raises:
        MtkdError: nothing is found, two images would become one file or an image its own enlargement, or a file exists
            and neither `overwrite` nor `skip_existing` is given.
    """
    if format is not None and format not in FORMATS:
        raise MtkdError(f"There is no format {format!r} here. Take one of {', '.join(FORMATS)}.")
    if quality is not None and not 1 <= quality <= 100:
        raise MtkdError(f"The quality of an image is a whole number from 1 to 100, found {quality}.")
    out = os.fspath(destination)
    found = list(_found([os.fspath(source) for source in sources], _absolute(out), recursive, log))
    alone = len(sources) == 1 and not _is_many(sources[0])
    if out == STREAM:
        if not alone:
            raise MtkdError("Standard output takes one image. Name one image, or a folder as OUT.")
        jobs = [_streamed(found[0][0], format, stdin)]
    else:
        jobs = _named(found, out, format, alone, stdin, one_source=sources[0] if len(sources) == 1 else None)
        if format == "same" and (read := {job.source.suffix for job in jobs} - {job.out.suffix for job in jobs}):
            log(f"Written as PNG, because they are only read: {', '.join(sorted(read))}.")
        _check_distinct(jobs)
    if quality is not None and jobs and not any(job.out.suffix.lower() in _LOSSY for job in jobs):
        raise MtkdError(f"--quality belongs to JPEG and WebP, and {jobs[0].out.suffix} is written: add --format jpg.")
    if out != STREAM:
        jobs = _wanted(jobs, out, overwrite=overwrite, skip_existing=skip_existing, log=log)
    return Plan(jobs, "standard output" if out == STREAM else out, alone, quality)


def _streamed(source: Path, format: str | None, stdin: Callable[[], bytes] | None) -> Job:
    data = _bytes_of(source, stdin)
    return Job(_shown(source), Path(f"stdout{_suffix(format, source, data)}"), data, stream=True)


def _named(
    found: list[tuple[Path, Path]],
    out: str,
    format: str | None,
    alone: bool,
    stdin: Callable[[], bytes] | None,
    *,
    one_source: str | os.PathLike[str] | None,
) -> list[Job]:
    """A job for each of `found` that goes into a folder, or into the one file that `out` names."""
    destination = Path(out)
    into_folder = destination.is_dir() or out.endswith(("/", os.sep))
    if alone and not into_folder:
        source = found[0][0]
        suffix = destination.suffix.lower()
        if suffix in PHOTO_SUFFIXES and suffix not in IMAGE_SUFFIXES:
            raise MtkdError(f"{suffix} is read and not written: name {destination.with_suffix('.png')} instead.")
        if suffix not in IMAGE_SUFFIXES:
            raise MtkdError(
                f"{destination} is neither a folder nor an image's name: {' '.join(IMAGE_SUFFIXES)}. For a folder that "
                f"is not there yet write {destination}/."
            )
        data = _bytes_of(source, stdin)
        wanted = None if format is None else _suffix(format, source, data)
        if wanted is not None and _kind(wanted) != _kind(suffix):
            raise MtkdError(f"--format {format} asks for {wanted}, and {destination} ends with {suffix}. Change one.")
        return [Job(_shown(source), destination, data)]
    if destination.suffix.lower() in IMAGE_SUFFIXES and not into_folder:
        what = f"{one_source} is a folder" if one_source is not None else f"There are {len(found)} images"
        raise MtkdError(f"{what}, and {destination} is the name of an image. Give the name of a folder to fill.")
    if destination.exists() and not destination.is_dir():
        raise MtkdError(f"{destination} is a file; give the name of a folder to fill.")
    jobs = []
    for source, name in found:
        data = _bytes_of(source, stdin)
        jobs.append(
            Job(_shown(source), destination / name.with_name(f"{name.stem}{_suffix(format, name, data)}"), data)
        )
    return jobs


def _found(sources: list[str], out: Path, recursive: bool, log: Log) -> Iterator[tuple[Path, Path]]:
    """Each image, and its name in the folder to fill."""
    if len(sources) > 1 and STREAM in sources:
        raise MtkdError("Standard input is one image. Give `-` alone.")
    for source in sources:
        path = expanded(source)
        if source == STREAM:
            yield Path(STREAM), Path("stdin")
        elif path.is_dir():
            root = Path(path.resolve().name) if len(sources) > 1 else Path()
            for image in _of_folder(path, out, recursive, log):
                yield image, root / image.relative_to(path)
        elif path.exists() or path.is_symlink():
            yield path, Path(path.name)
        elif glob.has_magic(source):
            yield from _of_pattern(path, out, recursive, log)
        else:
            raise MtkdError(f"There is no image or folder {source}.")


def _of_folder(folder: Path, out: Path, recursive: bool, log: Log) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise MtkdError(f"{error.filename} is not a folder to read ({error.strerror or error}).") from error

    images, others = [], []
    for place, folders, names in os.walk(folder, onerror=refuse):
        # A second run would enlarge what the first has made.
        kept = [name for name in folders if not name.startswith(".") and _absolute(Path(place, name)) != out]
        folders[:] = sorted(kept) if recursive else []
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in PHOTO_SUFFIXES:
                others += [path] if path.is_file() else []
            elif path.is_file() or not path.exists():  # a link that leads nowhere is reported
                images.append(path)
    if not images:
        where = f"{folder} and the folders in it hold" if recursive else f"{folder} holds"
        raise MtkdError(f"{where} no image ({' '.join(PHOTO_SUFFIXES)}).")
    if others:
        first = min(others).relative_to(folder)
        log(f"Left out {len(others)} files of {folder} that are not images by their names, such as {first}.")
    return sorted(images, key=lambda path: path.relative_to(folder).parts)


def _of_pattern(pattern: Path, out: Path, recursive: bool, log: Log) -> Iterator[tuple[Path, Path]]:
    """The images that match, named from the folder on in which the pattern begins."""
    matched = sorted(Path(path) for path in glob.glob(str(pattern), recursive=True))
    parts = pattern.parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    images: dict[Path, None] = {}
    for path in matched:
        if out in _absolute(path).parents and out != _absolute(root):
            continue
        if path.is_dir() and "**" not in parts:
            images.update(dict.fromkeys(_of_folder(path, out, recursive, log)))
        elif path.suffix.lower() in PHOTO_SUFFIXES and path.is_file():
            images[path] = None
    if not images:
        raise MtkdError(f"{pattern} matches no image ({' '.join(PHOTO_SUFFIXES)}).")
    yield from ((image, image.relative_to(root)) for image in images)


def _is_many(source: str | os.PathLike[str]) -> bool:
    """Whether `source` names a folder or a pattern, however many images are there now."""
    path = expanded(source)
    return path.is_dir() or not (os.fspath(source) == STREAM or path.exists() or path.is_symlink())


def _suffix(format: str | None, source: Path, data: bytes | None) -> str:
    if format in (None, "png"):
        return ".png"
    if format != "same":
        return f".{format}"
    suffix = source.suffix if data is None else _sniffed(data)
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ".png"


def _kind(suffix: str) -> str:
    return {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix.lower(), suffix.lower())


def _sniffed(data: bytes) -> str:
    """The suffix of a file of these bytes, as far as such files are written."""
    from mtkd.data.headers import read_header

    kinds = {"JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
    try:
        return kinds.get(read_header(STREAM, data).kind, ".png")
    except MtkdError:
        return ".png"


def _bytes_of(source: Path, stdin: Callable[[], bytes] | None) -> bytes | None:
    if str(source) != STREAM:
        return None
    data = stdin() if stdin is not None else b""
    if not data:
        raise MtkdError("Standard input is empty. Pipe an image into it: mtkd upscale - out.png < photo.jpg")
    return data


def _shown(source: Path) -> Path:
    return Path("standard input") if str(source) == STREAM else source


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))


def _check_distinct(jobs: list[Job]) -> None:
    first: dict[Path, Path] = {}
    shared = [job for job in jobs if first.setdefault(job.out, job.source) != job.source]
    if shared:
        job, many = shared[0], f" ({len(shared)} such pairs)" if len(shared) > 1 else ""
        hint = ", or keep their suffixes with --format same" if len({job.out.suffix for job in jobs}) == 1 else ""
        raise MtkdError(
            f"{first[job.out]} and {job.source} would both become {job.out}{many}; rename one of them{hint}."
        )
    for job in jobs:
        if job.out.exists() and job.source.exists() and job.out.samefile(job.source):
            raise MtkdError(f"{job.source} would be replaced by its own enlargement. Choose another OUT.")


def _wanted(jobs: list[Job], out: str, *, overwrite: bool, skip_existing: bool, log: Log) -> list[Job]:
    """The jobs that are left where some files exist."""
    existing = [job.out for job in jobs if job.out.exists()]
    if skip_existing:
        if existing:
            log(f"{len(existing)} {'image exists' if len(existing) == 1 else 'images exist'} in {out}.")
        return [job for job in jobs if not job.out.exists()]
    if existing and not overwrite:
        raise MtkdError(
            f"{existing[0]} exists ({len(existing)} such files); choose another folder, or add --overwrite, or "
            "--skip_existing to make only the others."
        )
    return jobs
