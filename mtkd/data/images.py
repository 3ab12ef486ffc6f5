"""Image files: read, write, list. Images are (H, W, 3), uint8, RGB."""

from __future__ import annotations

import io
import os
import stat
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.headers import any_number_of_pixels, read_header
from mtkd.runtime.files import atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

MOST_PIXELS = 1 << 30
"""OpenCV decodes no larger image."""

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II", b"MM")
_BMP = b"BM"
"""First bytes of such files."""


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Image file as an (H, W, 3) uint8 RGB array, contiguous and writable.

    A grey image becomes three equal channels, an alpha channel is dropped (the colours under it are
    kept, nothing is blended; but OpenCV multiplies those of a TIFF by it), and the orientation tag of a photo is
    applied.

    Raises:
        MtkdError: the file is missing, damaged or truncated, no image, no regular file, or deeper than 8 bits. A 16-bit
            image is refused because there is no agreed conversion to the 8 bits of PSNR tables.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Contents of a regular file; a pipe, from which reading would wait for ever, is refused.

    Raises:
        MtkdError: there is no such file, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MtkdError(f"{path} is not an image file: it is a folder, a pipe or a device.")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise MtkdError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def decode_image(encoded: bytes, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """`read_image` of the bytes of a file; messages name `path`.

    Raises:
        MtkdError: as `read_image`.
    """
    pixels = decode_pixels(encoded, path)
    if pixels.dtype != np.uint8:
        raise MtkdError(
            f"{path} has {8 * pixels.dtype.itemsize} bits per channel, and only 8-bit images are used here. "
            "Convert it to 8 bits with the tool that made it."
        )
    return pixels


def decode_pixels(encoded: bytes, path: str | os.PathLike[str]) -> NDArray[Any]:
    """The upright (H, W, 3) RGB array of the bytes of a file, as deep as the file.

    Raises:
        MtkdError: the bytes are damaged, truncated, no image, or more than can be decoded.
    """
    import cv2

    # The tag is applied here, by one rule with `read_header`: OpenCV's own depends on its version and on the format.
    image = _decoded(encoded, path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    return _upright(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), encoded, path)


def decode_transparent(encoded: bytes, path: str | os.PathLike[str]) -> NDArray[Any] | None:
    """The upright (H, W, 4) RGBA array of the bytes of a file, as deep as the file; None where it has no such channel.

    Raises:
        MtkdError: as `decode_pixels`.
    """
    import cv2

    image = _decoded(encoded, path, cv2.IMREAD_UNCHANGED)
    if image.ndim != 3 or image.shape[2] != 4:
        return None
    if image.dtype == np.uint8 and encoded[:2] in _TIFF:
        return _transparent_tiff(encoded, path)
    return _upright(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA, dst=image), encoded, path)


def _transparent_tiff(encoded: bytes, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    # OpenCV multiplies the colours of a TIFF by its transparency.
    from PIL import Image, ImageOps

    try:
        with any_number_of_pixels():
            image = Image.open(io.BytesIO(encoded))
        return np.array(ImageOps.exif_transpose(image).convert("RGBA"))
    except Exception as error:  # noqa: BLE001  a damaged file raises whatever its bytes happen to trigger
        raise MtkdError(f"{path} cannot be decoded: {error}. Export it again, as a PNG.") from error


def _decoded(encoded: bytes, path: str | os.PathLike[str], flags: int) -> NDArray[Any]:
    import cv2

    still = _still_png(encoded) if encoded.startswith(_PNG) else encoded
    data = np.frombuffer(still or b"", dtype=np.uint8)
    reason = "it is damaged, truncated or no image. Fetch or export it again."
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        image = None
        if error.code == cv2.Error.StsNoMem:
            reason = "there is too little memory for its pixels."
    if image is None:
        with suppress(MtkdError):
            height, width = read_header(path, encoded).size
            if height * width > MOST_PIXELS:
                reason = f"it has {height}x{width} pixels, and OpenCV decodes {MOST_PIXELS:,d} at most. Cut it."
        raise MtkdError(f"{path} cannot be decoded: {reason}")
    if encoded[:2] in (_BMP, *_TIFF):
        _check_pixels(encoded, path)
    return image


def _still_png(encoded: bytes) -> bytes | None:
    """A PNG without its animation, which changes what OpenCV decodes; None where a part is cut or its checksum wrong:
    OpenCV checks only the parts that hold pixels.
    """
    kept, at = [_PNG], len(_PNG)
    while at < len(encoded):
        length, kind = int.from_bytes(encoded[at : at + 4], "big"), encoded[at + 4 : at + 8]
        end = at + 12 + length
        if zlib.crc32(encoded[at + 4 : end - 4]).to_bytes(4, "big") != encoded[end - 4 : end]:
            return None
        if kind not in (b"acTL", b"fcTL", b"fdAT"):
            kept.append(encoded[at:end])
        at = end
        if kind == b"IEND":
            break
    return b"".join(kept)


def _check_pixels(encoded: bytes, path: str | os.PathLike[str]) -> None:
    """Refuse a TIFF or BMP whose header or pixels are damaged: OpenCV decodes what it has without an error."""
    from PIL import Image

    damaged = MtkdError(f"{path} cannot be decoded: it is damaged or truncated. Fetch or export it again.")
    try:
        with any_number_of_pixels():
            image = Image.open(io.BytesIO(encoded))
    except Exception as error:
        if encoded[:2] == _BMP:
            raise damaged from error
        return  # of a TIFF Pillow cannot read every kind
    try:
        image.load()
    except OSError as error:
        if "decoder error" in str(error) or "truncated" in str(error):
            raise damaged from error
    except Exception:  # noqa: BLE001  kinds that Pillow cannot decode
        pass


def _upright(image: NDArray[Any], encoded: bytes, path: str | os.PathLike[str]) -> NDArray[Any]:
    orientation = 1
    with suppress(MtkdError):  # a file that only OpenCV can read
        header = read_header(path, encoded)
        # OpenCV turns TIFF even with IMREAD_IGNORE_ORIENTATION.
        orientation = 1 if header.kind == "TIFF" else header.orientation
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def write_image(path: str | os.PathLike[str], array: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) RGB or (H, W) grey uint8 array; the suffix sets the format, missing folders are made.

    The file appears under its name only when it is complete: it is written beside it and renamed. WebP is lossless, and
    JPEG is written with OpenCV's default quality.

    Raises:
        MtkdError: the array is not such an image, the suffix is unknown, or the disk refuses.
    """
    path = Path(path)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise MtkdError(
            f"{path} cannot be written: an image is uint8 of shape (H, W, 3) or (H, W), this is {array.dtype} "
            f"of shape {array.shape}."
        )
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise MtkdError(f"{path} cannot be written: the suffix must be one of {' '.join(IMAGE_SUFFIXES)}.")
    write_bytes(path, encode(path, array))


def encode(path: Path, array: NDArray[Any]) -> bytes:
    """File of (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA pixels, in the format of the suffix of `path`.

    Raises:
        MtkdError: OpenCV refuses the array.
    """
    import cv2

    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    # OpenCV writes WebP without loss only when a quality above 100 is asked for.
    parameters = [cv2.IMWRITE_WEBP_QUALITY, 101] if path.suffix.lower() == ".webp" else []
    try:
        bgr = array if array.ndim == 2 else cv2.cvtColor(array, order[array.shape[2]])
        done, data = cv2.imencode(path.suffix.lower(), bgr, parameters)
    except cv2.error:
        done, data = False, np.empty(0)
    if not done:
        raise MtkdError(
            f"{path} cannot be encoded: a {path.suffix} of shape {array.shape} is more than OpenCV writes, or more "
            "than the memory holds."
        )
    return data.tobytes()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when it is complete; missing folders are made.

    Raises:
        MtkdError: the disk refuses.
    """
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(data)
    except (OSError, ValueError) as error:
        raise MtkdError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def try_writing(folder: Path) -> None:
    """Write a small file into `folder`, which is made, and remove it: a job that ends with writing begins with this.

    Raises:
        MtkdError: the folder cannot be made, or the disk refuses.
    """
    trial = folder / f".trial.{os.getpid()}"
    try:
        write_bytes(trial, bytes(4096))
        trial.unlink(missing_ok=True)
    except (MtkdError, OSError) as error:
        reason = str(error).removeprefix(f"{trial} cannot be written: ").removesuffix(".")
        raise MtkdError(f"Nothing can be written into {folder}: {reason}.") from error


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files directly in `folder`, sorted by name (plain character order).

    Hidden files, folders, pipes and devices are left out whatever they are called; a link that leads nowhere is not.

    Raises:
        MtkdError: the folder does not exist, cannot be read, or holds no image.
    """
    folder = expanded(folder)
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError(20, "it is a file")
        found = sorted(
            (
                p
                for p in folder.iterdir()
                if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and (p.is_file() or not p.exists())
            ),
            key=lambda p: p.name,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MtkdError(
            f"{folder} is not a folder to read ({reason}). Give a folder of images ({' '.join(IMAGE_SUFFIXES)})."
        ) from error
    if not found:
        raise MtkdError(f"{folder} holds no image ({' '.join(IMAGE_SUFFIXES)}). Sub-folders are not searched.")
    return found


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` and `~NAME` as home folders; that of an unknown user stays as it is and is found missing."""
    return Path(os.path.expanduser(path))
