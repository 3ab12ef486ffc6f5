"""Formats of photographs beyond those of data sets: what they are called, what they hold, and Pillow's decoding."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.headers import Header, any_number_of_pixels
from mtkd.data.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

PHOTO_SUFFIXES = (*IMAGE_SUFFIXES, ".jfif", ".gif", ".avif", ".heic", ".heif", ".jp2", ".apng")
"""Of files that `photo.read_photo` reads; those of `IMAGE_SUFFIXES` are written too."""

LONGEST_SIDE = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}
"""Pixels of a side that the format can hold."""

_BY_OPENCV = ("PNG", "JPEG", "MPO", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
_MOVING = ("GIF", "WEBP", "PNG", "AVIF")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")


def prepare(encoded: bytes, path: str | os.PathLike[str]) -> None:
    """Make Pillow ready for the bytes of a file.

    Raises:
        MtkdError: it is HEIC or AVIF, and the package for it is missing.
    """
    brand = encoded[8:12] if encoded[4:8] == b"ftyp" else b""
    if brand in _HEIC:
        try:
            # By name: no extra brings it.
            import_module("pillow_heif").register_heif_opener()
        except ImportError as error:
            raise MtkdError(
                f"{path} is HEIC, which needs a package of its own: pip install pillow-heif. Or save it as JPEG."
            ) from error
    elif brand in _AVIF:
        from PIL import features

        if not features.check("avif"):
            raise MtkdError(f"{path} is AVIF, which this Pillow cannot read: pip install -U pillow. Or save it as PNG.")


def check_still(header: Header, path: str | os.PathLike[str]) -> None:
    """Refuse an animation, of which only one picture would come out.

    Raises:
        MtkdError: it is one. Pages of a TIFF and the pictures of a phone's photo are none.
    """
    if header.frames > 1 and header.kind in _MOVING:
        raise MtkdError(
            f"{path} is animated: it has {header.frames} pictures, and still images are upscaled. Save its pictures as "
            "files, for example with `ffmpeg -i FILE frames/%04d.png`, and upscale their folder."
        )


def needs_pillow(header: Header) -> bool:
    """Whether OpenCV does not decode the file, or not its colours."""
    return header.kind not in _BY_OPENCV or header.mode == "CMYK"


def decode_with_pillow(encoded: bytes, path: str | os.PathLike[str], *, alpha: bool) -> tuple[NDArray[Any], bool]:
    """The upright (H, W, 3) RGB array of the bytes of a file, (H, W, 4) with `alpha`; uint8, or uint16 where a grey
    file is so deep. And whether a CMYK profile was applied, so that the colours are sRGB.

    Raises:
        MtkdError: the bytes are damaged or truncated.
    """
    from PIL import Image, ImageOps

    try:
        with any_number_of_pixels():
            opened = Image.open(io.BytesIO(encoded))
            opened.load()  # it compares the pixels with its limit again
        image = ImageOps.exif_transpose(opened)
        if image.mode in _DEEP:
            return np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, axis=2), False
        converted = _from_cmyk(image) if image.mode == "CMYK" else None
        pixels = converted or image.convert("RGBA" if alpha else "RGB")
        return np.array(pixels), converted is not None
    except Exception as error:  # noqa: BLE001  a damaged file raises whatever its bytes happen to trigger
        raise MtkdError(f"{path} cannot be decoded: {error}. Export it again, as a PNG.") from error


def _from_cmyk(image: Image) -> Image | None:
    """sRGB colours by the profile of the file; None where there is none that can be used."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile:
        return None
    with suppress(ImageCms.PyCMSError, OSError):
        ours, theirs = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, theirs, ours, outputMode="RGB")
    return None
