"""Errors by band: the bands share out the whole error, and each frequency lands in its own band."""

from __future__ import annotations

import numpy as np
import pytest
import pywt

from mtkd.report.bands import BANDS, band_energies, bands_of, picture_energies
from mtkd.report.content import Picture, Report, Row
from tests.report.sample import between, bicubic_of, demo_images


@pytest.mark.parametrize("wavelet", ["haar", "db4"])
def test_the_energies_of_the_bands_sum_to_the_energy_of_the_error(wavelet: str) -> None:
    error = np.random.default_rng(0).normal(size=(64, 96)) + 3
    assert band_energies(error, wavelet).sum() == pytest.approx(np.square(error).sum(), rel=1e-12)


def test_bands_are_those_of_the_whole_decomposition_of_pywavelets() -> None:
    error = np.random.default_rng(1).normal(size=(64, 64))
    approximation, *details = pywt.wavedec2(error, "db4", mode="periodization", level=3)
    energies = [np.square(approximation).sum(), *(np.square(detail).sum() for detail in details)]
    np.testing.assert_allclose(band_energies(error), energies, rtol=1e-12)


@pytest.mark.parametrize(("frequency", "band"), [(0.75, 3), (0.36, 2), (0.18, 1), (0.05, 0)])
def test_a_wave_lands_in_its_band(frequency: float, band: int) -> None:
    """`frequency` in parts of the highest one, half a cycle a pixel."""
    wave = np.cos(np.pi * frequency * np.arange(256))[None].repeat(64, 0)
    energies = band_energies(wave)
    assert energies.argmax() == band and energies[band] > 0.8 * energies.sum()


def test_what_would_not_sum_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        band_energies(np.zeros((20, 16)))
    with pytest.raises(ValueError, match="not orthogonal"):
        band_energies(np.zeros((16, 16)), "bior2.2")


def _picture(crop: tuple[int, int] | None = None) -> Picture:
    gt = next(iter(demo_images(1, side=72)["Kodak"].values()))
    bicubic = bicubic_of(gt, 4)
    answers = {("s", "a"): between(bicubic, gt, 0.3, 1.0, 0, 0), ("s", "b"): between(bicubic, gt, 0.6, 1.0, 0, 0)}
    return Picture(dataset="Kodak", image="one", gt=gt, bicubic=bicubic, answers=answers, crop=crop)


def test_energies_of_a_whole_picture_leave_out_the_border_of_psnr() -> None:
    picture = _picture()
    broken = picture.gt.copy()
    broken[:4] = 255 - broken[:4]
    whole = picture_energies(picture, broken, 4)
    assert whole is not None and whole.sum() == 0
    part = picture_energies(_picture(crop=(0, 0)), broken, 4)
    assert part is not None and part.sum() > 0
    assert picture_energies(picture, picture.gt, 40) is None


def test_gains_are_decibels_over_the_first_baseline_that_the_pictures_show() -> None:
    picture = _picture()
    rows = [Row(name=name, group="s", scores={}) for name in ("a", "b", "without pictures")]
    report = Report(
        title="", scale=4, rows=rows, images={"Kodak": ["one"]}, metrics={"psnr": "higher"}, pictures=[picture]
    )
    plain = bands_of(report)["s"]
    assert set(plain.gains) == {("s", "a"), ("s", "b")} and plain.pictures == 1 and "bicubic" in plain.reference
    energies = [picture_energies(picture, picture.answers["s", name], 4) for name in ("a", "b")]
    based = bands_of(Report(**{**vars(report), "baselines": ["without pictures", "a"]}))["s"]
    assert based.reference == "a" and set(based.gains) == {("s", "b")}
    assert energies[0] is not None and energies[1] is not None
    expected = 10 * (np.log10(energies[0]) - np.log10(energies[1]))
    np.testing.assert_allclose(based.gains["s", "b"], expected, rtol=1e-9)
    np.testing.assert_allclose(based.shares, energies[0] / energies[0].sum())
    assert len(based.shares) == len(BANDS) and min(based.gains["s", "b"][:3]) > 0


def test_a_perfect_row_is_infinitely_better_and_a_perfect_reference_is_no_measure() -> None:
    picture = _picture()
    picture = Picture(**{**vars(picture), "answers": {("s", "a"): picture.gt, ("s", "b"): picture.bicubic}})
    rows = [Row(name=name, group="s", scores={}) for name in ("a", "b")]
    report = Report(
        title="", scale=4, rows=rows, images={"Kodak": ["one"]}, metrics={"psnr": "higher"}, pictures=[picture]
    )
    gains = bands_of(report)["s"].gains
    assert gains["s", "a"] == [np.inf] * 4 and gains["s", "b"] == [0.0] * 4
    assert bands_of(Report(**{**vars(report), "baselines": ["a"]})) == {}
