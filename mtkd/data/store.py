"""`ImageStore`: images of any sizes, decoded once, in one memory-mapped file, laid out as `store_format` says.

A half-written store lives under another name (`PATH.partial`), so a file called PATH is complete by construction.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.store_format import (
    DTYPE_CODES,
    FORMAT,
    LONGEST_HEADER,
    NO_SUM,
    SUMS,
    StoreDtype,
    checked_offsets,
    continues,
    differences,
    header_of,
    offsets_of,
)
from mtkd.runtime.files import atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class ImageStore(Sequence["NDArray[Any]"]):
    """Opened store; nothing is read before it is used, and what is read stays in the system's page cache.

    Attributes:
        names: one per image, unique.
        sizes: (height, width) per image.
        offsets: position of each image's first value in `flat`; always a multiple of 3.
        facts: the plain dict that the writer was given (a fingerprint, a rule).
        flat: 1-D CPU tensor of all values, memory-mapped copy-on-write: changing it never changes the file. uint8
            in [0, 255], or float16 nominally in [0, 1].

    Raises:
        MtkdError: no such file, or not a complete store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expanded(path)
        try:
            if not self.path.is_file() and self.path.exists():
                raise ValueError("no regular file")
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                actual = os.fstat(file.fileno()).st_size
                header = json.loads(file.read(length) if 0 < length <= min(actual, LONGEST_HEADER) else b"")
            metadata = header["__metadata__"]
            if metadata["format"] != FORMAT:
                raise ValueError(metadata["format"])
            self.names: list[str] = json.loads(metadata["names"])
            self.sizes: list[tuple[int, int]] = [(h, w) for h, w in json.loads(metadata["sizes"])]
            self.facts: dict[str, Any] = json.loads(metadata["facts"])
            self.dtype: StoreDtype = next(
                name for name, code in DTYPE_CODES.items() if code == header["images"]["dtype"]
            )
            sums = metadata.get("crc32")
            self.offsets = checked_offsets(self.names, self.sizes, self.facts, sums)
            self._sums = None if sums is None else bytes.fromhex(sums)
            values = self.offsets.pop()
            nbytes = values * np.dtype(self.dtype).itemsize
            if (header["images"]["shape"], header["images"]["data_offsets"]) != ([values], [0, nbytes]):
                raise ValueError(header["images"])
        except OSError as error:
            raise MtkdError(f"Image store {self.path} cannot be opened: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
            raise MtkdError(
                f"{self.path} is not an image store of mtkd, or is damaged. Name another file, or delete it and make "
                "it again."
            ) from error
        missing = 8 + length + nbytes - actual
        if missing:
            what = f"truncated, by {missing:,d}" if missing > 0 else f"longer than its header says, by {-missing:,d}"
            raise MtkdError(f"Image store {self.path} is {what} bytes. Delete it and make it again.")
        # Copy-on-write, because torch has no read-only tensors.
        mapped = np.memmap(self.path, dtype=self.dtype, mode="c", offset=8 + length, shape=(values,))
        self.flat: Tensor = torch.from_numpy(mapped)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> NDArray[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Image `i` as an (H, W, 3) array of the store's dtype, a view of `flat`."""
        i = range(len(self))[i]
        height, width = self.sizes[i]
        start = self.offsets[i]
        return self.flat[start : start + height * width * 3].numpy().reshape(height, width, 3)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return self.flat.numel() * self.flat.element_size()

    def verify(self) -> None:
        """Compare every image with its CRC-32, on all CPUs; stores of earlier versions have none. Reads all of it.

        Raises:
            MtkdError: images have changed since they were put; they are named.
        """
        if self._sums is None:
            return
        with ThreadPoolExecutor(cpus()) as pool:
            found = pool.map(lambda i: zlib.crc32(self[i].reshape(-1).view(np.uint8).data), range(len(self)))
            damaged = [
                name
                for i, (name, value) in enumerate(zip(self.names, found, strict=True))
                if value != int.from_bytes(self._sums[4 * i : 4 * i + 4], "big")
            ]
        if damaged:
            more = f" and {len(damaged) - 4} more" if len(damaged) > 4 else ""
            raise MtkdError(
                f"Image store {self.path} is damaged: {len(damaged)} of {len(self)} images differ from their checksums "
                f"({', '.join(damaged[:4])}{more}). Delete it and make it again, and check the disk."
            )

    def digest(self) -> str:
        """SHA-256 of dtype, names, sizes and every value, wherever the file lies. Reads all of it."""
        digest = hashlib.sha256(json.dumps([self.dtype, self.names, self.sizes]).encode())
        values = self.flat.numpy().view(np.uint8)
        step = 1 << 26
        for start in range(0, len(values), step):
            digest.update(values[start : start + step].data)
        return digest.hexdigest()

    def mark(self) -> str:
        """SHA-256 of dtype, names, sizes and the images' checksums: reads nothing but the header, and tells contents
        apart that `verify` has compared with it. Of stores that carry no checksums it is `digest`.
        """
        if self._sums is None:
            return self.digest()
        known = json.dumps([self.dtype, self.names, self.sizes, self._sums.hex()])
        return hashlib.sha256(known.encode()).hexdigest()


class StoreWriter:
    """Fills a store image by image, in any order, and gives it its name when all are there.

    Opening a writer on a half-written store with the same names, sizes, dtype and facts goes on where a killed process
    stopped: `missing()` lists what is left. Several threads may share one writer. Several processes may each open one
    and fill different images, when the first has opened it before the others do; one of them calls `finish`.

    Args:
        durable: every image is flushed to the disk before it is marked, so that `missing()` is right even after the
            loss of the host. It costs a flush of the disk per image.

    Raises:
        MtkdError: no images, names not unique, or a half-written store with other contents has that name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        facts: Mapping[str, Any] | None = None,
        *,
        dtype: StoreDtype = "uint8",
        durable: bool = False,
    ) -> None:
        self.path = expanded(path)
        self.durable = durable
        self.sizes = [(int(height), int(width)) for height, width in sizes]
        self.dtype = np.dtype(dtype)
        if not names or len(names) != len(self.sizes) or len(set(names)) != len(names):
            raise MtkdError(f"Image store {self.path} needs at least one image, one size per name, and unique names.")
        self._partial, self._done_path = _working_paths(self.path)
        self._lock = threading.Lock()
        # The second is that of stores begun by an earlier version, which kept no sums.
        headers = [header_of(list(names), self.sizes, dict(facts or {}), dtype, sums=sums) for sums in (True, False)]
        offsets = offsets_of(self.sizes)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._partial.exists():
                self._create(headers[0], len(headers[0]) + offsets[-1] * self.dtype.itemsize)
            header = next((header for header in headers if continues(self._partial, header)), None)
            if header is None:
                raise MtkdError(
                    f"{self._partial} is a half-written image store of other contents: its "
                    f"{', '.join(differences(self._partial, headers[0]))} differ from what is to be written. Go on as "
                    "it was begun, delete it, or write this store under another name."
                )
            self._data = open(self._partial, "r+b", buffering=0)  # noqa: SIM115
            self._done = open(self._done_path, "r+b" if self._done_path.exists() else "w+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise MtkdError(f"Image store {self.path} cannot be written: {error.strerror or error}.") from error
        self._starts = [len(header) + start * self.dtype.itemsize for start in offsets[:-1]]
        self._sums_at = header.index(SUMS) + len(SUMS) if SUMS in header else None

    def missing(self) -> list[int]:
        """Indices of the images that have not been put yet, in ascending order."""
        with self._lock:
            self._done.seek(0)
            return _unmarked(self._done.read(), len(self.sizes))

    def put(self, i: int, image: NDArray[Any]) -> None:
        """Store image `i`: (H, W, 3) of its announced size; uint8 for a uint8 store, any float for a float16 store.

        Raises:
            MtkdError: other shape or kind of number, or the disk is full.
        """
        expected = (*self.sizes[i], 3)
        if image.shape != expected or (image.dtype != np.uint8 if self.dtype == np.uint8 else image.dtype.kind != "f"):
            raise MtkdError(
                f"Image {i} of store {self.path} must be {self.dtype} of shape {expected}, not {image.dtype} of shape "
                f"{image.shape}."
            )
        data = np.ascontiguousarray(image, dtype=self.dtype).data.cast("B")
        # Checksum of the pixels in memory, so that damage by the disk is noticed.
        checksum = f"{zlib.crc32(data):08x}".encode()
        try:
            with self._lock:
                self._data.seek(self._starts[i])
                while data:
                    data = data[self._data.write(data) :]
                if self._sums_at is not None:
                    self._data.seek(self._sums_at + len(NO_SUM) * i)
                    self._data.write(checksum)
                # The mark follows the pixels, so a process killed in between leaves the image missing.
                if self.durable:
                    os.fsync(self._data.fileno())
                self._done.seek(i)
                self._done.write(b"\1")
        except OSError as error:
            raise MtkdError(f"Image store {self.path} cannot be written: {error.strerror or error}.") from error

    def finish(self) -> ImageStore:
        """Give the complete store its name and open it.

        Raises:
            MtkdError: images are missing.
        """
        missing = self.missing()
        if missing:
            raise MtkdError(f"Image store {self.path} lacks {len(missing)} images, the first is number {missing[0]}.")
        try:
            os.fsync(self._data.fileno())
            self.close()
            os.replace(self._partial, self.path)
            self._done_path.unlink(missing_ok=True)
        except OSError as error:
            raise MtkdError(
                f"Image store {self.path} cannot be finished: {error.strerror or error}. Does another process write it?"
            ) from error
        return ImageStore(self.path)

    def close(self) -> None:
        """Close the files and leave the half-written store for a later writer."""
        self._data.close()
        self._done.close()

    def _create(self, header: bytes, size: int) -> None:
        # Marks of an older attempt would say that images are there.
        self._done_path.unlink(missing_ok=True)
        with atomic(self._partial) as temporary, open(temporary, "wb") as file:
            file.write(header)
            file.truncate(size)


def write(
    path: str | os.PathLike[str],
    names: Sequence[str],
    images: Sequence[NDArray[Any]],
    facts: Mapping[str, Any] | None = None,
    *,
    dtype: StoreDtype = "uint8",
) -> ImageStore:
    """Write (H, W, 3) arrays that are already in memory as a store and open it; see `StoreWriter` for the errors."""
    writer = StoreWriter(path, names, [image.shape[:2] for image in images], facts, dtype=dtype)
    try:
        for i, image in enumerate(images):
            writer.put(i, image)
        return writer.finish()
    finally:
        writer.close()


def missing_images(path: str | os.PathLike[str], count: int) -> list[int]:
    """`missing()` of the half-written store of `count` images at `path` without touching it: all when there is none."""
    partial, done = _working_paths(expanded(path))
    marks = b""
    with suppress(FileNotFoundError):
        marks = done.read_bytes() if partial.exists() else b""
    return _unmarked(marks, count)


def _working_paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".partial"), path.with_name(path.name + ".partial.done")


def _unmarked(marks: bytes, count: int) -> list[int]:
    return [i for i, mark in enumerate(marks[:count].ljust(count, b"\0")) if not mark]


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
