"""The image sets of the literature: where our recipes look for them, what is known of them, who publishes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mtkd.contracts import MtkdError
from mtkd.data import manifests
from mtkd.data.manifests import Manifest
from mtkd.runtime.names import closest


@dataclass(frozen=True)
class Part:
    """One folder of HR images of a set.

    Attributes:
        hr, lr: names of the folders of HR and of lq images in the folder of the set; lq of scale 2 is in `lr/X2`.
        manifest: gives what is known of the images.
    """

    hr: str
    lr: str
    manifest: Callable[[], Manifest]

    @property
    def meta(self) -> str:
        """Name of the meta_info file beside the two folders."""
        return f"meta_info_{self.hr}.txt"

    def lq_folder(self, folder: Path, scale: int) -> Path:
        """The lq images of `scale`, where `folder` is that of the set."""
        return folder / self.lr / f"X{scale}"


@dataclass(frozen=True)
class KnownSet:
    """A set that people know by name.

    Attributes:
        name: of the set, and of its folder.
        use: what the field uses it for.
        terms: of its owners, in short.
        source: where its owners publish it, or what is known instead.
    """

    name: str
    parts: tuple[Part, ...]
    use: str
    terms: str
    source: str


def _one(name: str) -> tuple[Part]:
    return (Part("HR", "LR_bicubic", partial(manifests.shipped, name)),)


def _div2k(half: str, first: int, last: int) -> Part:
    return Part(f"DIV2K_{half}_HR", f"DIV2K_{half}_LR_bicubic", partial(manifests.named, "{:04d}", first, last))


def _bsds500(half: str) -> Part:
    name = f"BSDS500_{half}"
    return Part(f"{name}_HR", f"{name}_LR_bicubic", partial(manifests.shipped, name))


_BERKELEY = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"
_SELFEXSR = "https://github.com/jbhuang0604/SelfExSR"

_SETS = (
    KnownSet(
        "DIV2K",
        (_div2k("train", 1, 800), _div2k("valid", 801, 900)),
        "training; 0801-0900 validation",
        "academic research only",
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    ),
    KnownSet(
        "Flickr2K",
        (Part("Flickr2K_HR", "Flickr2K_LR_bicubic", partial(manifests.named, "{:06d}", 1, 2650)),),
        "training, with DIV2K called DF2K",
        "Flickr users' licences",
        "cv.snu.ac.kr/research/EDSR/Flickr2K.tar, unreachable since 2024; use a mirror you trust",
    ),
    KnownSet(
        "BSDS500",
        (_bsds500("train"), _bsds500("test")),
        "training; without 302003, the photo of Set5's woman, and without val, which is BSD100",
        "research",
        _BERKELEY,
    ),
    KnownSet(
        "General100", _one("General100"), "training", "research", "http://mmlab.ie.cuhk.edu.hk/projects/FSRCNN.html"
    ),
    KnownSet("T91", _one("T91"), "training", "research", "no address is known here"),
    KnownSet("Set5", _one("Set5"), "test", "research", _SELFEXSR),
    KnownSet("Set14", _one("Set14"), "test", "research", _SELFEXSR),
    KnownSet("BSD100", _one("BSD100"), "test; the val images of BSDS500", "research", f"{_SELFEXSR}, {_BERKELEY}"),
    KnownSet("Urban100", _one("Urban100"), "test", "research", _SELFEXSR),
    KnownSet(
        "Manga109",
        (Part("HR", "LR_bicubic", lambda: Manifest(109, {})),),
        "test; one page a book, as chosen in the SR literature",
        "academic, on request",
        "http://www.manga109.org/",
    ),
    KnownSet("Kodak24", _one("Kodak24"), "validation", "unrestricted", "http://r0k.us/graphics/kodak/"),
)
SETS: dict[str, KnownSet] = {known.name: known for known in _SETS}
"""Name -> set, those to train on first."""
_ALSO = {"b100": "BSD100", "bsds100": "BSD100", "kodak": "Kodak24"}


def known_set(name: str) -> KnownSet:
    """The set called `name`, in capitals or not.

    Raises:
        MtkdError: none is; the text names the nearest.
    """
    lower = {known.lower(): known for known in SETS}
    found = lower.get(name.lower()) or _ALSO.get(name.lower())
    if found in SETS:
        return SETS[found]
    near = [lower[key] for key in closest(name.lower(), lower)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise MtkdError(f"No image set is known as {name[:60]!r}.{hint} `mtkd data list` names all of them.")
