"""A teacher that is its answers: called with a whole lq image, it gives the answer that is kept.

Everything that calls a network, lq -> sr, can call it: ensembles, tables, validation. It knows an lq by its pixels,
so that nobody has to say which image is meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mtkd.contracts import MtkdError
from mtkd.data.answers import Answers, place_of
from mtkd.data.paired import PairedImages, raise_problems
from mtkd.runtime.pixels import to_pixels, to_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class KeptAnswers(nn.Module):
    """lq -> the kept answer. It has no parameters, makes no multiply-adds, and cannot be asked for crops or tiles.

    In training nobody calls it: the crops of its answers come with the batch (`Batch.answers`).

    Args:
        name: of the teacher, for messages.
        images: `teachers.NAME.images` of an option file.
        scale: side of an answer / side of its lq.
    """

    feature_names: tuple[str, ...] = ()

    def __init__(self, name: str, images: str | Mapping[str, str], scale: int) -> None:
        super().__init__()
        self.name, self.images, self.scale = name, images, scale
        self.sets: list[str] = []
        self._waiting: dict[tuple[int, int], Iterator[tuple[bytes, Callable[[], NDArray[Any]]]]] = {}
        self._known: dict[bytes, Callable[[], NDArray[Any]]] = {}
        self._answers_anything = False

    def learn(
        self, label: str, answers: Sequence[NDArray[Any]], lq: Sequence[NDArray[Any]], sizes: Sequence[tuple[int, int]]
    ) -> None:
        """From now on know the `answers` to the images `lq`, whose answers have `sizes` (height, width).

        No image is read now: an lq is only compared with those of its size, which are read when one is asked for.
        """
        if label in self.sets:
            return
        self.sets.append(label)
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, (height, width) in enumerate(sizes):
            by_size.setdefault((height // self.scale, width // self.scale), []).append(i)
        for size, indices in by_size.items():
            found = ((_key(lq[i]), lambda i=i: answers[i]) for i in indices)
            self._waiting[size] = _chain(self._waiting.get(size), found)

    def forward(self, lq: Tensor) -> Tensor:
        """The answers to whole images (N, 3, h, w), float32 in [0, 1], as (N, 3, h * scale, w * scale).

        Raises:
            MtkdError: it has no answer to one of them.
        """
        if self._answers_anything or lq.is_meta:
            number, channels, height, width = lq.shape
            return lq.new_zeros(number, channels, height * self.scale, width * self.scale)
        return torch.cat([to_tensor(self._answer(image), lq.device).to(lq.dtype) for image in lq])

    def stay_uncompiled(self) -> None:
        """Be called as it is where a network around it is compiled: it hashes pixels and reads files."""
        self.forward = torch.compiler.disable(self.forward)

    def _answer(self, lq: Tensor) -> NDArray[Any]:
        pixels = to_pixels(lq).cpu().numpy()
        key, size = _key(pixels), (pixels.shape[0], pixels.shape[1])
        while key not in self._known:
            following = next(self._waiting.get(size, iter(())), None)
            if following is None:
                raise MtkdError(
                    f"The teacher {self.name!r} is kept answers, and none of them answers this lq image of "
                    f"{size[0]}x{size[1]} pixels (height x width). It answers the whole images of "
                    f"{', '.join(self.sets) or 'no data set here'}, not crops, tiles or turned images of them."
                )
            self._known.setdefault(*following)
        return self._known[key]()


def _key(pixels: NDArray[Any]) -> bytes:
    return hashlib.blake2b(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def _chain(first: Iterator[Any] | None, second: Iterator[Any]) -> Iterator[Any]:
    yield from first or ()
    yield from second


class _Lq(Sequence["NDArray[Any]"]):
    def __init__(self, images: PairedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> NDArray[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.images[i].lq


def kept_inside(net: nn.Module) -> list[KeptAnswers]:
    """Teachers inside `net`, or itself, that are kept answers."""
    return [module for module in net.modules() if isinstance(module, KeptAnswers)]


def learn_sets(net: nn.Module, sets: Mapping[tuple[str, ...], Any], *, flat: bool = False) -> None:
    """Open the answers to image sets for the teachers inside `net` that are kept answers; else nothing happens.

    Args:
        sets: the names that a set goes by (its key in the option file, its `name`) -> `PairedImages`.
        flat: answers that are not divided by data set answer the one set there is.

    Raises:
        MtkdError: a teacher lacks the answers to a set, or they do not fit; all of it is listed.
    """
    problems: list[str] = []
    for teacher in kept_inside(net):
        for names, images in sets.items():
            try:
                answers = answers_to(teacher.images, names, images, flat=flat and len(sets) == 1)
            except MtkdError as error:
                problems.append(f"teacher {teacher.name!r}, {names[-1]}: {error}")
                continue
            teacher.learn(names[-1], answers, _Lq(images), images.sizes)
    raise_problems("Kept answers of teachers cannot be used", problems)


def answers_to(
    images: str | Mapping[str, str],
    names: Sequence[str],
    answered: Any,
    *,
    flat: bool,
    exact: bool | None = None,
    marks: Mapping[str, Any] | None = None,
) -> Answers:
    """The answers of one teacher to the images `answered` (`names` and `sizes`) of the data set called `names`.

    Args:
        exact: as in `Answers`; None asks the images whether they are all of their folder.

    Raises:
        MtkdError: there are none, or they do not fit.
    """
    if not hasattr(answered, "sizes"):
        raise MtkdError(
            "its images come from a class from outside, which are known by no name. Use a PairedImageDataset, or give "
            "the teacher's network and pretrain."
        )
    place = place_of(images, names, flat=flat)
    if place is None:
        if isinstance(images, str):
            where = " or ".join(str(Path(images) / name) for name in dict.fromkeys(names))
            raise MtkdError(f"there are no answers to this data set. Put them into {where}, a folder or a store.")
        raise MtkdError(f"there are no answers to this data set. Give them: `images: {{{names[-1]}: FOLDER}}`.")
    exact = bool(answered.all_used) if exact is None else exact
    return Answers(place, answered.names, answered.sizes, exact=exact, marks=marks)


@contextmanager
def answering_anything(net: nn.Module) -> Iterator[None]:
    """Within the block the kept answers inside `net` answer any image, with black, so that the rest can be tried."""
    kept = kept_inside(net)
    for teacher in kept:
        teacher._answers_anything = True
    try:
        yield
    finally:
        for teacher in kept:
            teacher._answers_anything = False
