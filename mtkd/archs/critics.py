"""Critics: networks that score images for adversarial losses. They are parts of methods, not students."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mtkd.contracts import MtkdError

MIN_SIZE = 16
"""Smallest side of an image that a critic scores: below, nothing is left after its four halvings."""


class SelfAttention(nn.Module):
    """x + gamma * attention(x) over all positions, gamma learnt from 0 (SAGAN: Zhang et al., arXiv 1805.08318).

    Written out and not fused, because a gradient penalty differentiates it twice.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        inner = max(num_feat // 8, 1)
        self.query = spectral_norm(nn.Conv2d(num_feat, inner, 1))
        self.key = spectral_norm(nn.Conv2d(num_feat, inner, 1))
        self.value = spectral_norm(nn.Conv2d(num_feat, num_feat, 1))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x)
        attention = torch.softmax(query.mT @ key, dim=-1)
        return x + self.gamma * (value.flatten(2) @ attention.mT).view_as(value)


class SelfAttentionCritic(nn.Module):
    """Scores images (N, num_in_ch, H, W) of 16 pixels or more a side: (N, 1, H // 16, W // 16), high for real.

    Four 4x4 convolutions of stride 2 that double the width, LeakyReLU 0.1, self-attention after the third and the
    fourth, all under spectral normalisation: the critic of structured distillation (Liu et al., CVPR 2019, after
    SAGAN). Deviations: no batch normalisation of the input, under which the gradient penalty means nothing; a last
    convolution of 3x3 that scores every patch, where theirs of 4x4 expects one size of image; and spectral
    normalisation of all 11 convolutions, where the authors' code normalises the four strided ones alone and leaves
    query, key, value and the last convolution plain.

    Args:
        num_in_ch: channels of what is scored, with those of a condition.
        num_feat: width of the first convolution.

    Raises:
        MtkdError: an image is smaller than 16 pixels.
    """

    def __init__(self, *, num_in_ch: int = 3, num_feat: int = 64) -> None:
        super().__init__()
        widths = [num_in_ch, num_feat, 2 * num_feat, 4 * num_feat, 8 * num_feat]
        layers: list[nn.Module] = []
        for stage, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.1)]
            if stage >= 2:
                layers.append(SelfAttention(after))
        self.body = nn.Sequential(*layers)
        self.conv_last = spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < MIN_SIZE:
            raise MtkdError(f"The critic scores images of {MIN_SIZE} pixels or more a side; got {tuple(x.shape)}.")
        return self.conv_last(self.body(x))
