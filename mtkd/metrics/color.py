"""The images that every metric compares: rounded to 8 bits as saved, RGB or Y, equal to BasicSR's to the last digit."""

from __future__ import annotations

import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.runtime.luma import luma
from mtkd.runtime.pixels import to_levels


def y_channel(image: Tensor) -> Tensor:
    """(N, 3, H, W) 8-bit RGB levels -> (N, 1, H, W) float32 Y of BT.601 in [16, 235], not rounded.

    float32 in and out with a float64 sum between them. A grey image (N, 1, H, W) is
    taken as it is.
    """
    if image.shape[1] == 1:
        return image
    return luma(image.float() / 255) * 255


@torch.no_grad()
def compared(sr: Tensor, gt: Tensor, *, crop_border: int, test_y_channel: bool) -> tuple[Tensor, Tensor]:
    """The two float64 tensors (N, C, h, w) of 8-bit levels (or unrounded Y) that PSNR and SSIM are computed on.

    Args:
        sr: (N, 3 or 1, H, W) or (3 or 1, H, W) floating point RGB in [0, 1], any device.
        gt: shaped as `sr`.
        crop_border: pixels ignored on each of the four sides.
        test_y_channel: Y instead of RGB.

    Raises:
        MtkdError: shapes differ or are no images, a tensor is not floating point, or nothing is left after the crop.
    """
    if sr.shape != gt.shape:
        raise MtkdError(
            f"A metric compares images of the same shape, and sr is {tuple(sr.shape)} while gt is {tuple(gt.shape)}. "
            "Is gt cut to lq * scale, and the network's scale that of the data set?"
        )
    if sr.dim() == 3:
        sr, gt = sr[None], gt[None]
    if sr.dim() != 4 or sr.shape[1] not in (1, 3):
        raise MtkdError(f"A metric compares images (N, 3, H, W), RGB or (N, 1, H, W), grey; got {tuple(sr.shape)}.")
    if not (sr.is_floating_point() and gt.is_floating_point()):
        raise MtkdError(
            f"A metric compares floating point images in [0, 1], and sr is {sr.dtype} while gt is {gt.dtype}. Convert "
            "8-bit images with `image.float() / 255`."
        )
    height, width = (side - 2 * crop_border for side in sr.shape[-2:])
    if crop_border < 0 or height < 1 or width < 1:
        raise MtkdError(
            f"crop_border {crop_border} does not fit an image of {sr.shape[-2]}x{sr.shape[-1]}; "
            "it is usually the scale."
        )

    def one(image: Tensor) -> Tensor:
        image = to_levels(image[..., crop_border : crop_border + height, crop_border : crop_border + width])
        return (y_channel(image) if test_y_channel else image).double()

    return one(sr), one(gt)
