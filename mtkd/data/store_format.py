"""The file of an `ImageStore`, without its pixels.

It is a safetensors file with one flat tensor, "images": every image as rows of RGB pixels, one image after the other.
Names, sizes and `facts` are JSON in its metadata, and beside them stands the CRC-32 of each image, entered when the
image is put.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtkd.contracts import MtkdError

StoreDtype = Literal["uint8", "float16"]

FORMAT = "mtkd image store 1"

SUMS = b'"crc32": "'

NO_SUM = "-" * 8

LONGEST_HEADER = 100_000_000
"""Bytes; safetensors reads no longer one."""

DTYPE_CODES: dict[StoreDtype, str] = {"uint8": "U8", "float16": "F16"}


def header_of(
    names: list[str], sizes: list[tuple[int, int]], facts: dict[str, Any], dtype: StoreDtype, *, sums: bool
) -> bytes:
    """First bytes of a store file, up to its values; with `sums` there is room for a checksum of each image.

    Raises:
        MtkdError: it is longer than safetensors reads.
    """
    count = sum(height * width * 3 for height, width in sizes)
    text = json.dumps(
        {
            "__metadata__": {
                "format": FORMAT,
                **({"crc32": NO_SUM * len(names)} if sums else {}),
                "names": json.dumps(names),
                "sizes": json.dumps(sizes),
                "facts": json.dumps(facts, sort_keys=True),
            },
            "images": {
                "dtype": DTYPE_CODES[dtype],
                "shape": [count],
                "data_offsets": [0, count * np.dtype(dtype).itemsize],
            },
        }
    ).encode()
    # Values begin at a multiple of 8 bytes, as the safetensors format asks.
    text = text.ljust(math.ceil(len(text) / 8) * 8)
    if len(text) > LONGEST_HEADER:
        raise MtkdError(f"{len(names)} images are more than one image store can name.")
    return len(text).to_bytes(8, "little") + text


def continues(path: Path, header: bytes) -> bool:
    """The half-written store file `path` begins with `header`, whichever sums have been entered."""
    with open(path, "rb") as file:
        there = file.read(len(header))
    if SUMS in header:
        start = header.index(SUMS) + len(SUMS)
        end = header.index(b'"', start)
        there = there[:start] + header[start:end] + there[end:]
    return there == header


def differences(path: Path, header: bytes) -> list[str]:
    """In what the header of the store file `path` differs from `header`."""

    def contents(text: bytes) -> dict[str, Any]:
        found = json.loads(text)
        metadata = found["__metadata__"]
        images = [metadata["names"], metadata["sizes"]]
        return {"images": images, "dtype": found["images"]["dtype"], **json.loads(metadata["facts"])}

    wanted = contents(header[8:])
    try:
        with open(path, "rb") as file:
            there = contents(file.read(int.from_bytes(file.read(8), "little")))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError):
        return ["format"]
    return [key for key in there | wanted if there.get(key) != wanted.get(key)] or ["format"]


def offsets_of(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Position of the first value of each (height, width) image, and behind the last one the number of all values."""
    offsets = [0]
    for height, width in sizes:
        offsets.append(offsets[-1] + height * width * 3)
    return offsets


def checked_offsets(names: Any, sizes: Any, facts: Any, sums: Any) -> list[int]:
    """`offsets_of(sizes)` of what a file says; ValueError where that describes no images."""
    good = (
        isinstance(names, list)
        and isinstance(facts, dict)
        and len(names) == len(sizes) == len(set(names)) > 0
        and all(isinstance(name, str) for name in names)
        and all(type(side) is int and 0 < side < 1 << 31 for size in sizes for side in size)
        and (sums is None or (isinstance(sums, str) and len(sums) == len(NO_SUM) * len(names)))
    )
    if not good:
        raise ValueError("no images")
    return offsets_of(sizes)
