"""How long SwinIR and DCTSwin take, forward and in training, beside BasicSR's SwinIR and a DCTSwin on torch-dct."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch_dct
from torch import Tensor, nn

from measures import basicsr_world
from measures.timing import Aim, Effort, Section, ratios, side_by_side, spread
from mtkd import basicsr as bridge
from mtkd.archs import windows
from mtkd.archs.dctswin import DCTSwin, DCTSwinLayer
from mtkd.archs.swinir import SwinIR

AIM = 1.5
OURS, COMPILED = "mtkd", "mtkd, compiled"
SWINIR = {"upscale": 4, "img_size": 64, "window_size": 8, "img_range": 1.0, "mlp_ratio": 2, "resi_connection": "1conv"}
SMALL = {**SWINIR, "embed_dim": 60, "upsampler": "pixelshuffledirect"}
MEDIUM = {**SWINIR, "embed_dim": 180, "upsampler": "pixelshuffle"}


class Case(NamedTuple):
    """A network beside its reference with the same weights, and an input.

    Attributes:
        name: of the network.
        base: name of the reference.
        theirs: the reference.
        ours: the network.
        x: input.
        compiled: whether ours is timed compiled as well.
        promised: whether the ratio is an aim.
    """

    name: str
    base: str
    theirs: nn.Module
    ours: nn.Module
    x: Tensor
    compiled: bool
    promised: bool = True


def measure(device: str, effort: Effort) -> Iterator[Section]:
    rows, aims = [], []
    for case in cases(device, effort):
        for pass_, variants in (("forward", forward(case)), ("forward + backward", training(case))):
            times = side_by_side(
                variants,
                device,
                rounds=effort.rounds(6 if device == "cpu" else 15),
                seconds=effort.seconds(0.3),
                warm_up=2,
            )
            for name in variants:
                ratio, seconds = spread(ratios(times, case.base, name)), spread(times[name])
                rows.append(
                    {
                        "network": case.name,
                        "pass": pass_,
                        "case": name,
                        "s": seconds["median"],
                        "s, low": seconds["low"],
                        "s, high": seconds["high"],
                        "times as fast": ratio["median"],
                        "low": ratio["low"],
                        "high": ratio["high"],
                    }
                )
            if case.promised:
                ratio = spread(ratios(times, case.base, OURS))["median"]
                aims.append(Aim(f"{case.name}, {pass_}: {case.base} / mtkd", AIM, ratio))
        yield section(rows, aims, device)


def section(rows: list[dict[str, Any]], aims: list[Aim], device: str) -> Section:
    """What is known after some of the networks."""
    return Section(
        title="Window attention: SwinIR and DCTSwin",
        setting=(
            "x4, float32, patches of lq as the network's name says (DCTSwin: three teachers' images of four times that"
            " size). Forward: eval mode without gradients. Forward + backward: training mode with stochastic depth, "
            "gradient of the mean for every parameter. mtkd: channels_last, as in training. BasicSR: its own SwinIR "
            "with the same weights, contiguous, torch's defaults. torch-dct: our DCTSwin of the published size, whose "
            "layers do what those of the published code do: cyclic shift, torch_dct's dct_2d without norm on each "
            "window and channel, plain softmax attention with bias and mask, idct_2d. Its masks are made once, where "
            "the published code makes them in every layer. SwinIR-M is cut to two of its six groups on the CPU."
        ),
        rows=rows,
        aims=aims,
        notes=[
            "What no arrangement of the attention changes bounds the ratios on the CPU: linear layers of 180 channels "
            "in SwinIR-M, convolutions on the 256x256 image in DCTSwin.",
            "On the CPU only a network of two blocks is compiled, because compiling takes minutes there. It says what "
            "the compiler makes of such blocks; nothing is promised about it.",
        ]
        if device == "cpu"
        else [],
    )


def cases(device: str, effort: Effort) -> Iterator[Case]:
    """The networks of a device, each built when its turn comes."""
    cuda = device == "cuda"
    if effort.quick:
        yield swinir("SwinIR, 2 blocks", SMALL, 1, (1, 16), device)
        yield dctswin((1, 16), device, depths=(2,), num_heads=(6,))
        return
    compiled = cuda and effort.full
    yield swinir("SwinIR-S", SMALL, 4, (16, 64) if cuda else (4, 48), device, compiled=compiled)
    if not cuda:
        yield swinir("SwinIR-S, 2 blocks", SMALL, 1, (4, 48), device, compiled=True, promised=False)
    yield swinir("SwinIR-M", MEDIUM, 6 if cuda else 2, (8, 64) if cuda else (4, 32), device, compiled=compiled)
    yield dctswin((16, 64) if cuda else (4, 64), device, compiled=compiled)


def swinir(name: str, options: dict[str, Any], groups: int, size: tuple[int, int], device: str, **flags: bool) -> Case:
    """SwinIR of that many groups of six blocks, of one of two when the name says 2 blocks, on (batch, side) of lq."""
    depths = [2] if "2 blocks" in name else [6] * groups
    arguments = {**options, "depths": depths, "num_heads": [6] * len(depths)}
    cls = bridge.registered("arch", "SwinIR")
    assert cls is not None
    theirs, ours = cls(**arguments).to(device), SwinIR(**arguments).to(device)
    ours.load_state_dict(theirs.state_dict())
    batch, side = size
    x = torch.rand(batch, 3, side, side, device=device)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-3)
    ours.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Case(f"{name}, {batch} of {side}x{side}", "BasicSR", theirs, ours, x, **{"compiled": False, **flags})


def dctswin(size: tuple[int, int], device: str, *, compiled: bool = False, **arguments: Any) -> Case:
    """DCTSwin of the published size unless `arguments` change it, on (batch, side) of lq."""
    batch, side = size
    ours = DCTSwin(upscale=4, **arguments).to(device)
    theirs = copy.deepcopy(ours)
    for group in theirs.layers.children():
        group.blocks = nn.ModuleList(OnTorchDCT(layer) for layer in group.blocks.children())  # pyright: ignore
    check(ours, device)
    ours.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.rand(batch, 9, 4 * side, 4 * side, device=device)
    return Case(f"DCTSwin, {batch} of {side}x{side}", "torch-dct", theirs, ours, x, compiled)


class OnTorchDCT(nn.Module):
    """A DCTSwin layer with the operations of the published code, on the weights of `layer`."""

    def __init__(self, layer: DCTSwinLayer, norm: str | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        layer, size, shift = self.layer, self.layer.window_size, self.layer.shift
        _, height, width, _ = x.shape
        y = layer.norm1(x)
        if shift:
            y = y.roll((-shift, -shift), (1, 2))
            mask = windows.shifted_window_mask(height, width, size, shift, device=x.device, dtype=x.dtype)
        pixels = windows.window_partition(y, size).mT.unflatten(-1, (size, size))
        tokens = torch_dct.dct_2d(pixels, norm=self.norm).flatten(2).mT
        tokens = plain_attention(layer.attn, tokens, mask if shift else None)
        pixels = torch_dct.idct_2d(tokens.mT.unflatten(-1, (size, size)), norm=self.norm)
        y = windows.window_reverse(pixels.flatten(2).mT, size, height, width)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        x = x + layer.drop_path(y)
        return x + layer.drop_path(layer.mlp(layer.norm2(x)))


def plain_attention(attention: windows.WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Window attention as Swin's published code writes it."""
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = (q * attention.logit_scale) @ k.mT
    logits = logits + attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return attention.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
def check(net: DCTSwin, device: str) -> None:
    """Without shift and with torch_dct's norm, the reference layer must be ours."""
    layer = next(block for block in net.eval().modules() if isinstance(block, DCTSwinLayer) and not block.shift)
    x = torch.rand(1, 16, 24, layer.norm1.normalized_shape[0], device=device)
    torch.testing.assert_close(layer(x), OnTorchDCT(layer, norm="ortho").eval()(x), rtol=1e-3, atol=1e-3)


def forward(case: Case) -> dict[str, Callable[[], object]]:
    """Inference, ready to be called."""

    def run(net: nn.Module, x: Tensor) -> Callable[[], object]:
        @torch.no_grad()
        def call() -> Tensor:
            return net.eval()(x)

        return call

    return variants(case, run)


def training(case: Case) -> dict[str, Callable[[], object]]:
    """Gradients of all parameters, ready to be called."""

    def run(net: nn.Module, x: Tensor) -> Callable[[], object]:
        def call() -> None:
            net.train().zero_grad()
            net(x).mean().backward()

        return call

    return variants(case, run)


def variants(case: Case, run: Callable[[nn.Module, Tensor], Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The rows of one network and pass."""
    reference, last = run(case.theirs, case.x), case.x.contiguous(memory_format=torch.channels_last)

    def base() -> object:
        with basicsr_world.torch_defaults():
            return reference()

    made = {case.base: base, OURS: run(case.ours, last)}
    if case.compiled:
        made[COMPILED] = run(torch.compile(case.ours, dynamic=False), last)  # pyright: ignore[reportArgumentType]
    return made
