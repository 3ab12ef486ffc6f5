"""Photographs without ground truth: a folder of images that are lq themselves, for teachers to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.paired import PairedImages, names_of, raise_problems
from mtkd.data.sources import FolderImages, ImageSource, LmdbImages, read_meta_info

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SECTION_KEYS = ("dataroot_lq", "meta_info_file", "io_backend")


@dataclass(frozen=True)
class UnlabelledImage:
    """One photograph: an (h, w, 3) uint8 RGB array. `name` is the file's, without suffix, unless several are so."""

    name: str
    lq: NDArray[np.uint8]


class UnlabelledImages(Sequence[UnlabelledImage]):
    """The images of one folder as lq. There is no gt, and none is made up. Images are decoded when asked for.

    Only headers are read here; every problem of every image is collected and raised at once.

    Args:
        dataroot_lq: folder of the photographs. `~` is expanded.
        scale: side of what a teacher makes of them / their own.
        meta_info_file: text file whose lines begin with the name of an image; only those are used, in that order.
        io_backend: as in `PairedImages`.
        min_target_size: both sides of what a teacher makes must be at least this long: the training crop.

    Attributes:
        names: one for each image, all different.
        lq_paths: where they lie.
        sizes: height and width of what a teacher makes of each, `scale` times its own.
        all_used: there is no meta_info_file.

    Raises:
        MtkdError: unreadable, too small or missing images; the text lists them.
    """

    def __init__(
        self,
        *,
        dataroot_lq: str | Path,
        scale: int,
        meta_info_file: str | Path | None = None,
        io_backend: Mapping[str, Any] | None = None,
        min_target_size: int | None = None,
    ) -> None:
        self.scale, self.dataroot_lq = scale, expanded(dataroot_lq)
        self.all_used = meta_info_file is None
        lmdb = (io_backend or {}).get("type", "disk") == "lmdb"
        self._lq: ImageSource = (LmdbImages if lmdb else FolderImages)(self.dataroot_lq)
        self.lq_paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        problems: list[str] = []
        for path in self._paths(meta_info_file, problems):
            try:
                height, width = (side * scale for side in self._lq.size(path))
            except MtkdError as error:
                problems.append(str(error))
                continue
            if min(height, width) < (min_target_size or scale):
                problems.append(
                    f"{path}: {height // scale}x{width // scale} (height x width) is smaller than the crop, which has "
                    f"{(min_target_size or scale) // scale} lq pixels a side (gt_size {min_target_size} / {scale})"
                )
                continue
            self.lq_paths.append(path)
            self.sizes.append((height, width))
        raise_problems(f"The images of {self.dataroot_lq} cannot be used at scale {scale}", problems)
        self.names: list[str] = names_of(self.lq_paths, self.dataroot_lq)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> UnlabelledImage:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Image `i`, decoded.

        Raises:
            MtkdError: the file cannot be decoded, or is not of the size that its header promised.
        """
        lq = self._lq.read(self.lq_paths[i])
        height, width = self.sizes[i]
        if lq.shape[:2] != (height // self.scale, width // self.scale):
            raise MtkdError(
                f"{self.lq_paths[i]} decodes to another size than its header says, or it changed since the run began. "
                "Export it again."
            )
        return UnlabelledImage(self.names[i], np.ascontiguousarray(lq))

    def stamps(self) -> list[list[Any]]:
        """What changes when an image does: absolute path, size and modification time.

        Raises:
            OSError: a file has gone.
        """
        return [self._lq.stamp(path) for path in self.lq_paths]

    def _paths(self, meta_info_file: str | Path | None, problems: list[str]) -> list[Path]:
        if meta_info_file is None:
            return self._lq.paths()
        meta = expanded(meta_info_file)
        paths = list(dict.fromkeys(self.dataroot_lq / name for name, _ in read_meta_info(meta)))
        if not paths:
            raise MtkdError(f"meta_info_file {meta} names no image: each line begins with a file name.")
        problems += [f"{path}: named in {meta}, does not exist" for path in paths if not self._lq.has(path)]
        return [path for path in paths if self._lq.has(path)]


def images_of_section(section: Mapping[str, Any], *, scale: int) -> PairedImages | UnlabelledImages:
    """The images of a data set section of an option file: pairs, or photographs where it has no `dataroot_gt`.

    Raises:
        MtkdError: what `PairedImages` or `UnlabelledImages` finds wrong, or it names no folder.
    """
    if section.get("dataroot_gt") is not None:
        return PairedImages.of_section(section, scale=scale)
    given = {key: section[key] for key in _SECTION_KEYS if section.get(key) is not None}
    if "dataroot_lq" not in given:
        raise MtkdError("A data set needs dataroot_gt, or dataroot_lq alone for photographs without ground truth.")
    return UnlabelledImages(scale=scale, min_target_size=section.get("gt_size"), **given)
