"""Checkpoints converted between namings and containers, and networks built from files that describe themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mtkd.archs.blocks import DIV2K_MEAN
from mtkd.contracts import MtkdError
from mtkd.zoo import building, cache, files, keymaps, loading
from mtkd.zoo.table import ENTRIES, entry

Target = Literal["basicsr", "official", "safetensors"]


@dataclass(frozen=True)
class Converted:
    """What was written, and the arguments that were assumed because the file does not show them."""

    path: Path
    arch: dict[str, Any]
    assumed: dict[str, Any]


def build(name_or_file: str | Path, *, weights_dir: Path | None = None) -> nn.Module:
    """Network with its weights, in eval mode, from a zoo name ("rcan_x4", "zoo:rcan_x4") or a file that says what it
    is.

    Its `origin` names the weights. Such files are the zoo's own, mtkd's training checkpoints, and what `mtkd
    zoo convert --to safetensors` writes.

    Raises:
        MtkdError: the weights cannot be had, or the file does not say which network it holds.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mtkd import zoo
        >>> from mtkd.archs.edsr import EDSR
        >>> arguments = {"num_feat": 8, "num_block": 2, "upscale": 2}
        >>> net = EDSR(**arguments)
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "edsr.safetensors")
        ...     zoo.write_safetensors(file, net.state_dict(), {"arch": {"type": "EDSR", "args": arguments}})
        ...     again = zoo.build(file)
        >>> again.scale, torch.equal(again.conv_first.weight, net.conv_first.weight)
        (2, True)
    """
    spec = str(name_or_file)
    path = cache.resolve(f"zoo:{spec}" if spec in ENTRIES else spec, weights_dir=weights_dir)
    checkpoint = files.read_checkpoint(path)
    if "arch" not in checkpoint.facts:
        raise MtkdError(f"{path} does not say which network it holds. {_guess_text(checkpoint)}".rstrip())
    known = ENTRIES.get(spec.removeprefix("zoo:"))
    if known is not None:  # from mtkd's own table, not from the file
        net = building.build_trusted(known.facts["arch"], source=f"The zoo's entry {known.name}", scale=known.scale)
    else:
        net = building.build_described(checkpoint.facts, checkpoint.state, source=str(path))
    loading.load_into(net, checkpoint.state, source=str(path))
    net.origin = checkpoint.origin(path)  # pyright: ignore[reportArgumentType]
    return net.eval()


def convert(
    source: Path,
    target: Path,
    *,
    to: Target,
    like: str | None = None,
    arch: str | None = None,
    args: Mapping[str, Any] | None = None,
    key: str | None = "auto",
) -> Converted:
    """Write `source` as `target`: BasicSR's naming in a .pth, the authors' naming, or safetensors that describe
    themselves.

    Which network it is comes from, in this order: `arch` and `args`, the zoo entry `like`, the file's own facts, the
    shapes (`args` are laid over each). It is built and loaded strictly before anything is written.

    Raises:
        MtkdError: the network is not known, the weights do not fit it, or the target naming does not exist for it.
    """
    checkpoint = files.read_checkpoint(source, key=key)
    facts, assumed = _facts(checkpoint, source, like=like, arch=arch, args=dict(args or {}))
    if arch is not None or like is not None:
        whose = "--arch" if arch is not None else f"--like {like}"
        net = building.build_named(facts["arch"], checkpoint.state, whose=whose, source=str(source))
    else:
        net = building.build_described(facts, checkpoint.state, source=str(source))
    loading.load_into(net, checkpoint.state, source=str(source))
    facts.setdefault("scale", getattr(net, "scale", None))
    state = keymaps.to_basicsr(checkpoint.state)
    try:
        _write(state, target, to=to, facts=facts)
    except OSError as error:
        raise MtkdError(f"{target} cannot be written: {error.strerror or error}.") from error
    return Converted(target, facts["arch"], assumed)


def _write(state: dict[str, Tensor], target: Path, *, to: Target, facts: dict[str, Any]) -> None:
    if to == "safetensors":
        files.write_safetensors(target, state, facts)
        return
    arguments = facts["arch"].get("args", {})
    img_size = arguments.get("img_size", 64)
    layout = keymaps.detect(state)
    if to == "official":
        img_range, mean = arguments.get("img_range", 255.0), tuple(arguments.get("rgb_mean", DIV2K_MEAN))
        official = keymaps.to_official(state, img_range=img_range, rgb_mean=mean, img_size=img_size)
        # The authors of SwinIR save under `params`, those of EDSR and RCAN the bare state dict.
        files.write_pth(target, {"params": official} if layout and layout.arch == "SwinIR" else official)
        return
    if layout and layout.arch == "SwinIR":
        state = keymaps.with_swinir_buffers(state, img_size=img_size)
    files.write_pth(target, {"params": state, files.FACTS: facts})


def _facts(
    checkpoint: files.Checkpoint, source: Path, *, like: str | None, arch: str | None, args: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts to write, and those of their arguments that were assumed and not read from the file."""
    if arch is not None:
        return {"arch": {"type": arch, "args": args}}, {}
    if like is not None:
        known = entry(like).facts
        # The scores, data and licence of the entry are not this file's: only its description of the network is taken.
        return {"arch": {"type": known["arch"]["type"], "args": known["arch"]["args"] | args}}, {}
    if "arch" in checkpoint.facts:
        name, arguments = building.description(checkpoint.facts["arch"], str(source))
        return checkpoint.facts | {"arch": {"type": name, "args": arguments | args}}, {}
    guessed, assumed = guess(checkpoint)
    if not guessed:
        raise MtkdError(
            f"{source} is not EDSR, RCAN or SwinIR, and does not describe its network. Name it with --arch TYPE --arg "
            "NAME=VALUE."
        )
    assumed = {name: value for name, value in assumed.items() if name not in args}
    return {"arch": {"type": guessed["type"], "args": guessed["args"] | args}}, assumed


def guess(checkpoint: files.Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Network by its shapes as {"type", "args"}, {} if unknown, and those arguments that had to be assumed."""
    layout = keymaps.detect(checkpoint.state)
    shown = keymaps.infer(checkpoint.state)
    if layout is None or not shown:
        return {}, {}
    if layout.arch == "SwinIR":
        stored = keymaps.img_size_of(checkpoint.state)
        assumed: dict[str, Any] = {"img_range": 1.0} | ({} if stored else {"img_size": 64})
        shown |= {"img_size": stored} if stored else {}
    else:
        large = layout.arch == "EDSR" and shown["num_feat"] == 256
        assumed = {"res_scale": 0.1 if large else 1.0}  # as published: only the large EDSR scales its residuals
        stored_range = keymaps.img_range_of(checkpoint.state)
        if stored_range is None:
            assumed |= {"img_range": 255.0, "rgb_mean": list(DIV2K_MEAN)}
        else:
            shown |= {"img_range": stored_range, "rgb_mean": list(DIV2K_MEAN)}
    return {"type": layout.arch, "args": shown | assumed}, assumed


def _guess_text(checkpoint: files.Checkpoint) -> str:
    guessed, _ = guess(checkpoint)
    if not guessed:
        return (
            "Name the network in an option file, or write a file that says what it is: "
            "`mtkd zoo convert IN OUT --to safetensors --arch TYPE`."
        )
    described = ", ".join(f"{name} {value}" for name, value in guessed["args"].items())
    return (
        f"By its shapes it is {guessed['type']} ({described}). "
        "`mtkd zoo convert IN OUT --to safetensors` writes a file that says so."
    )
