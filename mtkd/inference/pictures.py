"""Images in memory, as arrays, tensors and PIL images, to and from `Photo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.data.photo import Photo, eight_bits, read_photo

if TYPE_CHECKING:
    from PIL.Image import Image

_KINDS = "a path, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W) or (N, 3, H, W)"
_OVER = 1e-3
"""How far a float image may leave [0, 1], as results of resizing do."""


def from_path(path: Path) -> Photo:
    """The image file `path`, `~` expanded.

    Raises:
        MtkdError: as `read_photo`.
    """
    return read_photo(path.expanduser())


def from_array(image: np.ndarray) -> Photo:
    """An array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA as a photo; floating point becomes float32.

    Raises:
        MtkdError: it has another shape or dtype, no pixels, or floating point values outside [0, 1].
    """
    channels = 1 if image.ndim == 2 else image.shape[2] if image.ndim == 3 else 0
    if channels not in (1, 3, 4) or not image.size:
        raise MtkdError(f"An array of shape {image.shape} is no image: give (H, W), (H, W, 3) RGB or (H, W, 4) RGBA.")
    if np.issubdtype(image.dtype, np.floating):
        _check_range(float(image.min()), float(image.max()))
        image = image.astype(np.float32)
    elif image.dtype not in (np.uint8, np.uint16):
        raise MtkdError(f"An image is uint8, uint16, or float in [0, 1]; this array is {image.dtype}.")
    if not image.flags.writeable:
        image = image.copy()  # torch warns of an array that it must not write
    if channels == 1:
        return Photo(np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2), grey=True)
    return Photo(image[..., :3], image[..., 3] if channels == 4 else None)


def to_array(photo: Photo, like: np.ndarray) -> np.ndarray:
    """The enlarged `photo` as an array of the kind of `like`."""
    pixels = photo.pixels if photo.alpha is None else np.dstack([photo.pixels, photo.alpha])
    return (pixels if like.ndim == pixels.ndim else pixels[..., None]).astype(like.dtype, copy=False)


def from_tensor(image: Tensor) -> list[Photo]:
    """The photos of a tensor (C, H, W) or (N, C, H, W), C 1 or 3, uint8 or floating point in [0, 1].

    Raises:
        MtkdError: it has another shape or dtype, no pixels, or floating point values outside [0, 1].
    """
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3) or not image.numel():
        raise MtkdError(f"A tensor of shape {tuple(image.shape)} is no image: give (3, H, W) or (N, 3, H, W), RGB.")
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise MtkdError(
            f"An image is uint8 or float in [0, 1]; this tensor is {str(image.dtype).removeprefix('torch.')}."
        )
    host = image.detach().cpu()
    host = host.float() if host.is_floating_point() else host
    return [from_array(one.movedim(0, -1).numpy()) for one in (host if host.ndim == 4 else host[None])]


def to_tensor(photos: Sequence[Photo], like: Tensor) -> Tensor:
    """The enlarged `photos` as a tensor of the kind of `like`."""
    images = [torch.from_numpy(np.atleast_3d(photo.pixels)).movedim(-1, 0) for photo in photos]
    whole = torch.stack(images) if like.ndim == 4 else images[0]
    return whole.to(device=like.device, dtype=like.dtype).contiguous()


def from_pil(image: Any) -> Photo:
    """A PIL image as a photo, upright.

    Raises:
        MtkdError: it is none, is animated, or has floating point or 32-bit pixels.
    """
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise MtkdError(f"A {type(image).__name__} is no image: give {_KINDS}.")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise MtkdError("The PIL image is animated: upscale its pictures one by one (PIL.ImageSequence).")
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise MtkdError(f"A PIL image of mode {image.mode} has no known range: convert it to L, I;16 or RGB.")
    if image.mode.startswith("I;16"):
        return Photo(np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, axis=2), grey=True)
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    pixels = np.array(image.convert("RGBA" if transparent else "RGB"))
    grey = image.mode in ("1", "L") and not transparent
    of_pixels = b"GRAY" if grey else b"RGB "
    kept = profile if profile is not None and profile[16:20] == of_pixels else None
    return Photo(pixels[..., :3], pixels[..., 3] if transparent else None, kept, grey)


def to_pil(photo: Photo) -> Image:
    """The enlarged `photo` as a PIL image of mode L, I;16, RGB or RGBA; 16-bit colours are rounded to 8 bits."""
    from PIL import Image

    pixels, alpha = photo.pixels, photo.alpha
    if alpha is not None and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        pixels, alpha = eight_bits(pixels), None if alpha is None else eight_bits(alpha)
    image = Image.fromarray(pixels if alpha is None else np.dstack([pixels, alpha]))
    if photo.profile is not None:
        image.info["icc_profile"] = photo.profile
    return image


def _check_range(least: float, most: float) -> None:
    if not (least >= -_OVER and most <= 1 + _OVER):
        raise MtkdError(
            f"A float image lies in [0, 1], and these values go from {least:g} to {most:g}. Divide by 255, or give "
            "uint8."
        )
