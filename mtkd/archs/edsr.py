"""EDSR: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017, arXiv 1707.02921."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mtkd.archs.blocks import DIV2K_MEAN, channel_mean, subpixel_upsampler
from mtkd.contracts import MtkdError


class ResidualBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x))), without normalisation."""

    def __init__(self, num_feat: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x))) * self.res_scale


class EDSR(nn.Module):
    """EDSR with BasicSR's arguments and state-dict names.

    Maps RGB (N, num_in_ch, H, W) in [0, 1] of any size to (N, num_out_ch, H * upscale, W * upscale), not clamped.
    The baseline has 64 features and 16 blocks; the large net 256, 32 and `res_scale` 0.1.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, equal to `num_in_ch`.
        num_feat: channels of the features.
        num_block: residual blocks in the body.
        upscale: 3 or a power of two; any factor with the direct upsampler.
        res_scale: factor of each block's residual.
        img_range: the net works on (x - rgb_mean) * img_range.
        rgb_mean: one mean per channel, in [0, 1].
        upsampler: "pixelshuffle" is EDSR's: features are enlarged, step by step, and one convolution at full size makes
            the image. "pixelshuffledirect" is one convolution to `num_out_ch * upscale**2` channels and one pixel
            shuffle (ESPCN, CVPR 2016; SwinIR's name for it): all of the network works at low resolution, for a third
            of the cost at x4 with 16 features. Its convolution is `upsample.0`, as in SwinIR.

    Raises:
        MtkdError: an unsupported `upscale` or `upsampler`, or numbers of channels that do not agree.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
        upsampler: Literal["pixelshuffle", "pixelshuffledirect"] = "pixelshuffle",
    ) -> None:
        super().__init__()
        self.scale = upscale
        self.upsampler = upsampler
        self.img_range = img_range
        # Not saved, so that the state dict is BasicSR's; a buffer, so that it follows .to().
        self.register_buffer("mean", channel_mean(rgb_mean, num_in_ch, num_out_ch), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat, res_scale) for _ in range(num_block)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        if upsampler == "pixelshuffle":
            self.upsample = subpixel_upsampler(upscale, num_feat)
            self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        elif upsampler == "pixelshuffledirect":
            wide = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)
            self.upsample = nn.Sequential(wide, nn.PixelShuffle(upscale))
            self.conv_last = nn.Identity()
        else:
            raise MtkdError(f"upsampler {upsampler!r} is not supported: it is 'pixelshuffle' or 'pixelshuffledirect'.")
        self.feature_names = ("conv_first", *(f"body.{i}" for i in range(num_block)), "conv_after_body")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first((x - self.mean) * self.img_range)
        x = self.conv_after_body(self.body(x)) + x
        return self.conv_last(self.upsample(x)) / self.img_range + self.mean
