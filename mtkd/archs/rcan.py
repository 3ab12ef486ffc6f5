"""RCAN: Zhang et al., Image Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV 2018.

arXiv 1807.02758.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtkd.archs.blocks import DIV2K_MEAN, channel_mean, subpixel_upsampler
from mtkd.contracts import MtkdError


class ChannelAttention(nn.Module):
    """Scales each channel by a gate in (0, 1) made of the means of all channels."""

    def __init__(self, num_feat: int, squeeze_factor: int) -> None:
        super().__init__()
        squeezed = num_feat // squeeze_factor
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(num_feat, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, num_feat, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class ResidualChannelAttentionBlock(nn.Module):
    """x + res_scale * attention(conv(relu(conv(x))))."""

    def __init__(self, num_feat: int, squeeze_factor: int, res_scale: float) -> None:
        super().__init__()
        self.rcab = nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            ChannelAttention(num_feat, squeeze_factor),
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rcab(x) * self.res_scale


class ResidualGroup(nn.Module):
    """x + conv(blocks(x))."""

    def __init__(self, num_feat: int, num_block: int, squeeze_factor: int, res_scale: float) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(
            *(ResidualChannelAttentionBlock(num_feat, squeeze_factor, res_scale) for _ in range(num_block))
        )
        self.conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group(x))


class RCAN(nn.Module):
    """RCAN with BasicSR's arguments and state-dict names.

    Maps RGB (N, num_in_ch, H, W) in [0, 1] of any size to (N, num_out_ch, H * upscale, W * upscale), not clamped.
    The published net has 20 blocks per group; the default of 16 is BasicSR's.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, equal to `num_in_ch`.
        num_feat: channels of the features.
        num_group: residual groups in the body.
        num_block: channel attention blocks in a group.
        squeeze_factor: `num_feat` / hidden channels of the channel attention.
        upscale: 3 or a power of two.
        res_scale: factor of each block's residual.
        img_range: the net works on (x - rgb_mean) * img_range.
        rgb_mean: one mean per channel, in [0, 1].

    Raises:
        MtkdError: an unsupported `upscale`, numbers of channels that do not agree, or too large a `squeeze_factor`.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 10,
        num_block: int = 16,
        squeeze_factor: int = 16,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ) -> None:
        super().__init__()
        if num_feat < squeeze_factor:
            raise MtkdError(
                f"RCAN's num_feat {num_feat} is smaller than squeeze_factor {squeeze_factor}: the channel attention "
                "would have no channel left. Lower squeeze_factor."
            )
        self.scale = upscale
        self.img_range = img_range
        # Not saved, so that the state dict is BasicSR's; a buffer, so that it follows .to().
        self.register_buffer("mean", channel_mean(rgb_mean, num_in_ch, num_out_ch), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(
            *(ResidualGroup(num_feat, num_block, squeeze_factor, res_scale) for _ in range(num_group))
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsample = subpixel_upsampler(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.feature_names = ("conv_first", *(f"body.{i}" for i in range(num_group)), "conv_after_body")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first((x - self.mean) * self.img_range)
        x = self.conv_after_body(self.body(x)) + x
        return self.conv_last(self.upsample(x)) / self.img_range + self.mean
