"""`mtkd push`: a trained network into a repository of the Hugging Face hub, with a card that says how to use it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from mtkd import catalog, zoo
from mtkd.contracts import MtkdError
from mtkd.inference import hub
from mtkd.inference.load import load_network
from mtkd.inference.named import find_target
from mtkd.methods.base import Method
from mtkd.runtime import given
from mtkd.runtime.progress import Log
from mtkd.runtime.run_folder import RunFolder

CARD = "README.md"
_UNKNOWN_LICENCE = "other"


def push(source: str, repository: str, *, licence: str | None = None, private: bool = False, log: Log = print) -> str:
    """Write the network of a run folder or weights file into `USER/NAME` on the hub, and return its address.

    The repository is made if need be. It gets `model.safetensors`, weights that say which network they are (or
    `model.onnx`, an ONNX file as it is), and a card, unless it has one. `mtkd.load("hf:USER/NAME")` loads it.

    Args:
        source: the folder of a run, a .pth or .safetensors file, or an .onnx file.
        licence: the hub's name of one, such as "apache-2.0"; None for what the file says, else "other".
        private: only its owner sees a repository that is made now.

    Raises:
        MtkdError: the package or a login is missing, the network cannot be read or stand alone in one file, or the hub
            refuses; nothing is sent before all else is known to be in order.
    """
    where = hub.place(repository)
    if where.file or where.revision:
        raise MtkdError(f"{repository} is more than a repository: write USER/NAME.")
    package = hub.package(f"Writing to {where}")
    if package.get_token() is None:
        raise MtkdError(
            "The hub does not know you here: run `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    with tempfile.TemporaryDirectory() as folder:
        weights = _weights_of(source, Path(folder))
        net = load_network(weights)
        facts = {} if weights.suffix == ".onnx" else zoo.read_checkpoint(weights).facts
        licence = licence or facts.get("licence") or None
        if licence is None:
            log(f"The card says `license: {_UNKNOWN_LICENCE}`; name one with --license, such as apache-2.0.")
        text = card(where.repository, net, facts, licence=licence or _UNKNOWN_LICENCE)
        with hub.explained(where):
            api = package.HfApi(endpoint=hub.endpoint())
            api.create_repo(where.repository, private=private or None, exist_ok=True)
            files: list[tuple[str, str | bytes]] = [(weights.name, str(weights))]
            if api.file_exists(where.repository, CARD):
                log(f"{where} has a card, which stays as it is.")
            else:
                files.append((CARD, text.encode()))
            api.create_commit(
                where.repository,
                [package.CommitOperationAdd(name, content) for name, content in files],
                commit_message=f"{type(net).__name__} x{net.scale}, written by mtkd",
            )
        return f"{package.constants.ENDPOINT if hub.endpoint() is None else hub.endpoint()}/{where.repository}"


def card(repository: str, net: nn.Module, facts: dict[str, Any], *, licence: str) -> str:
    """The README.md of a repository on the hub: its front matter, what the network is, and how to use it.

    Example:
        >>> from mtkd.archs.edsr import EDSR
        >>> text = card("ann/photos_x2", EDSR(num_feat=4, num_block=1, upscale=2), {}, licence="mit")
        >>> print(text[text.index("A network") : text.index("## Use")].strip())
        A network (EDSR of 1,259 parameters) that makes RGB images 2 times as high and wide.
    """
    scale, arch = net.scale, facts.get("arch", {}).get("type", type(net).__name__)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    size = f" of {parameters:,d} parameters" if parameters else ""
    trained = f" It was trained by the method {facts['method']}" if isinstance(facts.get("method"), str) else ""
    if trained and isinstance(facts.get("iteration"), int):
        trained += f" for {facts['iteration']:,d} iterations"
    return f"""---
license: {licence}
library_name: mtkd
pipeline_tag: image-to-image
tags:
- super-resolution
- image-super-resolution
- mtkd
---

# {repository.partition("/")[2]}

A network ({arch}{size}) that makes RGB images {scale} times as high and wide.{trained}{"." if trained else ""}

## Use

```python
import mtkd  # pip install 'mtkd[hub]'

net = mtkd.load("hf:{repository}")
net.upscale("photo.jpg").save("large.png")
```

On the command line: `mtkd upscale photo.jpg large.png --weights hf:{repository}`
"""


def _weights_of(source: str, folder: Path) -> Path:
    """The one file in `folder` that holds the network of `source` and says which it is."""
    path = given.path(source)
    if path.suffix.lower() == ".onnx" and path.is_file():
        return Path(shutil.copyfile(path, folder / "model.onnx"))
    if path.is_dir():
        path = _weights_of_run(source)
    elif path.exists():
        find_target(source)  # refuses a file that holds a part of what its method deploys
    else:
        raise MtkdError(f"There is no run folder or weights file {source}.")
    return zoo.convert(path, folder / hub.WEIGHTS, to="safetensors").path


def _weights_of_run(source: str) -> Path:
    deployable = RunFolder(given.path(source)).deployable
    if deployable.is_file():
        return deployable
    options = find_target(source).options
    assert options is not None and options.path.pretrain_network_g is not None
    method = catalog.get("method", options.model_type)
    if method.predictor is not Method.predictor or method.deployable is not Method.deployable:
        raise MtkdError(
            f"{source} was trained by {options.model_type}, whose network works with its teachers: no file holds it "
            "alone. Push a student that was distilled from it."
        )
    return Path(options.path.pretrain_network_g)
