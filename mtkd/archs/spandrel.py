"""Community checkpoints as networks, through the package spandrel, which recognises an architecture by its weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtkd.archs.blocks import pad_to_size
from mtkd.contracts import MtkdError

_PREFIX = "model."


class Spandrel(nn.Module):
    """Network of any super-resolution checkpoint that spandrel supports: HAT, DAT, SPAN, Real-ESRGAN, CRAFT and others.

    Only the weights tell which network it is, so there is none, and no random one either, until `adopt` has been given
    them; loading weights into it the usual way does that. (N, 3, H, W) in [0, 1] -> (N, 3, H * scale, W * scale), not
    clamped. The input is padded by reflection to the size that the network asks for, unless it pads by itself: then its
    own way is the one its published scores belong to. It is in eval mode and meant to teach or to be tested, not to be
    trained.

    Args:
        upscale: the scale that the checkpoint must have; None takes any.

    Attributes:
        scale: that of the checkpoint once there is one; `upscale` or 1 before.
        architecture: spandrel's name for it, None before.
    """

    def __init__(self, *, upscale: int | None = None) -> None:
        super().__init__()
        self.scale: int = upscale or 1
        self.architecture: str | None = None
        self.model: nn.Module | None = None
        self._wanted = upscale
        self._sizes: Any = None
        self._multiple = 1
        self._call: Any = None
        self._features: tuple[str, ...] | None = None

    def adopt(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Become the network that `state` belongs to, with these weights; `source` names them in errors.

        Raises:
            MtkdError: spandrel is not installed or has no such network, the weights do not fit the network that they
                look like, or it is not an RGB -> RGB network of the wanted scale.
        """
        try:
            from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
        except ImportError as error:
            raise MtkdError(
                f"`type: spandrel` needs the package spandrel ({error}): pip install 'mtkd[spandrel]'."
            ) from error
        # Several of its networks call torch.meshgrid the old way; the user can do nothing about it.
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
        if all(name.startswith(_PREFIX) for name in state):  # saved from a network of this class
            state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
        try:
            found = ModelLoader(device="cpu").load_from_state_dict(dict(state))
        except UnsupportedModelError as error:
            raise MtkdError(
                f"spandrel has no network with the weights of {source} (its first tensors are "
                f"{', '.join(list(state)[:3])}). For a network of mtkd write its name, e.g. `type: EDSR`; "
                "see `mtkd list archs`."
            ) from error
        except Exception as error:  # weights that only resemble a network's may raise any exception of its constructor
            lines = str(error).splitlines()
            raise MtkdError(
                f"spandrel cannot load {source}: {' '.join(lines)[:300] if lines else type(error).__name__}."
            ) from error
        name = found.architecture.name
        if not isinstance(found, ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
            raise MtkdError(f"{source} is a {name} that does not map an RGB image to an RGB image.")
        if self._wanted is not None and found.scale != self._wanted:
            raise MtkdError(f"{source} is a {name} for x{found.scale}, but the option file has scale {self._wanted}.")
        self.scale, self.architecture, self._sizes, self._features = found.scale, name, found.size_requirements, None
        # Not the descriptor, which clamps in place and cuts the graph, but what it calls: the forward of some networks
        # returns more than the image. It comes in train mode.
        self.model, self._call = found.model.float(), found._call_fn
        self.eval()
        self._multiple = 1 if self._pads_itself() else self._sizes.multiple_of

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Modules whose output is a map (N, C, H, W), found by running a small image through the network once."""
        if self.model is None:
            return ()
        if self._features is None:
            self._features = self._probe()
        return self._features

    def forward(self, x: Tensor) -> Tensor:
        if self.model is None:
            raise MtkdError(
                "A network of type spandrel has no weights yet, and its architecture follows from them. Give them as "
                "`pretrain` of the teacher, or as path.pretrain_network_g of a test file."
            )
        h, w = x.shape[-2:]
        padded = self._padded(x)
        # Some networks, RCAN for one, shift the mean of their input in place.
        sr = self._call(self.model, padded.clone() if padded is x else padded)
        return sr[..., : h * self.scale, : w * self.scale]

    def _padded(self, x: Tensor) -> Tensor:
        step = self._multiple
        h, w = (max(math.ceil(side / step) * step, self._sizes.minimum) for side in x.shape[-2:])
        if self._sizes.square:
            h = w = max(h, w)
        return pad_to_size(x, h, w)

    def _pads_itself(self) -> bool:
        """Whether the network also takes sides that are not multiples of what spandrel asks for.

        Padding twice matters: CRAFT x4, which pads by flipping, then loses 0.03 dB on Set5.
        """
        if self._sizes.multiple_of == 1:
            return True
        h = w = max(self._sizes.minimum, self._sizes.multiple_of) + 1
        try:
            with torch.no_grad():
                sr = self._call(self.model, torch.zeros(1, 3, h, w))
        except Exception:  # networks of many authors refuse with many kinds of exceptions
            return False
        return sr.shape == (1, 3, h * self.scale, w * self.scale)

    def _probe(self) -> tuple[str, ...]:
        # Sides of different lengths tell (N, C, H, W) from (N, H, W, C).
        side = max(self._sizes.minimum, self._sizes.multiple_of, 16)
        h, w = (side, side) if self._sizes.square else (side, 2 * side)
        names: list[str] = []

        def note(name: str, out: Any) -> None:
            if isinstance(out, Tensor) and out.dim() == 4 and out.shape[2] * w == out.shape[3] * h:
                names.append(name)

        handles = [
            module.register_forward_hook(lambda _m, _in, out, name=name: note(name, out))
            for name, module in self.named_modules()
            if name.startswith(_PREFIX)
        ]
        like = next(self.parameters())
        try:
            with torch.no_grad():
                self(torch.zeros(1, 3, h, w, dtype=like.dtype, device=like.device))
        finally:
            for handle in handles:
                handle.remove()
        return tuple(dict.fromkeys(names))
