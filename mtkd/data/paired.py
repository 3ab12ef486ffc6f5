"""Folders of images as (lq, gt) pairs, checked completely before the first one is used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd.contracts import MtkdError
from mtkd.data.images import expanded
from mtkd.data.resize import bicubic_lq
from mtkd.data.sources import FolderImages, ImageSource, LmdbImages, read_meta_info
from mtkd.runtime.luma import luma_of_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("mtkd")

_PROBLEMS_SHOWN = 20
_SECTION_KEYS = ("dataroot_gt", "dataroot_lq", "meta_info_file", "filename_tmpl", "io_backend")


@dataclass(frozen=True)
class PairedImage:
    """One pair: (h, w, 3) and (h * scale, w * scale, 3) uint8 RGB arrays, unless `PairedLuma` made it. `name` is the gt
    file's, without suffix.

    Where several gt files are called so, it has their sub-folder, or else their suffix, too.
    """

    name: str
    lq: NDArray[Any]
    gt: NDArray[Any]


class PairedImages(Sequence[PairedImage]):
    """Pairs of images from folders, with BasicSR's `PairedImageDataset` keys. Images are decoded when asked for.

    The lq of `NAME.png` is `filename_tmpl.format(NAME)` with the same suffix, or, where BasicSR would stop, with any
    other image suffix that is unambiguous. Only image headers are read here, so that thousands of images open in a
    second; every problem of every image is collected and raised at once.

    A gt image may be larger than lq * scale by less than `scale` pixels at the bottom and at the right; it is cut to
    lq * scale. BasicSR allows any surplus in validation and none in training; a larger one means that the images do not
    show the same scene region, so it is an error in both here.

    Args:
        dataroot_gt: folder of the gt images. `~` is expanded in all paths.
        dataroot_lq: folder of the lq images. None: lq is made from gt by MATLAB's bicubic (`bicubic_lq`).
        scale: gt side / lq side.
        meta_info_file: text file whose lines begin with the file name of a gt image (BasicSR's form,
            `0001_s001.png (480,480,3)`, see `sources.read_meta_info`); only those images are used, in that order.
            None: all images of the folder.
        filename_tmpl: lq name made from the gt name, both without suffix, such as '{}x4'.
        io_backend: None or `{type: disk}` for folders of image files; `{type: lmdb}` for BasicSR's lmdb folders, whose
            lq and gt have the same keys, so that filename_tmpl is not used. Others are an error.
        min_gt_size: both sides of each gt (after the cut) must be at least this long: the training crop.

    Raises:
        MtkdError: unpaired, unreadable, wrongly sized, too small or doubly named images; the text lists them.
    """

    def __init__(
        self,
        *,
        dataroot_gt: str | Path,
        scale: int,
        dataroot_lq: str | Path | None = None,
        meta_info_file: str | Path | None = None,
        filename_tmpl: str = "{}",
        io_backend: Mapping[str, Any] | None = None,
        min_gt_size: int | None = None,
    ) -> None:
        if not isinstance(scale, int) or scale < 1:
            raise MtkdError(f"scale must be a whole number of 1 or more, not {scale!r}.")
        if filename_tmpl.count("{}") != 1:
            raise MtkdError(
                f"filename_tmpl {filename_tmpl!r} must hold {{}} once: the place of the gt name, such as '{{}}x4'."
            )
        backend = (io_backend or {}).get("type", "disk")
        if backend not in ("disk", "lmdb"):
            raise MtkdError(
                f"io_backend.type is {backend!r}, and must be 'disk' or 'lmdb': images are decoded once into a store, "
                "which makes memcached unnecessary."
            )
        self.scale = scale
        self.dataroot_gt = expanded(dataroot_gt)
        self.dataroot_lq = None if dataroot_lq is None else expanded(dataroot_lq)
        source = LmdbImages if backend == "lmdb" else FolderImages
        self._gt: ImageSource = source(self.dataroot_gt)
        self._lq: ImageSource | None = None if self.dataroot_lq is None else source(self.dataroot_lq)
        if backend == "lmdb":
            filename_tmpl = "{}"
        self.names: list[str] = []
        self.gt_paths: list[Path] = []
        self.lq_paths: list[Path] | None = None if dataroot_lq is None else []
        self.sizes: list[tuple[int, int]] = []
        """Height and width of each gt after the cut."""
        self.all_used = meta_info_file is None
        """There is no meta_info_file."""

        problems: list[str] = []
        gt_paths = self._gt_paths(meta_info_file, problems)
        partners = self._lq_paths(gt_paths, filename_tmpl, meta_info_file is None, problems)
        for gt_path in gt_paths:
            if partners is None:
                size = self._size(gt_path, None, min_gt_size, problems)
            elif gt_path in partners:
                size = self._size(gt_path, partners[gt_path], min_gt_size, problems)
            else:
                continue
            if size is not None:
                self.gt_paths.append(gt_path)
                self.sizes.append(size)
                if self.lq_paths is not None and partners is not None:
                    self.lq_paths.append(partners[gt_path])
        self.names = names_of(self.gt_paths, self.dataroot_gt)
        roots = str(self.dataroot_gt) + ("" if self.dataroot_lq is None else f" and {self.dataroot_lq}")
        raise_problems(f"The images of {roots} cannot be used at scale {scale}", problems)
        self._say_turned_alone()

    @classmethod
    def of_section(cls, section: Mapping[str, Any], *, scale: int) -> PairedImages:
        """The images of a data set section of an option file; `gt_size` is `min_gt_size`, other keys are unused."""
        given = {key: section[key] for key in _SECTION_KEYS if section.get(key) is not None}
        return cls(scale=scale, min_gt_size=section.get("gt_size"), **given)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> PairedImage:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pair `i`, decoded.

        Raises:
            MtkdError: a file cannot be decoded, or is not of the size in its header.
        """
        name = self.names[i]
        height, width = self.sizes[i]
        gt = self._gt.read(self.gt_paths[i])[:height, :width]
        if self._lq is None or self.lq_paths is None:
            lq = bicubic_lq(gt, self.scale)
        else:
            lq = self._lq.read(self.lq_paths[i])
        if gt.shape[:2] != (height, width) or lq.shape[:2] != (height // self.scale, width // self.scale):
            raise MtkdError(
                f"{self.gt_paths[i]} or its lq image decodes to another size than its header has, or it changed since "
                "the run began. Export the pair again."
            )
        return PairedImage(name, lq, np.ascontiguousarray(gt))

    def stamps(self) -> list[list[Any]]:
        """What changes when an image does: absolute path, size and modification time, all of gt, then all of lq.

        Raises:
            OSError: a file has gone.
        """
        stamps = [self._gt.stamp(path) for path in self.gt_paths]
        if self._lq is not None:
            stamps += [self._lq.stamp(path) for path in self.lq_paths or []]
        return stamps

    def _gt_paths(self, meta_info_file: str | Path | None, problems: list[str]) -> list[Path]:
        if meta_info_file is None:
            paths = self._gt.paths()
        else:
            meta = expanded(meta_info_file)
            paths = [self.dataroot_gt / name for name, _ in read_meta_info(meta)]
            if not paths:
                raise MtkdError(f"meta_info_file {meta} names no image: each line begins with a file name.")
            problems += [f"{path}: named in {meta}, does not exist" for path in paths if not self._gt.has(path)]
            paths = [path for path in paths if self._gt.has(path)]
        if self._lq is None:
            # Each is its own lq; one that a list names twice is one.
            return list(dict.fromkeys(paths))
        seen: dict[str, Path] = {}
        for path in paths:
            if path.stem in seen:
                problems.append(f"{path}: same name as {seen[path.stem].name}, so its lq image is ambiguous")
            seen.setdefault(path.stem, path)
        return list(seen.values())

    def _lq_paths(
        self, gt_paths: list[Path], filename_tmpl: str, all_used: bool, problems: list[str]
    ) -> dict[Path, Path] | None:
        if self._lq is None:
            return None
        by_stem: dict[str, list[Path]] = {}
        for path in self._lq.paths():
            by_stem.setdefault(path.stem, []).append(path)
        partners: dict[Path, Path] = {}
        for gt_path in gt_paths:
            stem = filename_tmpl.format(gt_path.stem)
            found = by_stem.pop(stem, [])
            same_suffix = [path for path in found if path.suffix == gt_path.suffix]
            choice = same_suffix or found
            if len(choice) == 1:
                partners[gt_path] = choice[0]
            elif choice:
                problems.append(f"{gt_path}: several lq images fit, {', '.join(p.name for p in choice)}")
            else:
                problems.append(f"{gt_path}: no lq image {stem}{gt_path.suffix} in {self.dataroot_lq}")
        if all_used:
            problems += [
                f"{path}: no gt image has this lq image (filename_tmpl is {filename_tmpl!r})"
                for paths in by_stem.values()
                for path in paths
            ]
        return partners

    def _size(
        self, gt_path: Path, lq_path: Path | None, min_gt_size: int | None, problems: list[str]
    ) -> tuple[int, int] | None:
        try:
            gt_h, gt_w = self._gt.size(gt_path)
            if self._lq is None or lq_path is None:
                lq_h, lq_w = gt_h // self.scale, gt_w // self.scale
            else:
                lq_h, lq_w = self._lq.size(lq_path)
        except MtkdError as error:
            problems.append(str(error))
            return None
        if (gt_h // self.scale, gt_w // self.scale) != (lq_h, lq_w):
            problems.append(
                f"{gt_path}: gt is {gt_h}x{gt_w} (height x width), so lq must be {gt_h // self.scale}x"
                f"{gt_w // self.scale}, but {lq_path} is {lq_h}x{lq_w}"
            )
            return None
        height, width = lq_h * self.scale, lq_w * self.scale
        if min(height, width) < (min_gt_size or self.scale):
            problems.append(
                f"{gt_path}: {height}x{width} (height x width) is smaller than "
                + (f"the crop gt_size {min_gt_size}" if min_gt_size else "one lq pixel")
            )
            return None
        return height, width

    def _say_turned_alone(self) -> None:
        """Warn where the orientation tag of one image of a pair is not that of the other: sizes still agree when
        the tag turns by 180 degrees, and a tool that ignored the tag has made the other.
        """
        if self._lq is None or self.lq_paths is None:
            return
        odd = [
            gt
            for gt, lq in zip(self.gt_paths, self.lq_paths, strict=True)
            if self._gt.orientation(gt) != self._lq.orientation(lq)
        ]
        if odd:
            logger.warning(
                "%s: %d of %d gt images and their lq images have different orientation tags, such as %s. All tags are "
                "applied; check that each pair shows the same scene the same way up.",
                self.dataroot_gt,
                len(odd),
                len(self.gt_paths),
                odd[0].name,
            )


class PairedLuma(PairedImages):
    """The same pairs as Y alone, `color: y` of BasicSR: float32 arrays (h, w, 1) and (h * scale, w * scale, 1) in
    [16/255, 235/255], not rounded. lq is made of gt, where it is, before both become Y.
    """

    def __getitem__(self, i: int) -> PairedImage:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pair `i`, decoded; raises what `PairedImages` does."""
        pair = super().__getitem__(i)
        return PairedImage(pair.name, luma_of_pixels(pair.lq), luma_of_pixels(pair.gt))


def names_of(paths: Sequence[Path], root: Path) -> list[str]:
    """Unique names of images: the file's without suffix; with its sub-folder, then also with its suffix, where several
    are called so.
    """
    longest = [path.relative_to(root) if path.is_relative_to(root) else path for path in paths]
    # Results are written under these names.
    longest = ["/".join(part for part in path.parts if part not in ("..", path.anchor)) for path in longest]
    names = [(Path(name).stem, str(Path(name).with_suffix("")), name) for name in longest]
    detail = [0] * len(names)
    while True:
        chosen = [name[at] for name, at in zip(names, detail, strict=True)]
        count = Counter(chosen)
        finer = [min(at + (count[name] > 1), 2) for name, at in zip(chosen, detail, strict=True)]
        if finer == detail:
            return chosen
        detail = finer


def raise_problems(what: str, problems: Sequence[str]) -> None:
    """Raise one MtkdError that lists `problems`, the first 20 in full; nothing happens when there are none."""
    if not problems:
        return
    lines = [f"  {problem}" for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > _PROBLEMS_SHOWN:
        lines.append(f"  and {len(problems) - _PROBLEMS_SHOWN} more")
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise MtkdError("\n".join([f"{what} ({count}):", *lines]))
