"""Encoder and codebook of VQGAN, whose features and codes DCKD compares images by. Nothing here downloads anything.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, arXiv 2012.09841: the model of
ImageNet that halves four times (f16) and has 1,024 codes. Modules are named as in taming-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.losses.numerics import full_precision, upcast
from mtkd.runtime.hidden import Hidden

MULTIPLES = (1, 1, 2, 2, 4)
"""Widths of the five levels in units of the first one's."""

HALVINGS = len(MULTIPLES) - 1
"""Between the levels; the last one and the codes have an H / 16 x W / 16 map."""

NAME = "vqgan_f16_1024"
"""The zoo's name of the published weights."""


class VQGANEncoder(nn.Module):
    """Images (N, 3, H, W) -> maps, or distances to the codes; without VQGAN's decoder, which nothing here needs.

    Two residual blocks a level, attention in the last level, then block, attention, block, and a projection to the
    space of the codes. 29,298,176 parameters in the encoder at width 128, 65,792 in the projection, 262,144 in the
    codebook.

    Args:
        width: channels of the first level, a multiple of 32, the number of groups of its normalisations.
        embed_dim: width of the codes.
        num_codes: number of the codes.
    """

    def __init__(self, *, width: int = 128, embed_dim: int = 256, num_codes: int = 1024) -> None:
        super().__init__()
        self.encoder = _Encoder(width, embed_dim)
        self.quant_conv = nn.Conv2d(embed_dim, embed_dim, 1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(num_codes, embed_dim)

    def adopt(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Take this module's tensors out of a whole VQGAN's, which has a decoder and a critic besides.

        Raises:
            MtkdError: one of them is not there, or has another shape.
        """
        own = self.state_dict()
        wrong = [key for key, value in own.items() if getattr(state.get(key), "shape", None) != value.shape]
        if wrong:
            found = getattr(state.get(wrong[0]), "shape", None)
            raise MtkdError(
                f"{source} is no VQGAN of {len(self.quantize.get_submodule('embedding').weight)} codes and f16: its "  # pyright: ignore[reportArgumentType]
                f"{wrong[0]} is {tuple(found) if found is not None else 'absent'}, expected is "
                f"{tuple(own[wrong[0]].shape)}."
            )
        self.load_state_dict({key: state[key] for key in own})


class VQGANFeatures(Hidden[VQGANEncoder]):
    """Images (N, 3, H, W), RGB in [0, 1] as DCKD feeds them, as a VQGAN sees them.

    Never trained, never saved; gradients reach the images. `distances` run under autocast; `levels` stay in float32,
    because DCKD's contrast takes the signs of small differences, and bfloat16 turns so many of them over that its
    gradient points elsewhere (cosine 0.71 on an H200).

    Args:
        weights: path of the zoo's vqgan_f16_1024.safetensors or of a PyTorch file of a state dict in
            taming-transformers' naming, or "random" for a fixed random network a quarter as wide and with 64 codes,
            which is good for tests and nothing else.

    Raises:
        MtkdError: the file is missing, cannot be read, or holds another network; an image is smaller than 16 pixels.
    """

    def __init__(self, weights: str | Path) -> None:
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = VQGANEncoder(width=32, embed_dim=64, num_codes=64)
        else:
            with torch.device("meta"):
                net = VQGANEncoder()
            net.to_empty(device="cpu").adopt(_state(Path(weights)), source=str(weights))
        super().__init__(net)

    def levels(self, image: Tensor) -> list[Tensor]:
        """Output of the first residual block of each of the five levels, the finest first; no attention is in them."""
        with torch.autocast(image.device.type, enabled=False):
            return self.net.encoder.levels(self._checked(image))

    def distances(self, image: Tensor) -> Tensor:
        """(N * h * w, codes): squared distances of every position's embedding, h = H / 16, to every code."""
        embedded = self.net.quant_conv(self.net.encoder(self._checked(image)))
        return _squared_distances(embedded, self.net.quantize.get_submodule("embedding").weight)  # pyright: ignore[reportArgumentType]

    def _checked(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < 2**HALVINGS:
            raise MtkdError(
                f"VQGAN takes images (N, 3, H, W) of {2**HALVINGS} pixels or more a side; got {tuple(image.shape)}."
            )
        return image.to(self.net.quant_conv.weight.dtype)


@full_precision
def code_distribution_loss(
    student_distances: Tensor, teacher_distances: Tensor, *, softmax_twice: bool = True
) -> Tensor:
    """DCKD's distribution term: cross-entropy of the student's codes, given the teacher's.

    q = softmax over the codes of (largest distance - distance), p the teacher's; the value is the mean over positions
    of -sum_c p_c log softmax(q)_c; with `softmax_twice=False` of -sum_c p_c log q_c, as a cross-entropy is written.

    Args:
        student_distances: (R, codes), of `VQGANFeatures.distances`.
        teacher_distances: the same, detached inside.
        softmax_twice: as in the authors' code, which hands probabilities to a function that expects logits. It bounds
            the gradient, and the published weight 0.001 belongs to it.

    Source: Zhou et al., "Dynamic Contrastive Knowledge Distillation for Efficient Image Restoration", AAAI 2025, arXiv
    2412.08939.

    Example:
        >>> near, far = torch.tensor([[0.0, 9.0]]), torch.tensor([[9.0, 0.0]])
        >>> code_distribution_loss(near, near) < code_distribution_loss(far, near)
        tensor(True)
    """
    student, teacher = upcast(student_distances, teacher_distances.detach())
    p, logits = torch.softmax(-teacher, 1), -student
    return F.cross_entropy(torch.softmax(logits, 1) if softmax_twice else logits, p)


@full_precision
def _squared_distances(embedded: Tensor, codes: Tensor) -> Tensor:
    embedded, codes = upcast(embedded.movedim(1, -1).flatten(0, 2), codes)
    return embedded.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * embedded @ codes.mT


class _Encoder(nn.Module):
    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        widths = [width, *(width * multiple for multiple in MULTIPLES)]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        last = len(MULTIPLES) - 1
        self.down = nn.ModuleList(
            _Level(before, after, attention=level == last, halve=level < last)
            for level, (before, after) in enumerate(pairwise(widths))
        )
        self.mid = nn.Module()
        self.mid.block_1 = _Block(widths[-1], widths[-1])
        self.mid.attn_1 = _Attention(widths[-1])
        self.mid.block_2 = _Block(widths[-1], widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        for name in ("block_1", "attn_1", "block_2"):
            x = self.mid.get_submodule(name)(x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def levels(self, x: Tensor) -> list[Tensor]:
        found = []
        x = self.conv_in(x)
        for level in self.down:
            first = level.get_submodule("block").get_submodule("0")(x)
            found.append(first)
            if len(found) < len(self.down):
                x = level.rest(first)  # pyright: ignore[reportCallIssue]
        return found


class _Level(nn.Module):
    """Two residual blocks, each with attention behind it or none, and a halving, or none."""

    def __init__(self, before: int, after: int, *, attention: bool, halve: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([_Block(before, after), _Block(after, after)])
        self.attn = nn.ModuleList(_Attention(after) for _ in range(2 if attention else 0))
        if halve:
            self.downsample = nn.Module()
            self.downsample.conv = nn.Conv2d(after, after, 3, stride=2)
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.block[0](x))

    def rest(self, x: Tensor) -> Tensor:
        """What follows the first block."""
        if len(self.attn):
            x = self.attn[0](x)
        x = self.block[1](x)
        if len(self.attn):
            x = self.attn[1](x)
        # Padded on the right and at the bottom alone, as the published weights were trained.
        return self.downsample.get_submodule("conv")(F.pad(x, (0, 1, 0, 1))) if self.halve else x


class _Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = _norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)
        self.widens = before != after

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return (self.nin_shortcut(x) if self.widens else x) + inner


class _Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].mT
        return x + self.proj_out(attended.reshape(x.shape))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def _state(path: Path) -> Mapping[str, Tensor]:
    advice = (
        f"Give `zoo:{NAME}`, which fetches and converts the published file, or take that from CompVis' "
        f"taming-transformers (ImageNet, f16, 1,024 codes) by hand and run `mtkd zoo import {NAME} FILE`."
    )
    if not path.is_file():
        raise MtkdError(f"VQGAN's weights are not at {path}. {advice}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MtkdError(f"{path} cannot be read as weights ({type(error).__name__}). {advice}") from error
    inner = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return inner if isinstance(inner, Mapping) else {}
