"""Image files: read, write, list. Every array here is (H, W, 3), uint8, RGB."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtkd.contracts import MtkdError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_EXIF_ORIENTATION = 0x0112
_FORMATS_WITH_CHEAP_EXIF = ("JPEG", "MPO", "TIFF", "WEBP")


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Image file as an (H, W, 3) uint8 RGB array, contiguous and writable.

    As in BasicSR, a grey image becomes three equal channels, an alpha channel is dropped (the colours under it are
    kept, nothing is blended), and the orientation tag of a photo is applied.

    Raises:
        MtkdError: the file is missing, damaged or truncated, no image, or deeper than 8 bits. A 16-bit image is
            refused because nobody agrees on how to bring it to the 8 bits that PSNR tables are made of.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MtkdError(f"{path} cannot be read: {error.strerror or error}.") from error
    return decode_image(data, path)


def decode_image(encoded: bytes, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """`read_image` of the bytes of a file; `path` stands in messages.

    Raises:
        MtkdError: as `read_image`.
    """
    import cv2

    data = np.frombuffer(encoded, dtype=np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise MtkdError(f"{path} cannot be decoded: it is damaged, truncated or no image. Fetch or export it again.")
    if image.dtype != np.uint8:
        raise MtkdError(
            f"{path} has {8 * image.dtype.itemsize} bits per channel, and only 8-bit images are used here. "
            "Convert it to 8 bits with the tool that made it."
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # pyright: ignore[reportReturnType]


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image file as `read_image` would return it, read from the file's header alone.

    Raises:
        MtkdError: the file is missing or has no readable image header.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            # Asking a PNG for its EXIF decodes the whole image, so only photo formats are asked.
            turned = image.format in _FORMATS_WITH_CHEAP_EXIF and image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MtkdError(f"{path} cannot be opened as an image: {error}.") from error
    return (width, height) if turned else (height, width)


def write_image(path: str | os.PathLike[str], array: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) RGB or (H, W) grey uint8 array; the suffix says the format, missing folders are made.

    The file appears under its name only when it is complete: it is written beside it and renamed. WebP is lossless, and
    JPEG is written with OpenCV's default quality.

    Raises:
        MtkdError: the array is no such image, the suffix is unknown, or the disk refuses.
    """
    import cv2

    path = Path(path)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise MtkdError(
            f"{path} cannot be written: an image is uint8 of shape (H, W, 3) or (H, W), this is {array.dtype} "
            f"of shape {array.shape}."
        )
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise MtkdError(f"{path} cannot be written: the suffix must be one of {' '.join(IMAGE_SUFFIXES)}.")
    bgr = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    # OpenCV writes WebP without loss only when a quality above 100 is asked for.
    parameters = [cv2.IMWRITE_WEBP_QUALITY, 101] if path.suffix.lower() == ".webp" else []
    done, data = cv2.imencode(path.suffix.lower(), bgr, parameters)
    if not done:
        raise MtkdError(f"{path} cannot be encoded: OpenCV refused an array of shape {array.shape}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.tobytes())
            # mkstemp makes a file that only its owner can read; give it the rights of a file made by open().
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MtkdError(f"{path} cannot be written: {error.strerror or error}.") from error


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files directly in `folder`, hidden files left out, sorted by name (plain character order, as in BasicSR).

    Raises:
        MtkdError: the folder does not exist or holds no image.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise MtkdError(f"{folder} is not a folder. Give a folder of images ({' '.join(IMAGE_SUFFIXES)}).")
    found = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")),
        key=lambda p: p.name,
    )
    if not found:
        raise MtkdError(f"{folder} holds no image ({' '.join(IMAGE_SUFFIXES)}). Sub-folders are not searched.")
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
