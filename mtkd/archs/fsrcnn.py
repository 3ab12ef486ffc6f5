"""FSRCNN: Dong et al., Accelerating the Super-Resolution Convolutional Neural Network, ECCV 2016, arXiv 1608.00367."""

from __future__ import annotations

from torch import Tensor, nn


def conv_prelu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution to the size / `stride`, rounded up, and a PReLU with one slope for all channels."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
    nn.init.kaiming_normal_(conv.weight, a=0.25)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.PReLU())


class FSRCNN(nn.Module):
    """Small network that works at lq size and upscales by one transposed convolution at its end.

    Maps (N, num_in_ch, H, W) in [0, 1] of any size to (N, num_out_ch, H * upscale, W * upscale), not clamped. No mean
    is subtracted. The modules are named as in PISR, which taps `expanding`. With one channel, 56, 12 and 4 it has the
    published 12,644 parameters; on RGB, as images are here, 24,518. Initialised as in the paper: He's for the PReLUs,
    and a standard deviation of 0.001 for the transposed convolution.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: d of the paper, channels of the first and last maps.
        num_shrink: s, channels of the mapping in between.
        num_map: m, 3x3 convolutions of the mapping.
        upscale: scale factor, any whole number; the paper has 2, 3 and 4.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 56,
        num_shrink: int = 12,
        num_map: int = 4,
        upscale: int = 4,
    ) -> None:
        super().__init__()
        self.scale = upscale
        self.feature_extraction = conv_prelu(num_in_ch, num_feat, 5)
        self.shrinking = conv_prelu(num_feat, num_shrink, 1)
        self.mapping = nn.Sequential(*(conv_prelu(num_shrink, num_shrink, 3) for _ in range(num_map)))
        self.expanding = conv_prelu(num_shrink, num_feat, 1)
        self.last_layer = nn.ConvTranspose2d(
            num_feat, num_out_ch, 9, stride=upscale, padding=4, output_padding=upscale - 1
        )
        nn.init.normal_(self.last_layer.weight, std=0.001)
        assert self.last_layer.bias is not None
        nn.init.zeros_(self.last_layer.bias)
        self.feature_names = ("feature_extraction", *(f"mapping.{i}" for i in range(num_map)), "expanding")

    def forward(self, x: Tensor) -> Tensor:
        x = self.mapping(self.shrinking(self.feature_extraction(x)))
        return self.last_layer(self.expanding(x))
