"""The network of a state dict, its naming and its arguments, by names and shapes.

Two namings exist for EDSR and RCAN. "official" is that of the authors (EDSR-PyTorch, RCAN): `head`, `body`, `tail`, and
the mean of DIV2K as frozen convolutions `sub_mean` and `add_mean`. "basicsr" is BasicSR's, and ours: `conv_first`,
`conv_after_body`, `upsample`, `conv_last`. SwinIR is called alike everywhere, but the authors and BasicSR save buffers
(`attn_mask`, `relative_position_index`) that follow from the arguments; they are dropped on reading, and computed on
writing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mtkd.archs.blocks import DIV2K_MEAN
from mtkd.contracts import MtkdError

Naming = Literal["official", "basicsr"]

BUFFERS = ("attn_mask", "relative_position_index")
MEAN_SHIFTS = ("sub_mean", "add_mean")

_SHARED = [
    (r"head\.0\.(\w+)", r"conv_first.\1"),
    (r"body\.(\d+)\.(weight|bias)", r"conv_after_body.\2"),
    (r"tail\.0\.(\d+)\.(\w+)", r"upsample.\1.\2"),
    (r"tail\.1\.(\w+)", r"conv_last.\1"),
]
_FROM_OFFICIAL = {
    "EDSR": [
        (r"body\.(\d+)\.body\.0\.(\w+)", r"body.\1.conv1.\2"),
        (r"body\.(\d+)\.body\.2\.(\w+)", r"body.\1.conv2.\2"),
        *_SHARED,
    ],
    "RCAN": [
        (r"body\.(\d+)\.body\.(\d+)\.body\.([02])\.(\w+)", r"body.\1.residual_group.\2.rcab.\3.\4"),
        (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0\.(\w+)", r"body.\1.residual_group.\2.rcab.3.attention.1.\3"),
        (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2\.(\w+)", r"body.\1.residual_group.\2.rcab.3.attention.3.\3"),
        (r"body\.(\d+)\.body\.(\d+)\.(weight|bias)", r"body.\1.conv.\3"),
        *_SHARED,
    ],
}
_TO_OFFICIAL = {
    "EDSR": [
        (r"conv_first\.(\w+)", r"head.0.\1"),
        (r"body\.(\d+)\.conv1\.(\w+)", r"body.\1.body.0.\2"),
        (r"body\.(\d+)\.conv2\.(\w+)", r"body.\1.body.2.\2"),
        (r"conv_after_body\.(\w+)", r"body.{num_block}.\1"),
        (r"upsample\.(\d+)\.(\w+)", r"tail.0.\1.\2"),
        (r"conv_last\.(\w+)", r"tail.1.\1"),
    ],
    "RCAN": [
        (r"conv_first\.(\w+)", r"head.0.\1"),
        (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.([02])\.(\w+)", r"body.\1.body.\2.body.\3.\4"),
        (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.1\.(\w+)", r"body.\1.body.\2.body.3.conv_du.0.\3"),
        (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.3\.(\w+)", r"body.\1.body.\2.body.3.conv_du.2.\3"),
        (r"body\.(\d+)\.conv\.(\w+)", r"body.\1.body.{num_block}.\2"),
        (r"conv_after_body\.(\w+)", r"body.{num_group}.\1"),
        (r"upsample\.(\d+)\.(\w+)", r"tail.0.\1.\2"),
        (r"conv_last\.(\w+)", r"tail.1.\1"),
    ],
}


class Layout(NamedTuple):
    """The network of a state dict, and its naming."""

    arch: Literal["EDSR", "RCAN", "SwinIR"]
    naming: Naming


def detect(state: Mapping[str, Any]) -> Layout | None:
    """Network and naming of a state dict, or None when it is not EDSR, RCAN or SwinIR."""
    if "layers.0.residual_group.blocks.0.attn.qkv.weight" in state:
        return Layout("SwinIR", "basicsr")
    if "body.0.residual_group.0.rcab.0.weight" in state:
        return Layout("RCAN", "basicsr")
    if "body.0.conv1.weight" in state and "conv_first.weight" in state:
        return Layout("EDSR", "basicsr")
    if "head.0.weight" in state and "tail.1.weight" in state:
        if "body.0.body.0.body.0.weight" in state:
            return Layout("RCAN", "official")
        if "body.0.body.0.weight" in state:
            return Layout("EDSR", "official")
    return None


def to_basicsr(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in BasicSR's naming without derived tensors (mean shifts, SwinIR's buffers).

    Names that belong to no known layout stay, so that strict loading can name them.

    Raises:
        MtkdError: a mean shift is not the mean of DIV2K, so dropping it would change the network.
    """
    layout = detect(state)
    if layout is None:
        return dict(state)
    if layout.arch == "SwinIR":
        return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in BUFFERS}
    if layout.naming == "basicsr":
        return dict(state)
    img_range_of(state)
    kept = {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in MEAN_SHIFTS}
    return {_rename(name, _FROM_OFFICIAL[layout.arch]): tensor for name, tensor in kept.items()}


def to_official(
    state: Mapping[str, Tensor],
    *,
    img_range: float = 255.0,
    rgb_mean: tuple[float, ...] = DIV2K_MEAN,
    img_size: int | Sequence[int] = 64,
) -> dict[str, Tensor]:
    """`state` as the authors' code saves it: mean shifts for EDSR and RCAN, buffers for SwinIR.

    Raises:
        MtkdError: `state` is not EDSR, RCAN or SwinIR.
    """
    layout = detect(state)
    if layout is None:
        raise MtkdError("Only EDSR, RCAN and SwinIR have an official naming; these weights are none of them.")
    if layout.naming == "official":
        return dict(state)
    if layout.arch == "SwinIR":
        return with_swinir_buffers(state, img_size=img_size)
    counts = infer(state)
    rules = [(pattern, text.format(**counts)) for pattern, text in _TO_OFFICIAL[layout.arch]]
    channels = len(rgb_mean)
    mean = torch.tensor(rgb_mean)
    identity = torch.eye(channels).view(channels, channels, 1, 1)
    return {
        "sub_mean.weight": identity.clone(),
        "sub_mean.bias": -img_range * mean,
        **{_rename(name, rules): tensor for name, tensor in state.items()},
        "add_mean.weight": identity.clone(),
        "add_mean.bias": img_range * mean,
    }


def img_range_of(state: Mapping[str, Tensor]) -> float | None:
    """Range of the values that a network in official naming works on (255 or 1), read off its mean shifts.

    Raises:
        MtkdError: the shift is anything but the mean of DIV2K over one range.
    """
    img_range = None
    for name, sign in zip(MEAN_SHIFTS, (-1, 1), strict=True):
        if f"{name}.bias" not in state:
            continue
        shift = sign * state[f"{name}.bias"].double()
        mean = torch.tensor(DIV2K_MEAN, dtype=torch.float64)
        weight = state.get(f"{name}.weight")
        ratio = shift / mean if shift.shape == mean.shape else torch.tensor([math.nan])
        img_range = float(ratio.mean())
        plain = weight is None or (
            weight.shape == (3, 3, 1, 1)
            and torch.allclose(weight.double().flatten(1), torch.eye(3, dtype=torch.float64), atol=1e-5)
        )
        if not plain or not torch.allclose(ratio, ratio.mean(), rtol=1e-4) or img_range <= 0:
            raise MtkdError(
                f"The weights shift colours by {name} = {[round(v, 4) for v in shift.flatten()[:8].tolist()]}, "
                "which is not "
                f"the mean of DIV2K {DIV2K_MEAN} times a range. They cannot be loaded without changing what they "
                "compute."
            )
    return None if img_range is None else round(img_range, 2)


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that the shapes of EDSR, RCAN or SwinIR (BasicSR's naming) show; {} for other networks.

    `res_scale`, `img_range` and `rgb_mean` leave no trace in shapes and are not among them.
    """
    layout = detect(state)
    if layout is None:
        return {}
    try:
        if layout.arch == "SwinIR":
            return _infer_swinir(state)
        return _infer_cnn(to_basicsr(state) if layout.naming == "official" else state, layout.arch)
    except (KeyError, IndexError, ZeroDivisionError, ValueError):
        return {}  # a damaged state dict: the comparison of names says what is missing


def with_swinir_buffers(state: Mapping[str, Tensor], *, img_size: int | Sequence[int]) -> dict[str, Tensor]:
    """`state` with the buffers that strict loading in the authors' code and in BasicSR asks for.

    Liu et al., "Swin Transformer", 2021: the index of each pair's relative position in a window, and -100 between
    pixels of a shifted window that are not neighbours in the image of `img_size`.
    """
    complete = dict(to_basicsr(state))
    for name, table in list(complete.items()):
        if not name.endswith(".attn.relative_position_bias_table"):
            continue
        block = name.removesuffix(".attn.relative_position_bias_table")
        window = (math.isqrt(table.shape[0]) + 1) // 2
        complete[f"{block}.attn.relative_position_index"] = _relative_position_index(window)
        shifted = int(block.rpartition(".")[2]) % 2 == 1
        if shifted and (img_size if isinstance(img_size, int) else min(img_size)) > window:
            complete[f"{block}.attn_mask"] = _attention_mask(img_size, window)
    return complete


def img_size_of(state: Mapping[str, Tensor]) -> int | None:
    """Training size of a SwinIR that still has its buffers: they cover (img_size / window)^2 windows."""
    for name, mask in state.items():
        if name.endswith(".attn_mask") and mask.dim() == 3:
            return math.isqrt(mask.shape[0]) * math.isqrt(mask.shape[1])
    return None


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _count(state: Mapping[str, Any], pattern: str) -> int:
    found = {int(match[1]) for name in state if (match := re.match(pattern, name))}
    return len(found)


def _upscale(state: Mapping[str, Tensor]) -> int:
    scale = 1
    for name, weight in state.items():
        if re.fullmatch(r"upsample\.\d+\.weight", name):
            scale *= math.isqrt(weight.shape[0] // weight.shape[1])
    return scale


def _infer_cnn(state: Mapping[str, Tensor], arch: str) -> dict[str, Any]:
    first = state["conv_first.weight"].shape
    found: dict[str, Any] = {"num_in_ch": first[1], "num_feat": first[0]}
    direct: dict[str, Any] = {}
    if "conv_last.weight" in state or arch != "EDSR":
        found |= {"num_out_ch": state["conv_last.weight"].shape[0], "upscale": _upscale(state)}
    else:  # as many channels come out as go in
        upscale = math.isqrt(state["upsample.0.weight"].shape[0] // first[1])
        direct = {"num_out_ch": first[1], "upscale": upscale, "upsampler": "pixelshuffledirect"}
    if arch == "EDSR":
        return found | {"num_block": _count(state, r"body\.(\d+)\.conv1\.")} | direct
    squeezed = state["body.0.residual_group.0.rcab.3.attention.1.weight"].shape
    return found | {
        "num_group": _count(state, r"body\.(\d+)\.residual_group\."),
        "num_block": _count(state, r"body\.0\.residual_group\.(\d+)\."),
        "squeeze_factor": squeezed[1] // squeezed[0],
    }


def _infer_swinir(state: Mapping[str, Tensor]) -> dict[str, Any]:
    embed_dim, in_chans = state["conv_first.weight"].shape[:2]
    layers = range(_count(state, r"layers\.(\d+)\."))
    block = "layers.{}.residual_group.blocks.0."
    tables = [state[block.format(i) + "attn.relative_position_bias_table"].shape for i in layers]
    if "conv_before_upsample.0.weight" not in state:
        upsampler = "pixelshuffledirect" if "upsample.0.weight" in state else ""
    else:
        upsampler = "nearest+conv" if "conv_up1.weight" in state else "pixelshuffle"
    upscale = {
        "pixelshuffle": lambda: _upscale(state),
        "pixelshuffledirect": lambda: math.isqrt(state["upsample.0.weight"].shape[0] // in_chans),
        "nearest+conv": lambda: 4 if "conv_up2.weight" in state else 2,
        "": lambda: 1,
    }[upsampler]()
    return {
        "upscale": upscale,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depths": [_count(state, rf"layers\.{i}\.residual_group\.blocks\.(\d+)\.") for i in layers],
        "num_heads": [table[1] for table in tables],
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
        "mlp_ratio": state[block.format(0) + "mlp.fc1.weight"].shape[0] / embed_dim,
        "upsampler": upsampler,
        "resi_connection": "1conv" if "layers.0.conv.weight" in state else "3conv",
    }


def _relative_position_index(window: int) -> Tensor:
    rows, columns = (
        axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    )
    span = 2 * window - 1
    return (rows[:, None] - rows + window - 1) * span + columns[:, None] - columns + window - 1


def _attention_mask(img_size: int | Sequence[int], window: int) -> Tensor:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height % window or width % window:
        raise MtkdError(
            f"img_size {img_size} is not a multiple of window_size {window}, so no mask can be computed for it."
        )
    regions = 3 * _bands(height, window)[:, None] + _bands(width, window)
    windows = regions.view(height // window, window, width // window, window).transpose(1, 2).flatten(2).flatten(0, 1)
    return (windows[:, None, :] != windows[:, :, None]).float() * -100.0


def _bands(side: int, window: int) -> Tensor:
    """Which of three bands each row belongs to: untouched by the shift, last window, wrapped around."""
    band = torch.zeros(side, dtype=torch.long)
    band[-window:] = 1
    band[-(window // 2) :] = 2
    return band
