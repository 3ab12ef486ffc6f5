"""The header of an image file: size, orientation, kind. Nothing is decoded."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from mtkd.contracts import MtkdError

_EXIF_ORIENTATION = 0x0112

_PILLOW_LIMIT = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        size: height and width of the image as `read_image` returns it, upright.
        orientation: the EXIF tag, 1 (upright) to 8; 1 where it is absent or no such number.
        kind: Pillow's name of the format, such as "PNG".
        mode: Pillow's name of the pixels, such as "RGB", "L" (grey) or "P" (palette).
        alpha: some pixels may be transparent.
        profile: the ICC colour profile, or None.
        frames: pictures in the file, of which the first is the image.
    """

    size: tuple[int, int]
    orientation: int
    kind: str
    mode: str
    alpha: bool
    profile: bytes | None
    frames: int


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image file as `read_image` would return it, read from the file's header alone.

    Raises:
        MtkdError: the file is missing or has no readable image header.
    """
    return read_header(path).size


def read_header(path: str | os.PathLike[str], encoded: bytes | None = None) -> Header:
    """What the header of an image file says; nothing is decoded. `encoded` are its bytes where they are known.

    Raises:
        MtkdError: the file is missing, no regular file, or has no readable image header.
    """
    from PIL import Image

    try:
        if encoded is None and not stat.S_ISREG(os.stat(path).st_mode):
            raise MtkdError(f"{path} is not an image file: it is a folder, a pipe or a device.")
        with open(path, "rb") if encoded is None else io.BytesIO(encoded) as file:
            with any_number_of_pixels(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(file)
            kind = image.format or ""
            if kind == "TIFF":
                # Pillow's own size is turned already, in some versions.
                tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
                width, height, orientation = tags[256], tags[257], tags.get(_EXIF_ORIENTATION, 1)
            else:
                width, height = image.size
                orientation = 1
                with suppress(Exception):  # EXIF that cannot be read counts as absent
                    orientation = _orientation(image, file)
            orientation = orientation if orientation in range(2, 9) else 1
            return Header(
                size=(width, height) if orientation >= 5 else (height, width),
                orientation=orientation,
                kind=kind,
                mode=image.mode,
                alpha=image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
                profile=image.info.get("icc_profile"),
                frames=_frames(image),
            )
    except MtkdError:
        raise
    except Exception as error:  # noqa: BLE001  a damaged header raises whatever its bytes happen to trigger
        why = getattr(error, "strerror", None) or str(error)
        # Pillow names what it was given, which for bytes in memory is an address.
        why = "its bytes are those of no image" if "BytesIO object" in why else why
        raise MtkdError(f"{path} cannot be opened as an image: {why}.") from error


def _orientation(image: Any, file: BinaryIO) -> Any:
    """The EXIF tag of a JPEG, WebP or PNG, else 1."""
    if image.format in ("JPEG", "MPO", "WEBP"):
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    if image.format != "PNG":
        return 1
    # Pillow would decode the whole image, because the chunk may come after it.
    from PIL import Image

    file.seek(8)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            exif = Image.Exif()
            exif.load(file.read(length))
            return exif.get(_EXIF_ORIENTATION, 1)
        if head[4:] == b"IEND":
            break
        file.seek(length + 4, os.SEEK_CUR)
    return 1


def _frames(image: Any) -> int:
    # The second picture of a phone's photo (MPO) is a preview or another exposure, and no page.
    if image.format != "MPO":
        with suppress(Exception):  # the first is good even where a later one is damaged
            return getattr(image, "n_frames", 1)
    return 1


@contextmanager
def any_number_of_pixels() -> Iterator[None]:
    """Pillow without its limit of pixels, which is there for decoding; here it reads headers alone."""
    from PIL import Image

    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
