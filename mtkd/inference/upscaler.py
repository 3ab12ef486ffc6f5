"""`mtkd.load(...)`: a network that upscales one image in memory, whatever kind of object the image is."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.data.photo import Photo, without_hidden_colours
from mtkd.inference import pictures
from mtkd.inference.enlarging import NOT_FINITE, Levels, enlarged, naming, place, stage
from mtkd.inference.load import Source, load_network
from mtkd.inference.tiling import FittingTiles
from mtkd.runtime.device import DTYPES, autocast, move
from mtkd.runtime.pixels import to_tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Array = TypeVar("Array", bound="np.ndarray | Tensor")


class Upscaler:
    """A network that enlarges images: `net = mtkd.load(...)`, `net.upscale(image)`.

    Several threads may call `upscale` of one Upscaler, as a web server does. Decoding and rounding run side by side;
    the network takes one image at a time, because one run uses all cores or the whole GPU, and its memory. Nothing that
    a call changes outlives it.

    Attributes:
        net: lq (N, 3, h, w) -> sr, in eval mode, on `device`.
        scale: what images are enlarged by.
        device: where it runs.
        source: what it was loaded from.
    """

    def __init__(self, net: nn.Module, *, source: str = "", device: str | torch.device | None = None) -> None:
        self.device = place(net, device)
        self.net = move(net.eval(), self.device, torch.channels_last)
        self.scale: int = net.scale  # pyright: ignore[reportAttributeAccessIssue]
        self.source = source
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"Upscaler({self.source!r}, {type(self.net).__name__} x{self.scale} on {self.device})"

    @overload
    def upscale(
        self,
        image: str | os.PathLike[str] | Image,
        *,
        tile: int | None = None,
        tile_pad: int = 32,
        x8: bool = False,
        precision: str = "fp32",
    ) -> Image: ...

    @overload
    def upscale(
        self,
        image: Array,
        *,
        tile: int | None = None,
        tile_pad: int = 32,
        x8: bool = False,
        precision: str = "fp32",
    ) -> Array: ...

    def upscale(
        self,
        image: Any,
        *,
        tile: int | None = None,
        tile_pad: int = 32,
        x8: bool = False,
        precision: str = "fp32",
    ) -> Any:
        """`image`, `scale` times as high and wide, as the same kind of object.

        | image | result |
        |---|---|
        | a path | PIL image, upright, with its colour profile |
        | PIL image | PIL image of mode L, I;16, RGB or RGBA, upright, with its colour profile |
        | array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16, or float in [0, 1] | such an array |
        | tensor (C, H, W) or (N, C, H, W), C 1 or 3; uint8, or float in [0, 1] | such a tensor, on its device |

        Float results are clamped to [0, 1]. Transparency is enlarged by bicubic interpolation. A PIL image holds no
        colours of 16 bits: those of a file are rounded to 8, which `mtkd upscale` does not do. OpenCV's arrays are BGR:
        turn them round before and after, `image[..., ::-1]`.

        Args:
            tile: run in tiles of so many lq pixels; None for the whole image where it fits into memory, else the
                largest tiles that do.
            tile_pad: lq pixels of context on each side of a tile.
            x8: average over the eight flips and rotations, 8 times as slow.
            precision: "fp32", or autocast in "bf16" or "fp16".

        Raises:
            MtkdError: the file cannot be read, the object is no such image, or the network fails on it.

        Example:
            >>> from mtkd.archs.edsr import EDSR
            >>> net = Upscaler(EDSR(num_feat=4, num_block=1, upscale=2), device="cpu")
            >>> net.upscale(np.zeros((20, 30, 3), dtype=np.uint8)).shape
            (40, 60, 3)
        """
        if precision != "fp32" and precision not in DTYPES:
            raise MtkdError(f"There is no precision {precision!r}: take fp32, {' or '.join(DTYPES)}.")
        name = str(image) if isinstance(image, str | os.PathLike) else "The image"

        def enlarge(photo: Photo) -> Photo:
            return self._enlarged(photo, name, tile=tile, tile_pad=tile_pad, x8=x8, precision=precision)

        if isinstance(image, str | os.PathLike):
            return pictures.to_pil(enlarge(pictures.from_path(Path(image))))
        if isinstance(image, np.ndarray):
            return pictures.to_array(enlarge(pictures.from_array(image)), image)
        if isinstance(image, Tensor):
            parts = [enlarge(photo) for photo in pictures.from_tensor(image)]
            return pictures.to_tensor(parts, image)
        return pictures.to_pil(enlarge(pictures.from_pil(image)))

    def _enlarged(self, photo: Photo, name: str, *, tile: int | None, tile_pad: int, x8: bool, precision: str) -> Photo:
        levels = Levels(photo)
        image = stage(without_hidden_colours(photo), self.device)
        with naming(name), self._turn, torch.no_grad(), autocast(precision, self.device):
            predict = FittingTiles(self.net, scale=self.scale, tile_size=tile, tile_pad=tile_pad, x8=x8)
            sr = predict(to_tensor(image, self.device), levels, value_bytes=levels.nbytes)[0].movedim(0, -1).cpu()
            finite = bool(levels.finite)
        if not finite:
            raise MtkdError(f"{name}: {NOT_FINITE}")
        return enlarged(photo, sr, self.scale)


def load(source: Source, *, scale: int | None = None, device: str | torch.device | None = None) -> Upscaler:
    """The network that `source` names, ready to upscale images.

    Args:
        source: what `load_network` takes: "tiny_x4" and the other students that come with mtkd, "zoo:NAME", a weights
            file, an ONNX file, the folder of a run, "hf:USER/NAME".
        scale: what it must enlarge by; None for any scale.
        device: where it runs; None for the GPU where there is one, else the CPU.

    Raises:
        MtkdError: as `load_network`.

    Example:
        >>> net = load("tiny_x4", device="cpu")
        >>> net.upscale(np.zeros((20, 30, 3), dtype=np.uint8)).shape
        (80, 120, 3)
    """
    net = load_network(source, scale=scale)
    return Upscaler(net, source=os.fspath(source), device=device)
