"""Which frequencies a row recovers: its error in the bands of a wavelet transform, beside the error of another row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtkd.report.arrange import groups, rows_of
from mtkd.report.content import Picture, Report
from mtkd.report.pictures import luma

LEVELS = 3
WAVELET = "db4"
BANDS = ("below 1/8", "1/8 to 1/4", "1/4 to 1/2", "above 1/2")
"""Names of the bands, coarse to fine, in parts of the highest frequency that gt holds (half a cycle a pixel)."""

Key = tuple[str, str]
BICUBIC: Key = ("", "bicubic enlargement of the lq")


def band_energies(error: NDArray[np.float64], wavelet: str = WAVELET, levels: int = LEVELS) -> NDArray[np.float64]:
    """Energy of an error image in each band of an orthogonal wavelet transform, coarse to fine.

    The transform (PyWavelets, mode "periodization") is orthogonal, so that the energies of all bands sum to the energy
    of the error, `(error**2).sum()`: each is that band's part of the squared error which PSNR is made of. The three
    orientations of a level are one band. Filters are not ideal: a band holds some of its neighbours' frequencies, with
    db4 less than with Haar.

    Args:
        error: (H, W), both sides multiples of 2**levels; other sizes would be padded, and the sum would not hold.
        wavelet: an orthogonal one, for example "haar" or "db4".

    Returns:
        (levels + 1,): the approximation, then the details of level `levels`, ..., 1.

    Raises:
        ValueError: a side is no multiple of 2**levels, or the wavelet is not orthogonal.
    """
    import pywt

    if any(side % 2**levels for side in error.shape):
        raise ValueError(f"sides must be multiples of {2**levels}, got {error.shape}")
    if not pywt.Wavelet(wavelet).orthogonal:  # pyright: ignore[reportAttributeAccessIssue]  a C extension
        raise ValueError(f"{wavelet} is not orthogonal: the energies of its bands do not sum to the error's")
    approximation = np.asarray(error, np.float64)
    details: list[float] = []
    for _ in range(levels):
        approximation, bands = pywt.dwt2(approximation, wavelet, mode="periodization")
        details.append(sum(float(np.square(band).sum()) for band in bands))
    return np.array([float(np.square(approximation).sum()), *details[::-1]])


def picture_energies(picture: Picture, answer: NDArray[np.uint8], scale: int) -> NDArray[np.float64] | None:
    """`band_energies` of Y(answer) - Y(gt), per pixel, in squared levels; None where too little of the picture is left.

    The border of `scale` pixels that PSNR leaves out is left out here too, unless the picture is a crop; then both
    sides are cut at the end to multiples of 8.
    """
    border = scale if picture.crop is None else 0
    error = luma(answer) - luma(picture.gt)
    height, width = ((side - 2 * border) // 2**LEVELS * 2**LEVELS for side in error.shape)
    if height <= 0 or width <= 0:
        return None
    return band_energies(error[border : border + height, border : border + width]) / (height * width)


@dataclass(frozen=True)
class Bands:
    """Errors of the rows of one group by band.

    Attributes:
        reference: name of the row that the others are compared with.
        shares: part of the reference's squared error in each of `BANDS`, mean over the pictures; they sum to 1.
        gains: (group, row) -> gain in each band in dB, 10 log10(E_reference / E_row), mean over the pictures as tables
            make it of PSNR. Positive: less error than the reference. Infinite where a row has no error.
        pictures: how many there are.
    """

    reference: str
    shares: list[float]
    gains: dict[tuple[str, str], list[float]]
    pictures: int


def bands_of(report: Report) -> dict[str, Bands]:
    """Group -> errors of its rows, and of those of every group, by band; groups whose own rows no picture shows are
    left out.

    The reference of a group is its first baseline where the pictures show it, else the bicubic enlargement.
    """
    energies: list[dict[Key, NDArray[np.float64]]] = []
    for picture in report.pictures:
        layers: dict[Key, NDArray[np.uint8]] = {BICUBIC: picture.bicubic, **picture.answers}
        found = {key: picture_energies(picture, layer, report.scale) for key, layer in layers.items()}
        energies.append({key: energy for key, energy in found.items() if energy is not None})
    tables = {group: _table(report, group, energies) for group in groups(report)}
    return {group: table for group, table in tables.items() if table is not None}


def _table(report: Report, group: str, energies: Sequence[Mapping[Key, NDArray[np.float64]]]) -> Bands | None:
    candidates = [(own, name) for name in report.baselines for own in (group, "")]
    known = {key for picture in energies for key in picture}
    key = next((key for key in candidates if key in known), BICUBIC)
    used = [picture for picture in energies if key in picture and picture[key].sum() > 0]
    gains: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(report, group):
        own = (row.group, row.name)
        both = [(picture[key], picture[own]) for picture in used if own in picture]
        if both and own != key:
            gains[own] = np.mean([_decibels(*pair) for pair in both], axis=0).tolist()
    # What belongs to every group tells nothing of a group whose own rows no picture shows.
    if not any(own == group for own, _ in gains):
        return None
    shares = np.mean([picture[key] / picture[key].sum() for picture in used], axis=0).tolist()
    return Bands(key[1], shares, gains, len(used))


def _decibels(base: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(base == own, 0.0, 10 * np.log10(base / own))
