"""Image files with the parts that a network does not process: transparency, 16 bits, a colour profile."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_header
from mtkd.data.images import decode_pixels, decode_transparent, encode, read_bytes, write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEEPS_ALPHA = (".png", ".tif", ".tiff", ".webp")
_KEEPS_DEPTH = (".png", ".tif", ".tiff")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Photo:
    """An image and what belongs to it.

    Attributes:
        pixels: (H, W, 3) RGB, or (H, W) where `grey` is written; uint8 or uint16.
        alpha: (H, W) of the same dtype, or None.
        profile: ICC profile of the pixels, or None.
        grey: the file has one colour channel.
        lost: what of the file is not kept, in words.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    profile: bytes | None = None
    grey: bool = False
    lost: tuple[str, ...] = ()


def read_photo(path: Path) -> Photo:
    """The image file `path`, upright, in 8 or 16 bits.

    Raises:
        MtkdError: the file cannot be read or decoded, or has neither 8 nor 16 bits.
    """
    data = read_bytes(path)
    alpha, lost, header = None, [], None
    with suppress(MtkdError):  # a file that only OpenCV can read
        header = read_header(path, data)
    rgba = decode_transparent(data, path) if header is not None and header.alpha else None
    if rgba is None:
        pixels = decode_pixels(data, path)
    else:
        pixels, alpha = np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
    if pixels.dtype not in (np.uint8, np.uint16):
        raise MtkdError(f"{path} has {pixels.dtype} pixels; convert it to 8 or 16 bits with the tool that made it.")
    if header is None:
        return Photo(pixels)
    grey = header.mode in _GREY
    if header.alpha and alpha is None:
        lost.append("its transparent colour")
    profile = header.profile
    if profile is not None and profile[16:20] != (b"GRAY" if grey and alpha is None else b"RGB "):
        lost.append(f"its colour profile, which is for {profile[16:20].decode('ascii', 'replace').strip()} pixels")
        profile = None
    if header.frames > 1:
        lost.append(f"{header.frames - 1} of its {header.frames} pictures: the first is enlarged")
    return Photo(pixels, alpha, profile, grey, tuple(lost))


def write_photo(path: Path, photo: Photo) -> tuple[str, ...]:
    """Write `photo` in the format that the suffix of `path` says, and return in words what that format cannot hold.

    PNG holds everything, TIFF and WebP transparency, TIFF 16 bits. The file appears when it is complete.

    Raises:
        MtkdError: the image cannot be encoded, or the disk refuses.
    """
    suffix, lost = path.suffix.lower(), []
    pixels, alpha = photo.pixels, photo.alpha
    if alpha is not None and suffix not in _KEEPS_ALPHA:
        alpha = None
        lost.append("transparency")
    if pixels.dtype == np.uint16 and suffix not in _KEEPS_DEPTH:
        pixels, alpha = (None if part is None else _eight_bits(part) for part in (pixels, alpha))
        lost.append("16 bits")
    if photo.profile is not None and suffix != ".png":
        lost.append("the colour profile")
    assert pixels is not None
    if alpha is not None:
        colours = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        pixels = np.dstack([colours, alpha])
    data = encode(path, pixels)
    if photo.profile is not None and suffix == ".png":
        data = _with_profile(data, photo.profile)
    write_bytes(path, data)
    return tuple(f"{what}, which {suffix} does not keep: write a .png" for what in lost)


def _eight_bits(deep: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _with_profile(png: bytes, profile: bytes) -> bytes:
    """The bytes of a PNG with an ICC profile right behind its header, where the format wants it."""
    chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    end_of_header = 33
    return (
        b"".join([png[:end_of_header], struct.pack(">I", len(chunk) - 4), chunk, struct.pack(">I", zlib.crc32(chunk))])
        + png[end_of_header:]
    )
