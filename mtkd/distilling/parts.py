"""Which photographs are trained on and which are measured on, whole or cut, and the side of the training crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_bytes, write_image
from mtkd.data.paired import raise_problems
from mtkd.distilling.photos import Photo, Photos, decode_all, spread
from mtkd.runtime.progress import clock

LEAST_LQ = 12
"""Side of the smallest lq crop that is trained on."""
FEWEST = 5
"""Photographs, of which one can be set aside; of fewer a quarter of each is."""
MOST_SET_ASIDE = 10
PIXELS_A_MINUTE = 20e6
"""gt pixels for every minute of training: 200 megapixels in ten minutes, and DIV2K in two hours."""
_TENTH = 10


@dataclass(frozen=True)
class Piece:
    """A photograph, or a rectangle of it."""

    photo: Photo
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, photo: Photo) -> Piece:
        return cls(photo, 0, 0, photo.height, photo.width)

    @property
    def is_whole(self) -> bool:
        return (self.height, self.width) == (self.photo.height, self.photo.width)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def smaller(self) -> int:
        """Its shorter side."""
        return min(self.height, self.width)

    def middle(self, side: int) -> Piece:
        """The middle of it, at most `side` pixels a side."""
        height, width = min(self.height, side), min(self.width, side)
        top, left = self.top + (self.height - height) // 2, self.left + (self.width - width) // 2
        return Piece(self.photo, top, left, height, width)


@dataclass
class Parts:
    """What is trained on, and what is measured on.

    Attributes:
        scale: of the networks.
        unlabelled: what is trained on are lq images; else gt images.
        crop: side of a training crop in gt pixels, or in those of the teachers' images.
        train: pieces below `train_root`.
        validation: pieces below `validation_root`, always gt images.
        remarks: lines about the choices, for people.
    """

    scale: int
    unlabelled: bool
    train_root: Path
    validation_root: Path
    train: list[Piece]
    validation: list[Piece]
    crop: int = 0
    remarks: list[str] = field(default_factory=list)

    @property
    def reduction(self) -> int:
        """Pixels of a photograph for each lq pixel that teachers run on."""
        return 1 if self.unlabelled else self.scale**2

    @property
    def lq_pixels(self) -> float:
        """Of everything that teachers answer for training."""
        return sum(piece.pixels for piece in self.train) / self.reduction

    @property
    def is_cut(self) -> bool:
        return not all(piece.is_whole for piece in (*self.train, *self.validation))

    def nbytes(self) -> int:
        """Bytes of decoded images, targets and copies on the disk, about."""
        shown = sum(piece.pixels for piece in self.train)
        target = 3 * shown * (self.scale**2 if self.unlabelled else 1)
        copies = 2 * sum(piece.pixels for piece in (*self.train, *self.validation)) if self.is_cut else 0
        return target + 4 * shown + copies


def divide(
    photos: Photos,
    *,
    scale: int,
    crop_lq: int,
    validation: Photos | int | None = None,
    unlabelled: bool = False,
    cut: bool = True,
) -> Parts:
    """Split `photos`, evenly over their names, and choose the training crop.

    Args:
        crop_lq: the wanted side of a crop in lq pixels; a smaller one is taken where more than a tenth of the
            photographs are smaller, and what is smaller still is left out.
        validation: photographs to measure on; or how many of `photos`; None for a tenth of them, at most ten, or a
            quarter of each where they are fewer than five.
        cut: photographs may be cut. What has answers of whole images may not.

    Raises:
        MtkdError: all are too small, or too few.
    """
    least = LEAST_LQ if unlabelled else LEAST_LQ * scale
    least_measured = max(LEAST_LQ * scale, 11 + 2 * scale)  # SSIM looks at 11 pixels, away from the border
    for photo in [photo for photo in photos.good if min(photo.height, photo.width) < least]:
        photos.leave_out(photo.name, f"smaller than {least} pixels a side", f"{photo.width}x{photo.height}")
    if not photos.good:
        raise MtkdError(
            f"All photographs in {photos.root} are smaller than {least} pixels a side, {LEAST_LQ} of lq at scale "
            f"{scale}. Give larger ones{'' if unlabelled else ', or a smaller --scale'}."
        )
    wholes = [Piece.whole(photo) for photo in photos.good]
    parts = Parts(scale, unlabelled, photos.root, photos.root, wholes, [])
    if isinstance(validation, Photos):
        parts.validation_root = validation.root
        parts.validation = [Piece.whole(photo) for photo in validation.good if photo.smaller >= least_measured]
        if not parts.validation:
            raise MtkdError(f"All images in {validation.root} are smaller than {least_measured} pixels a side.")
    elif validation is not None or len(wholes) >= FEWEST:
        large = [piece for piece in wholes if piece.photo.smaller >= least_measured]
        number = validation or max(1, min(MOST_SET_ASIDE, len(wholes) // 10))
        if number >= len(wholes) or number > len(large):
            raise MtkdError(
                f"--validation {number}: only {len(large)} of the {len(wholes)} photographs that can be used have "
                f"{least_measured} pixels a side, and some must be left to train on. Give fewer, or a folder."
            )
        parts.validation = [large[at] for at in spread(len(large), number)]
        parts.train = [piece for piece in wholes if piece not in parts.validation]
    else:
        _quarters(parts, least, least_measured, cut)
    _choose_crop(parts, photos, crop_lq)
    return parts


def limit(parts: Parts, minutes: float, seconds_per_pixel: float) -> None:
    """Cut to the middle of each photograph, or leave some out, until teachers need no more than `minutes` for the
    training part, and it has no more pixels than a training of as long can use.
    """
    most = PIXELS_A_MINUTE * minutes / parts.scale**2
    if seconds_per_pixel > 0:
        most = min(most, 60 * minutes / seconds_per_pixel)
    if parts.lq_pixels <= most:
        return
    before, number = parts.lq_pixels * seconds_per_pixel, len(parts.train)
    step = 8 * parts.scale
    shortest = -(-2 * parts.crop // (parts.scale if parts.unlabelled else 1) // step) * step
    longest = max(max(piece.height, piece.width) for piece in parts.train)

    def pixels(side: int) -> float:
        return sum(piece.middle(side).pixels for piece in parts.train) / parts.reduction

    side = max(shortest, longest // step * step)
    while side > shortest and pixels(side) > most:
        side = max(shortest, min(side - step, int(side * 0.97) // step * step))
    if pixels(side) > most:
        parts.train = [parts.train[at] for at in spread(number, max(1, int(number * most / pixels(side))))]
    parts.train = [piece.middle(side) for piece in parts.train]
    parts.validation = [piece.middle(max(side, LEAST_LQ * parts.scale * 2)) for piece in parts.validation]
    slow = before > 60 * minutes
    why = f"would take the teachers {clock(before)}" if slow else "are more pixels than that training can use"
    each = "each is" if len(parts.train) == number else f"{len(parts.train)} of them is"
    parts.remarks.append(
        f"{number} whole photographs {why}: the middle {side}x{side} of {each} taken (--whole takes all)"
    )


def write_parts(parts: Parts, folder: Path, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Make both parts ready: decoded once for trial, cut ones written as PNG files into `folder`/photos, else named in
    lists in `folder`. Returns what `datasets.train` and `datasets.val` say of their places.

    Raises:
        MtkdError: nothing is left of a part, or the disk refuses.
    """
    copied = parts.is_cut
    places: dict[str, dict[str, Any]] = {}
    for name, root in (("train", parts.train_root), ("validation", parts.validation_root)):
        pieces: list[Piece] = getattr(parts, name)
        target = folder / "photos" / name
        work = _writer(pieces, root, target) if copied else None
        photos = Photos(root, [piece.photo for piece in pieces])
        decode_all(photos, work)
        parts.remarks += photos.remarks()
        left = [piece for piece in pieces if piece.photo in photos.good]
        setattr(parts, name, left)
        key = "dataroot_lq" if parts.unlabelled and name == "train" else "dataroot_gt"
        if copied:
            places[name] = {key: str(target)}
        else:
            listed = folder / f"{prefix}{name}.txt"
            lines = [f"{piece.photo.name} ({piece.height},{piece.width},3)\n" for piece in left]
            write_bytes(listed, "".join(lines).encode())
            places[name] = {key: str(root), "meta_info_file": str(listed)}
    return places


def _writer(pieces: Sequence[Piece], root: Path, target: Path) -> Callable[[Photo], object]:
    numbered = {piece.photo.name: (number, piece) for number, piece in enumerate(pieces)}
    try:
        for old in target.glob("*.png") if target.is_dir() else ():
            old.unlink()  # of a start that was killed
    except OSError as error:
        raise_problems("Copies of photographs cannot be removed", [str(error)])

    def write(photo: Photo) -> None:
        number, piece = numbered[photo.name]
        image = read_image(root / photo.name)
        cut = image[piece.top : piece.top + piece.height, piece.left : piece.left + piece.width]
        write_image(target / f"{number:05d}_{Path(photo.name).stem[:100]}.png", cut)

    return write


def _quarters(parts: Parts, least: int, least_measured: int, cut: bool) -> None:
    """Set a quarter of each photograph aside, where they are too few to set some aside."""
    count = len(parts.train)
    few = f"{count} photograph{'s are' if count > 1 else ' is'} too few to set some aside"
    kept, aside = [], []
    for piece in parts.train if cut else ():
        train, rest = _cut_off(piece, parts.scale)
        if train.smaller < least or rest.smaller < least_measured:
            kept.append(piece)
        else:
            kept.append(train)
            aside.append(rest)
    if aside:
        parts.train, parts.validation = kept, aside
        parts.remarks.append(f"{few}: a quarter of {len(aside)} is kept for validation")
        return
    parts.validation = [piece for piece in parts.train if piece.photo.smaller >= least_measured]
    if not parts.validation:
        raise MtkdError(
            f"No photograph has {least_measured} pixels a side, so that nothing can be measured on them. Give images "
            "to measure on: --validation FOLDER."
        )
    parts.remarks.append(
        f"{few} or to cut them: scores are those of photographs that it learns from (--validation FOLDER)"
    )


def _cut_off(piece: Piece, scale: int) -> tuple[Piece, Piece]:
    """Three quarters, and the last quarter, along the longer side; the cut lies on a multiple of the scale."""
    along_height = piece.height >= piece.width
    length = max(piece.height, piece.width)
    rest = length // 4 // scale * scale
    if along_height:
        first = replace(piece, height=length - rest)
        return first, replace(piece, top=piece.top + length - rest, height=rest)
    return replace(piece, width=length - rest), replace(piece, left=piece.left + length - rest, width=rest)


def _choose_crop(parts: Parts, photos: Photos, crop_lq: int) -> None:
    by = 1 if parts.unlabelled else parts.scale
    sides = sorted(piece.smaller // by for piece in parts.train)
    found = min(crop_lq, sides[len(sides) // _TENTH])
    found = max(found // 4 * 4, LEAST_LQ)
    parts.crop = found * parts.scale
    small = [piece for piece in parts.train if piece.smaller // by < found]
    parts.train = [piece for piece in parts.train if piece not in small]
    if found < crop_lq:
        parts.remarks.append(
            f"crops of {found} lq pixels a side in place of {crop_lq}: more than a tenth of the photographs are smaller"
        )
    for piece in small:
        size = f"{piece.width}x{piece.height}"
        photos.leave_out(piece.photo.name, f"smaller than the crop, {found * by} pixels a side", size)
