"""Pictures of a report: the crop is where rows differ, and a data address holds exactly the pixels."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mtkd.contracts import MtkdError
from mtkd.metrics.psnr import psnr
from mtkd.report.content import Picture
from mtkd.report.pictures import choose_crop, cropped, data_uri, luma
from mtkd.runtime.pixels import to_tensor
from tests.helpers import photo


def test_the_crop_is_where_the_answers_differ_most() -> None:
    first = photo("coffee", (200, 240))
    second, third = first.copy(), first.copy()
    second[120:140, 30:60] = 255 - second[120:140, 30:60]
    third[10:15, 200:210] ^= 7
    top, left = choose_crop([first, second, third], 50)
    assert top <= 120 and top + 50 >= 140 and left <= 30 and left + 50 >= 60
    spread = np.var([luma(image) for image in (first, second, third)], axis=0)
    best = max(
        ((spread[y : y + 50, x : x + 50].sum(), y, x) for y in range(151) for x in range(191)), key=lambda w: w[0]
    )
    assert spread[top : top + 50, left : left + 50].sum() == pytest.approx(best[0], rel=1e-9)


def test_without_a_difference_the_crop_is_the_corner() -> None:
    image = photo("rocket", (80, 90))
    assert choose_crop([image, image], 40) == choose_crop([image], 40) == choose_crop([], 40) == (0, 0)
    assert choose_crop([image, 255 - image], 500) == (0, 0)


def test_cropping_takes_one_place_of_all_layers_and_says_where() -> None:
    gt = photo("chelsea", (120, 150))
    answers = {("g", "a"): gt // 2, ("g", "b"): gt.copy()}
    answers["g", "b"][60:100, 90:140] = 255 - gt[60:100, 90:140]
    whole = Picture(dataset="d", image="i", gt=gt, bicubic=gt // 3, answers=answers, crop=(7, 9))
    part = cropped(whole, 64)
    assert part.crop is not None
    top, left = part.crop[0] - 7, part.crop[1] - 9
    assert part.gt.shape == (64, 64, 3) and np.array_equal(part.gt, gt[top : top + 64, left : left + 64])
    assert np.array_equal(part.bicubic, part.gt // 3) and np.array_equal(part.answers["g", "a"], part.gt // 2)
    assert cropped(whole, 150) is whole
    wide = cropped(whole, 140)
    assert wide.gt.shape == (120, 140, 3)
    with pytest.raises(MtkdError, match="different sizes: 60x60, 120x150"):
        cropped(Picture(dataset="d", image="i", gt=gt, bicubic=gt[:60, :60], answers={}), 64)


def test_one_answer_is_cut_where_it_differs_from_bicubic() -> None:
    gt = photo("astronaut", (100, 100))
    answer = gt.copy()
    answer[70:90, 70:90] = 0
    part = cropped(Picture(dataset="d", image="i", gt=gt, bicubic=gt, answers={("", "a"): answer}), 40)
    assert part.crop is not None and min(part.crop) >= 50


def test_a_data_address_holds_the_pixels_without_loss() -> None:
    image = photo("coffee", (37, 53))
    kind, _, text = data_uri(image).partition(";base64,")
    assert kind == "data:image/webp"
    with Image.open(io.BytesIO(base64.b64decode(text))) as decoded:
        assert decoded.format == "WEBP" and np.array_equal(np.asarray(decoded.convert("RGB")), image)


def test_luma_is_that_of_psnr_y() -> None:
    gt, sr = photo("coffee", (40, 40)), photo("rocket", (40, 40))
    mse = np.square(luma(sr) - luma(gt)).mean()
    known = psnr(to_tensor(sr), to_tensor(gt), crop_border=0, test_y_channel=True)
    assert 10 * np.log10(255**2 / mse) == pytest.approx(float(known), abs=1e-6)
