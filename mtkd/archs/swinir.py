"""SwinIR: Liang et al., SwinIR: Image Restoration Using Swin Transformer, ICCVW 2021, arXiv 2108.10257."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtkd.archs.blocks import (
    DIV2K_MEAN,
    ChannelNorm,
    DropPath,
    Mlp,
    channel_mean,
    init_transformer,
    pad_to_multiple,
    residual_conv,
    subpixel_upsampler,
)
from mtkd.archs.windows import WindowAttention, shifted_window_mask, window_partition, window_reverse
from mtkd.contracts import MtkdError

NUM_FEAT = 64
"""Channels between the body and the last convolution of the upsamplers that have such a stage."""


class SwinTransformerBlock(nn.Module):
    """Window attention and MLP, each behind a LayerNorm and inside a residual, on (N, H, W, C).

    BasicSR saves the mask of its training size, `attn_mask`, with every shifted block. It follows from the sizes alone,
    so it is not a buffer here: it is written to the state dict as BasicSR wants it, and ignored when loaded, which also
    makes files of any training size load strictly.
    """

    def __init__(
        self,
        dim: int,
        resolution: tuple[int, int],
        window_size: int,
        shift_size: int,
        attention: WindowAttention,
        *,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.window_size = window_size
        self.shift_size = shift_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        _, h, w, _ = x.shape
        shift = self.shift_size
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        x = self.attn(window_partition(x, self.window_size), mask if shift else None)
        x = window_reverse(x, self.window_size, h, w)
        return x.roll((shift, shift), (1, 2)) if shift else x

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.shift_size:
            like = self.norm1.weight
            destination[prefix + "attn_mask"] = shifted_window_mask(
                *self.resolution, self.window_size, self.shift_size, device=like.device, dtype=like.dtype
            ).clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "attn_mask", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class BlockStack(nn.Module):
    """Swin blocks one after the other."""

    def __init__(self, blocks: Sequence[nn.Module], use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            else:
                x = block(x, mask)
        return x


class ResidualSwinGroup(nn.Module):
    """x + conv(blocks(x)) on (N, C, H, W); the paper's RSTB."""

    def __init__(self, blocks: BlockStack, conv: nn.Module) -> None:
        super().__init__()
        self.residual_group = blocks
        self.conv = conv

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.residual_group(x.permute(0, 2, 3, 1), mask)
        return self.conv(tokens.permute(0, 3, 1, 2)) + x


class SwinIR(nn.Module):
    """SwinIR with BasicSR's arguments and state-dict names.

    Maps RGB (N, in_chans, H, W) in [0, 1] of any size to (N, in_chans, H * scale, W * scale), not clamped. The input is
    reflected to whole windows at the right and bottom, and the output cropped. Two deviations from BasicSR's class: it
    pads by itself, and `norm_layer` is always LayerNorm. Stored `attn_mask`s are ignored, so `img_size` may differ
    from the one of the file.

    Published configurations: SwinIR-M is embed_dim 180, depths and num_heads [6] * 6, window_size 8, mlp_ratio 2,
    upsampler 'pixelshuffle'; lightweight SwinIR-S is embed_dim 60, depths and num_heads [6] * 4, 'pixelshuffledirect'.

    Args:
        img_size: side (or sides) of the lq training patches. Sets the size of the saved masks, of the absolute
            position embedding, and caps the window: not above the smaller side, then without shift.
        patch_size: divides `img_size` in the three uses above; tokens are single pixels whatever it is.
        in_chans: channels of input and output; 3 subtracts the mean of DIV2K, any other number subtracts nothing.
        embed_dim: channels of the tokens.
        depths: blocks in each group; every second block has shifted windows.
        num_heads: attention heads in each group.
        window_size: side of an attention window.
        mlp_ratio: hidden channels of the MLP / `embed_dim`.
        qkv_bias: whether query, key and value have a bias.
        qk_scale: factor of the attention logits; None means 1 / sqrt(head channels).
        drop_rate: dropout of tokens, attention outputs and MLPs.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first. Training only.
        ape: learn an absolute position embedding; resampled bicubically for other sizes.
        patch_norm: normalise the tokens before the first group.
        use_checkpoint: recompute each block in backward instead of keeping its activations.
        upscale: scale factor.
        img_range: the net works on (x - mean) * img_range.
        upsampler: 'pixelshuffle' (classical, 3 or a power of two), 'pixelshuffledirect' (lightweight, any),
            'nearest+conv' (real-world, 4 only), or '' (restoration: the output has the size of the input, `scale` is 1
            and `upscale` has no effect).
        resi_connection: '1conv' or '3conv', the convolution at the end of each group and of the body.

    Raises:
        MtkdError: arguments that do not fit together.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 64,
        patch_size: int | Sequence[int] = 1,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", ""] | None = "",
        resi_connection: Literal["1conv", "3conv"] = "1conv",
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise MtkdError(
                f"SwinIR has {len(depths)} depths and {len(num_heads)} num_heads: give one of each per group."
            )
        self.upsampler = upsampler or ""
        self.scale = upscale if self.upsampler else 1
        self.img_range = img_range
        mean = DIV2K_MEAN if in_chans == 3 else (0.0,) * in_chans
        # Not saved, so that the state dict is BasicSR's; a buffer, so that it follows .to().
        self.register_buffer("mean", channel_mean(mean, in_chans, in_chans), persistent=False)

        (height, width), (patch_h, patch_w) = _pair(img_size), _pair(patch_size)
        self.resolution = (height // patch_h, width // patch_w)
        self.window_size = min(window_size, *self.resolution)
        self.shift_size = window_size // 2 if min(self.resolution) > window_size else 0

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, 1, 1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=ChannelNorm(embed_dim)) if patch_norm else OrderedDict())
        self.absolute_pos_embed = (
            nn.Parameter(torch.zeros(1, self.resolution[0] * self.resolution[1], embed_dim)) if ape else None
        )
        self.pos_drop = nn.Dropout(drop_rate)
        drop_path = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList()
        for depth, heads in zip(depths, num_heads, strict=True):
            blocks = [
                SwinTransformerBlock(
                    embed_dim,
                    self.resolution,
                    self.window_size,
                    self.shift_size if index % 2 else 0,
                    WindowAttention(
                        embed_dim,
                        self.window_size,
                        heads,
                        qkv_bias=qkv_bias,
                        qk_scale=qk_scale,
                        attn_drop=attn_drop_rate,
                        proj_drop=drop_rate,
                    ),
                    mlp_ratio=mlp_ratio,
                    drop=drop_rate,
                    drop_path=next(drop_path),
                )
                for index in range(depth)
            ]
            self.layers.append(
                ResidualSwinGroup(BlockStack(blocks, use_checkpoint), residual_conv(resi_connection, embed_dim))
            )
        self.norm = ChannelNorm(embed_dim)
        self.conv_after_body = residual_conv(resi_connection, embed_dim)
        self._build_reconstruction(embed_dim, in_chans, upscale)
        self.apply(init_transformer)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.feature_names = ("conv_first", *(f"layers.{i}" for i in range(len(depths))), "conv_after_body")

    def _build_reconstruction(self, embed_dim: int, out_chans: int, upscale: int) -> None:
        if self.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, NUM_FEAT, 3, 1, 1), nn.LeakyReLU())
            self.upsample = subpixel_upsampler(upscale, NUM_FEAT)
            self.conv_last = nn.Conv2d(NUM_FEAT, out_chans, 3, 1, 1)
        elif self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, upscale**2 * out_chans, 3, 1, 1), nn.PixelShuffle(upscale)
            )
        elif self.upsampler == "nearest+conv":
            if upscale != 4:
                raise MtkdError(f"SwinIR's upsampler 'nearest+conv' upscales by 4 only, not by {upscale}.")
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, NUM_FEAT, 3, 1, 1), nn.LeakyReLU())
            self.conv_up1 = nn.Conv2d(NUM_FEAT, NUM_FEAT, 3, 1, 1)
            self.conv_up2 = nn.Conv2d(NUM_FEAT, NUM_FEAT, 3, 1, 1)
            self.conv_hr = nn.Conv2d(NUM_FEAT, NUM_FEAT, 3, 1, 1)
            self.conv_last = nn.Conv2d(NUM_FEAT, out_chans, 3, 1, 1)
            self.lrelu = nn.LeakyReLU(0.2)
        elif self.upsampler == "":
            self.conv_last = nn.Conv2d(embed_dim, out_chans, 3, 1, 1)
        else:
            raise MtkdError(
                f"SwinIR has no upsampler {self.upsampler!r}: it is 'pixelshuffle', 'pixelshuffledirect', "
                "'nearest+conv' or ''."
            )

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = (pad_to_multiple(x, self.window_size) - self.mean) * self.img_range
        shallow = self.conv_first(x)
        deep = self.conv_after_body(self._body(shallow)) + shallow
        y = self._reconstruct(deep) if self.upsampler else x + self.conv_last(deep)
        y = y / self.img_range + self.mean
        return y[:, :, : h * self.scale, : w * self.scale]

    def _body(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self._position(h, w)
        x = self.pos_drop(x)
        # One mask serves every shifted block.
        mask = None
        if self.shift_size:
            mask = shifted_window_mask(h, w, self.window_size, self.shift_size, device=x.device, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def _position(self, h: int, w: int) -> Tensor:
        assert self.absolute_pos_embed is not None
        position = self.absolute_pos_embed.transpose(1, 2).unflatten(2, self.resolution)
        if (h, w) == self.resolution:
            return position
        return F.interpolate(position, size=(h, w), mode="bicubic", align_corners=False)

    def _reconstruct(self, x: Tensor) -> Tensor:
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        x = self.conv_before_upsample(x)
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(x))
        x = self.lrelu(self.conv_up1(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.lrelu(self.conv_up2(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(x)))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second
