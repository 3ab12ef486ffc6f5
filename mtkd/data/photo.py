"""Image files with the parts that a network does not process: transparency, 16 bits, a colour profile."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data import formats
from mtkd.data.headers import Header, read_header
from mtkd.data.images import decode_pixels, decode_transparent, encode, read_bytes, write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEEPS_ALPHA = (".png", ".tif", ".tiff", ".webp")
_KEEPS_DEPTH = (".png", ".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
_TIFF = (".tif", ".tiff")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_32_BITS = ("I", "F")
_REMEDY = "Convert it to 8 or 16 bits with the tool that made it."

JPEG_QUALITY = 95
"""Of a JPEG whose quality nobody names: OpenCV's. From 90 on colours keep their full resolution."""


@dataclass(frozen=True)
class Photo:
    """An image and what belongs to it.

    Attributes:
        pixels: (H, W, 3) RGB, or (H, W) where `grey` is written; uint8 or uint16.
        alpha: (H, W) of the same dtype, or None.
        profile: ICC profile of the pixels, or None.
        grey: the file has one colour channel.
        lost: what of the file is not kept, in words.
        kind: Pillow's name of the file's format, such as "PNG"; "" where Pillow does not know it.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    profile: bytes | None = None
    grey: bool = False
    lost: tuple[str, ...] = ()
    kind: str = ""


def check_photo(path: Path, encoded: bytes | None = None) -> Header | None:
    """The header of a photograph, None where it cannot be read, which decoding will explain; nothing is decoded.

    Args:
        encoded: the bytes of the file, where they are known.

    Raises:
        MtkdError: it is animated, or a package that its format needs is missing.
    """
    try:
        first = encoded
        if first is None:
            if not path.is_file():
                return None
            with open(path, "rb") as file:
                first = file.read(32)
    except OSError:
        return None
    formats.prepare(first, path)
    try:
        header = read_header(path, encoded)
    except MtkdError:
        return None
    formats.check_still(header, path)
    return header


def read_photo(path: Path) -> Photo:
    """The image file `path`, upright, in 8 or 16 bits.

    Raises:
        MtkdError: the file cannot be read or decoded, is animated, or has neither 8 nor 16 bits.
    """
    return decode_photo(read_bytes(path), path)


def decode_photo(encoded: bytes, path: Path) -> Photo:
    """`read_photo` of the bytes of a file; messages name `path`.

    Raises:
        MtkdError: as `read_photo`.
    """
    header = check_photo(path, encoded)
    alpha, lost = None, []
    managed = False
    if header is not None and formats.needs_pillow(header):
        pixels, managed = formats.decode_with_pillow(encoded, path, alpha=header.alpha)
    else:
        try:
            rgba = decode_transparent(encoded, path) if header is not None and header.alpha else None
            pixels = decode_pixels(encoded, path) if rgba is None else rgba
        except MtkdError as error:
            if header is None or header.mode not in _32_BITS:
                raise
            raise MtkdError(f"{path} has 32 bits for a channel. {_REMEDY}") from error
    if pixels.shape[2] == 4:
        pixels, alpha = np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    if pixels.dtype not in (np.uint8, np.uint16):
        raise MtkdError(f"{path} has {pixels.dtype} pixels. {_REMEDY}")
    if header is None:
        return Photo(pixels)
    grey, profile = header.mode in _GREY, header.profile
    if header.alpha and alpha is None:
        lost.append("its transparent colour")
    if header.mode == "CMYK":
        lost.append("its CMYK colours, which become sRGB")
        profile = None if managed else profile
    if profile is not None and profile[16:20] != (b"GRAY" if grey and alpha is None else b"RGB "):
        pixels_of = profile[16:20].decode("ascii", "replace").strip() or "unknown"
        lost.append(f"its colour profile, which is for {pixels_of} pixels")
        profile = None
    if header.frames > 1:
        lost.append(f"{header.frames - 1} of its {header.frames} pictures: the first is enlarged")
    return Photo(pixels, alpha, profile, grey, tuple(lost), header.kind)


def without_hidden_colours(photo: Photo) -> Photo:
    """`photo` with the colour of each wholly transparent pixel taken from the nearest one that is seen.

    Nobody sees those colours, black or white in most files; but a network mixes neighbours, and they would shine at the
    edges of the enlarged image. Where nothing is seen, or everything, the photo stays as it is.
    """
    if photo.alpha is None:
        return photo
    hidden = photo.alpha == 0
    if not hidden.any() or hidden.all():
        return photo
    import cv2

    # The distance to the nearest 0, and the number of that 0.
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    at = np.zeros(int(nearest.max()) + 1, dtype=np.int64)
    seen = np.flatnonzero(~hidden)
    at[nearest.reshape(-1)[seen]] = seen
    pixels = photo.pixels.copy()
    flat = pixels.reshape(hidden.size, -1)
    flat[hidden.reshape(-1)] = flat[at[nearest[hidden]]]
    return replace(photo, pixels=pixels)


def write_photo(path: Path, photo: Photo, *, quality: int | None = None) -> tuple[str, ...]:
    """Write `photo` in the format that the suffix of `path` says, and return in words what that format cannot hold.

    PNG holds everything, TIFF and WebP transparency, TIFF 16 bits; all but BMP a colour profile, TIFF that of 8 bits.
    The file appears when it is complete.

    Args:
        quality: of a JPEG or WebP, 1 to 100. None for `JPEG_QUALITY`, and for a WebP without loss.

    Raises:
        MtkdError: the image cannot be encoded, or the disk refuses.
    """
    data, lost = encode_photo(path, photo, quality=quality)
    write_bytes(path, data)
    return lost


def encode_photo(path: Path, photo: Photo, *, quality: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """The bytes that `write_photo` writes, and what it returns.

    Raises:
        MtkdError: the image cannot be encoded.
    """
    suffix, lost = path.suffix.lower(), []
    pixels, alpha, profile = photo.pixels, photo.alpha, photo.profile
    if alpha is not None and suffix not in _KEEPS_ALPHA:
        alpha = None
        lost.append("transparency")
    if pixels.dtype == np.uint16 and suffix not in _KEEPS_DEPTH:
        pixels, alpha = (None if part is None else eight_bits(part) for part in (pixels, alpha))
        lost.append("16 bits")
    assert pixels is not None
    profiled_tiff = suffix in _TIFF and profile is not None and pixels.dtype == np.uint8
    by_pillow = profiled_tiff or suffix in (*_JPEG, ".webp")
    if profile is not None and not by_pillow and suffix != ".png":
        profile = None
        lost.append("the colour profile")
    if alpha is not None:
        colours = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        pixels = np.dstack([colours, alpha])
    if by_pillow:
        data = _encoded_by_pillow(path, pixels, profile, quality)
    else:
        data = encode(path, pixels)
        if profile is not None:
            data = _with_profile(data, profile)
    return data, tuple(f"{what}, which {suffix} does not keep: write a .png" for what in lost)


def eight_bits(deep: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The nearest levels of 8 bits, of the same range."""
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _encoded_by_pillow(path: Path, pixels: NDArray[Any], profile: bytes | None, quality: int | None) -> bytes:
    from PIL import Image

    suffix = path.suffix.lower()
    if suffix in _JPEG:
        level = JPEG_QUALITY if quality is None else quality
        kind, options = "JPEG", {"quality": level, "subsampling": 0 if level >= 90 else 2}
    elif suffix == ".webp":
        kind, options = "WEBP", {"lossless": True} if quality is None else {"quality": quality}
    else:
        kind, options = "TIFF", {"compression": "tiff_lzw"}
    file = io.BytesIO()
    try:
        Image.fromarray(pixels).save(file, kind, icc_profile=profile, **options)
    except (OSError, ValueError, MemoryError) as error:
        raise MtkdError(
            f"{path} cannot be encoded: a {suffix} of {pixels.shape[1]}x{pixels.shape[0]} pixels is more than can be "
            f"written ({error}). Write a .png."
        ) from error
    return file.getvalue()


def _with_profile(png: bytes, profile: bytes) -> bytes:
    """The bytes of a PNG with an ICC profile right behind its header, where the format wants it."""
    chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    end_of_header = 33
    return (
        b"".join([png[:end_of_header], struct.pack(">I", len(chunk) - 4), chunk, struct.pack(">I", zlib.crc32(chunk))])
        + png[end_of_header:]
    )
