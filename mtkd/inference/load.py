"""A network with its weights from whatever the user has: a name, a file, a run folder, a repository of the hub."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.inference import hub
from mtkd.inference.luma import as_rgb
from mtkd.runtime import given
from mtkd.runtime.device import named_device
from mtkd.runtime.names import closest
from mtkd.zoo.conversion import guess
from mtkd.zoo.described import network_by_spandrel

Source = str | os.PathLike[str]


def load_network(source: Source, *, scale: int | None = None, device: str | torch.device | None = None) -> nn.Module:
    """The network that `source` names, with its weights, in eval mode, with its `scale`.

    | source | network |
    |---|---|
    | `tiny_x4`, `zoo:NAME` | a student that comes with mtkd, published weights (fetched once) |
    | FILE.pth, FILE.pt, FILE.safetensors | weights that say which network they are; others where spandrel knows them |
    | FILE.onnx | runs in onnxruntime, an extra (`mtkd.export.onnx_network.OnnxNetwork`) |
    | FOLDER | the run in it, as `mtkd test` measures it |
    | `hf:USER/NAME[/FILE][@REVISION]` | one of these files in a repository of the Hugging Face hub, an extra |

    Args:
        scale: what the network must enlarge by; None for any scale.
        device: where it goes; None leaves it on the CPU.

    Returns:
        lq (N, 3, h, w), RGB, float in [0, 1] -> sr (N, 3, h * scale, w * scale), not clamped. Its `origin`, where it
        has one, names the weights.

    Raises:
        MtkdError: nothing has that name, the weights cannot be had or used, the network has another scale, there is no
            such device, or a package is missing.
    """
    spec = os.fspath(source)
    where = None if device is None else named_device(device)
    net = _network(spec)
    found = getattr(net, "scale", None)
    if not isinstance(found, int):
        raise MtkdError(f"{spec} holds a {type(net).__name__}, whose scale is unknown. Describe it in an option file.")
    if scale is not None and found != scale:
        raise MtkdError(
            f"{spec} enlarges by {found}, and {scale} is asked for. Leave the scale out, or take other weights."
        )
    net = as_rgb(net)
    return (net if where is None else net.to(where)).eval()


def _network(spec: str) -> nn.Module:
    if spec.startswith(hub.PREFIX):
        return _file(hub.fetch(spec))
    if spec.startswith("zoo:") or (spec in zoo.ENTRIES and not os.path.exists(spec)):
        name = zoo.entry(spec).name
        if zoo.entry(spec).scale is None:
            raise MtkdError(f"{spec} does not enlarge images; `mtkd zoo list` shows what each entry is for.")
        return zoo.build(f"zoo:{name}")
    path = given.path(spec)
    if not path.exists():
        near = closest(spec, zoo.ENTRIES)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise MtkdError(
            f"There are no weights {spec}.{hint} Name a file, the folder of a run, zoo:NAME (`mtkd zoo list`) or "
            "hf:USER/NAME."
        )
    return _run(spec) if path.is_dir() else _file(path)


def _run(spec: str) -> nn.Module:
    # Option files take half a second to import, which a name or a photo does not need.
    from mtkd import build
    from mtkd.inference.named import find_target

    target = find_target(spec)
    assert target.options is not None
    return build.output_network(target.options)


def _file(path: Path) -> nn.Module:
    if path.suffix.lower() == ".onnx":
        # By name, so that nothing else needs onnxruntime.
        return import_module("mtkd.export.onnx_network").OnnxNetwork(path)
    checkpoint = zoo.read_checkpoint(path)
    if "arch" in checkpoint.facts:
        from mtkd.inference.named import find_target

        target = find_target(str(path))
        assert target.net is not None
        return target.net
    if guess(checkpoint)[0]:
        return zoo.build(path)  # refuses with the network as far as the tensors show it, and the remedy
    net = network_by_spandrel(
        path,
        checkpoint.state,
        remedy="`mtkd zoo convert IN OUT --to safetensors --arch TYPE` writes a file that does.",
    )
    net.origin = checkpoint.origin(path)  # pyright: ignore[reportArgumentType]
    return net
