"""PISR's teacher: an encoder that sees the ground truth, and a decoder that is the student's network.

Lee et al., Learning with Privileged Information for Efficient Image Super-Resolution, ECCV 2020, arXiv 2007.07524.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mtkd.archs.fsrcnn import conv_prelu
from mtkd.contracts import MtkdError


class PrivilegedEncoder(nn.Sequential):
    """gt (N, num_in_ch, H, W) -> code (N, num_out_ch, H / upscale, W / upscale), an image-like map at lq size.

    5x5, 5x5 with stride `upscale`, 3x3, 3x3 convolutions, PReLUs between them; 86,084 parameters for one channel.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 56, num_shrink: int = 12, upscale: int = 4
    ) -> None:
        super().__init__(
            conv_prelu(num_in_ch, num_feat, 5),
            conv_prelu(num_feat, num_feat, 5, stride=upscale),
            conv_prelu(num_feat, num_shrink, 3),
            nn.Conv2d(num_shrink, num_out_ch, 3, padding=1),
        )


class PrivilegedTeacher(nn.Module):
    """Decoder, an ordinary network lq -> sr, beside an encoder that makes a code in place of lq from gt.

    `forward(lq)` is the decoder alone, so that the network can be validated, tested and deployed like any other;
    `decoder(encode(gt))` is the teacher's image, which needs the ground truth.

    Args:
        decoder: `{type: ARCH, **arguments}`, any network of the catalog; `upscale` is filled in. FSRCNN when None.
        num_in_ch: channels of gt, and of the code, which stands in for lq.
        encoder_feat: channels of the encoder's first maps.
        encoder_shrink: channels before its last convolution.
        upscale: scale factor.

    Raises:
        MtkdError: the decoder does not exist, does not take its arguments, or has another scale.
    """

    def __init__(
        self,
        *,
        decoder: Mapping[str, Any] | None = None,
        num_in_ch: int = 3,
        encoder_feat: int = 56,
        encoder_shrink: int = 12,
        upscale: int = 4,
    ) -> None:
        super().__init__()
        self.scale = upscale
        self.encoder = PrivilegedEncoder(num_in_ch, num_in_ch, encoder_feat, encoder_shrink, upscale)
        self.decoder = _build({"type": "FSRCNN"} if decoder is None else decoder, upscale)
        self.feature_names = tuple(f"decoder.{name}" for name in getattr(self.decoder, "feature_names", ()))

    def encode(self, gt: Tensor) -> Tensor:
        """The code of `gt`, shaped as lq."""
        return self.encoder(gt)

    def forward(self, lq: Tensor) -> Tensor:
        return self.decoder(lq)


def _build(options: Mapping[str, Any], upscale: int) -> nn.Module:
    from mtkd import catalog

    arguments = dict(options) if isinstance(options, Mapping) else {}
    if not isinstance(arguments.get("type"), str):
        raise MtkdError("PrivilegedTeacher's decoder is a network: give decoder: {type: ARCH, ...}.")
    name = arguments.pop("type")
    cls = catalog.get("arch", name)
    if "upscale" in inspect.signature(cls).parameters:
        arguments.setdefault("upscale", upscale)
    try:
        decoder = cls(**arguments)
    except TypeError as error:
        raise MtkdError(f"PrivilegedTeacher's decoder {name} does not take these arguments: {error}.") from error
    scale = getattr(decoder, "scale", upscale)
    if scale != upscale:
        raise MtkdError(f"PrivilegedTeacher's decoder {name} upscales by {scale}, and its upscale is {upscale}.")
    return decoder
