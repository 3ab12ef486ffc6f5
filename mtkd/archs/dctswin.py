"""DCTSwin: the network that fuses the images of several teachers into one better image.

Jiang, Feng, Zhang, Bull: MTKD: Multi-Teacher Knowledge Distillation for Image Super-Resolution (ECCV 2024,
arXiv 2404.09571). The paper gives the idea; sizes and order of operations are those of its published option files, and
the parameter counts agree with them to the last one.

A Swin layer attends over the pixels of a window. Here the window is first taken through a 2-D DCT, channel by channel,
so that attention mixes its frequencies:

    x = x + IDCT(attention(DCT(windows(norm(x)))))
    x = x + mlp(norm(x))

Where this differs from the published code, and why:

- The DCT is orthonormal, not unscaled. An unscaled 8x8 DCT multiplies a flat window by 64 and more, which saturates the
  softmax from the start and overflows half precision; the orthonormal one has gain 8 at most and keeps energy.
- Frequency tokens have no mask. A Swin mask says which pixels of a wrapped window are neighbours; a frequency belongs
  to the whole window, so no mask over tokens can keep two halves of a window apart (the published one is a mask of
  pixels, itself taken through the DCT). Shifted windows are therefore not wrapped round the image: the map is
  continued by half a window of its mirror image on every side. Mirroring, edge included, is the continuation that the
  DCT-II itself assumes, so a border window holds no seam, and no pixel ever meets one from the opposite border.
- The network can start at the mean of the teachers (`residual`), since that is what it has to beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from mtkd.archs import blocks, windows
from mtkd.contracts import MtkdError


class DCTSwin(nn.Module):
    """Fusion network on shifted-window attention over DCT coefficients, (N, num_out_ch * num_teachers, H, W) -> image.

    Args:
        upscale: the teachers' scale, 2, 3, 4 or 8. The images are folded by it, so that the network works at lq size.
        num_teachers: images concatenated in the input, in the order of the ensemble.
        num_out_ch: channels of one image.
        embed_dim: channels of the body.
        depths: Swin layers in each group; every second layer is shifted by half a window.
        num_heads: attention heads in each group.
        window_size: side of attention window and DCT block.
        mlp_ratio: hidden channels of the MLP over `embed_dim`.
        qkv_bias: learn a bias for query, key and value.
        drop_path_rate: stochastic depth of the last layer, growing linearly from zero at the first.
        img_range: factor on the images on the way in, taken out again at the end.
        resi_connection: end of a group and of the body, one convolution or a bottleneck of three.
        upsampler: "pixelshuffle", or "pixelshuffledirect" for one light step (`num_feat` is then without effect).
        num_feat: channels of the reconstruction.
        dct: attend over frequencies; False is a plain Swin network with the usual mask, for the ablation.
        residual: add the mean of the teachers' images to the output and start the last convolution at zero, so that
            the untrained network is exactly that mean. False is the published form without a skip: the output is
            counted from the DIV2K mean colour (from zero unless `num_out_ch` is 3). The published code adds that
            colour outside the network and divides the output by 255 there, as if `img_range` were 255 at the end only.

        contrast: factor on what sets each teacher's image apart from their mean, on the way in; 1 is the published
            form. Teachers agree on nearly everything, so what the network has to judge is far fainter than what it
            sees; a larger factor makes short trainings possible. Nothing is lost: the map is linear and invertible.

    Attributes:
        scale: `upscale`.
        num_teachers: as given.
        feature_names: taps, the shallow map, every group, the body's end, all at lq size.

    Raises:
        MtkdError: an argument cannot be used; the text names it.
    """

    mean_colour: Tensor

    def __init__(
        self,
        upscale: int = 4,
        num_teachers: int = 3,
        num_out_ch: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (4, 4),
        num_heads: Sequence[int] = (6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        img_range: float = 1.0,
        resi_connection: Literal["1conv", "3conv"] = "1conv",
        upsampler: Literal["pixelshuffle", "pixelshuffledirect"] = "pixelshuffle",
        num_feat: int = 64,
        dct: bool = True,
        residual: bool = True,
        contrast: float = 1.0,
    ) -> None:
        super().__init__()
        _check_arguments(upscale, num_teachers, embed_dim, depths, num_heads, window_size)
        self.scale = upscale
        self.num_teachers = num_teachers
        self.num_out_ch = num_out_ch
        self.window_size = window_size
        self.img_range = img_range
        self.dct = dct
        self.residual = residual
        self.contrast = contrast

        self.conv_first = nn.Conv2d(num_out_ch * num_teachers * upscale**2, embed_dim, 3, padding=1)
        self.patch_norm = blocks.ChannelNorm(embed_dim)
        drop_paths = iter(drop_path_rate * index / max(sum(depths) - 1, 1) for index in range(sum(depths)))
        self.layers = nn.ModuleList(
            DCTSwinGroup(
                [
                    DCTSwinLayer(
                        embed_dim,
                        heads,
                        window_size=window_size,
                        shift=0 if index % 2 == 0 else window_size // 2,
                        mlp_ratio=mlp_ratio,
                        qkv_bias=qkv_bias,
                        drop_path=next(drop_paths),
                        dct=dct,
                    )
                    for index in range(depth)
                ],
                blocks.residual_conv(resi_connection, embed_dim),
            )
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = blocks.ChannelNorm(embed_dim)
        self.conv_after_body = blocks.residual_conv(resi_connection, embed_dim)
        if upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, num_feat, 3, padding=1), nn.LeakyReLU())
            self.upsample = blocks.subpixel_upsampler(upscale, num_feat)
            self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)
        elif upsampler == "pixelshuffledirect":
            self.conv_before_upsample = nn.Identity()
            self.conv_last = nn.Conv2d(embed_dim, num_out_ch * upscale**2, 3, padding=1)
            self.upsample = nn.PixelShuffle(upscale)
        else:
            raise MtkdError(f"DCTSwin has no upsampler {upsampler!r}; it has pixelshuffle and pixelshuffledirect.")
        self.upsampler = upsampler

        colour = blocks.DIV2K_MEAN if num_out_ch == 3 else (0.0,) * num_out_ch
        self.register_buffer("mean_colour", torch.tensor(colour).view(1, -1, 1, 1), persistent=False)
        self.feature_names: tuple[str, ...] = (
            "conv_first",
            *(f"layers.{index}" for index in range(len(depths))),
            "conv_after_body",
        )
        self.apply(blocks.init_transformer)
        if residual:
            nn.init.zeros_(self.conv_last.weight)
            nn.init.zeros_(self.conv_last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, images: Tensor) -> Tensor:
        """Fuse the teachers' images.

        Args:
            images: (N, num_out_ch * num_teachers, H, W), nominally in [0, 1], any H and W, teacher after teacher.

        Returns:
            (N, num_out_ch, H, W), not clamped.

        Raises:
            MtkdError: the number of channels does not fit `num_teachers`.
        """
        _, channels, height, width = images.shape
        if channels != self.num_out_ch * self.num_teachers:
            raise MtkdError(
                f"DCTSwin with num_teachers={self.num_teachers} takes {self.num_out_ch * self.num_teachers} channels "
                f"({self.num_out_ch} per teacher), and got {channels}. Set num_teachers to the number of networks "
                "under `teachers:`; it also decides which fusion weights fit."
            )
        mean = reduce(images, "n (t c) h w -> n c h w", "mean", t=self.num_teachers)
        x = images
        if self.contrast != 1:
            x = torch.lerp(mean.repeat(1, self.num_teachers, 1, 1), images, self.contrast)
        x = blocks.pad_to_multiple(x, self.window_size * self.scale) * self.img_range
        shallow = self.conv_first(F.pixel_unshuffle(x, self.scale))
        x = self.patch_norm(shallow)
        mask = None if self.dct else self._mask(shallow)
        for group in self.layers:
            x = group(x, mask)
        x = self.conv_after_body(self.norm(x)) + shallow
        x = self.conv_before_upsample(x)
        x = self.conv_last(self.upsample(x)) if self.upsampler == "pixelshuffle" else self.upsample(self.conv_last(x))
        start = mean if self.residual else self.mean_colour
        return start + x[..., :height, :width] / self.img_range

    def _mask(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        size = self.window_size
        return windows.shifted_window_mask(h, w, size, size // 2, device=x.device, dtype=x.dtype)


class DCTSwinGroup(nn.Module):
    """Swin layers, a convolution and a residual: (N, C, H, W) -> (N, C, H, W), H and W multiples of the window."""

    def __init__(self, layers: Sequence[nn.Module], conv: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)
        self.conv = conv

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            y = block(y, mask)
        return self.conv(y.permute(0, 3, 1, 2)) + x


class DCTSwinLayer(nn.Module):
    """One Swin layer, (N, H, W, C) -> (N, H, W, C), with attention over the frequencies or the pixels of a window."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
        dct: bool,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.dct = WindowDCT(window_size) if dct else None
        self.attn = windows.WindowAttention(dim, window_size, num_heads, qkv_bias=qkv_bias)
        self.drop_path = blocks.DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = blocks.Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is that of the shifted windows, for a layer over pixels."""
        y = self.norm1(x)
        y = self._mix_frequencies(y, self.dct) if self.dct is not None else self._mix_pixels(y, mask)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _mix_frequencies(self, x: Tensor, dct: WindowDCT) -> Tensor:
        _, height, width, _ = x.shape
        before, after = (self.window_size - self.shift, self.shift) if self.shift else (0, 0)
        x = _continue_mirrored(x, before, after)
        tokens = windows.window_partition(x, self.window_size)
        tokens = dct.inverse(self.attn(dct(tokens)))
        x = windows.window_reverse(tokens, self.window_size, *x.shape[1:3])
        return x[:, before : before + height, before : before + width]

    def _mix_pixels(self, x: Tensor, mask: Tensor | None) -> Tensor:
        _, height, width, _ = x.shape
        x = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        tokens = self.attn(windows.window_partition(x, self.window_size), mask if self.shift else None)
        x = windows.window_reverse(tokens, self.window_size, height, width)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class WindowDCT(nn.Module):
    """Orthonormal 2-D DCT-II of windows given as tokens, (B, size * size, C) -> the same shape, channel by channel.

    Both directions are one product with the Kronecker square of the DCT matrix. They run in the module's own precision
    (float32 unless it was converted), outside autocast: a flat window puts all its energy in one coefficient, whose
    rounding in half precision would return as noise on every pixel. On CUDA `tf32: true`, the default, rounds the
    factors to 10 bits all the same (2e-3 there and back, for tokens of variance 1); `tf32: false` does not. `.double()`
    keeps the float32 rounding of the constant, 1e-8.
    """

    basis: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        matrix = dct_matrix(size)
        basis = torch.kron(matrix, matrix).float().to(torch.get_default_device())
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Coefficients of `pixels`; token `u * size + v` is vertical frequency u and horizontal frequency v."""
        return self._product(self.basis, pixels)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Pixels of `coefficients`, row by row."""
        return self._product(self.basis.T, coefficients)

    def _product(self, matrix: Tensor, tokens: Tensor) -> Tensor:
        # Sizes and multiply-adds are counted on the meta device, which has no autocast.
        with nullcontext() if tokens.is_meta else torch.autocast(tokens.device.type, enabled=False):
            return matrix @ tokens.to(matrix.dtype)


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II matrix (size, size), float64, on the CPU: row k holds the cosine of frequency k."""
    # Not shared with `losses.frequency`: the order of its products differs, and with it the last bit of some sizes.
    # On the CPU: on the meta device, this arithmetic would import torch's compiler, which takes two seconds.
    position = torch.arange(size, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi / size * (position + 0.5) * position[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _continue_mirrored(x: Tensor, before: int, after: int) -> Tensor:
    """Extend (N, H, W, C) on both spatial axes by its mirror image, edge included."""
    # Not F.pad: it has no mode that repeats the edge, and its backward on CUDA is not deterministic.
    for dim in (1, 2):
        if before:
            end = x.shape[dim] - after
            left, right = x.narrow(dim, 0, before).flip(dim), x.narrow(dim, end, after).flip(dim)
            x = torch.cat([left, x, right], dim)
    return x


def _check_arguments(
    upscale: int, num_teachers: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int
) -> None:
    if upscale not in (2, 3, 4, 8):
        raise MtkdError(f"DCTSwin has upscale 2, 3, 4 and 8, not {upscale}.")
    if num_teachers < 1:
        raise MtkdError(f"DCTSwin needs num_teachers of at least 1, not {num_teachers}.")
    if len(depths) != len(num_heads):
        raise MtkdError(f"DCTSwin's depths {tuple(depths)} and num_heads {tuple(num_heads)} must be equally long.")
    for heads in num_heads:
        if embed_dim % heads:
            raise MtkdError(f"DCTSwin's embed_dim {embed_dim} must be divisible by every entry of num_heads, {heads}.")
    if window_size < 2:
        raise MtkdError(f"DCTSwin's window_size must be at least 2, not {window_size}.")
