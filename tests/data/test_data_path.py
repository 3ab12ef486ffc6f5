"""What the measurement of the data path reads: photographs as folders, sub-images as BasicSR cuts them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mtkd.data.images import list_images, read_image
from mtkd.data.resize import bicubic_lq

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def measures(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from measures import data_path, photos

    return data_path, photos


def test_photographs_come_as_pairs_that_are_the_same_every_time(measures, tmp_path) -> None:
    _, photos = measures
    gt, lq = photos.pairs(tmp_path / "a", 2, (280, 300), 4)
    again, _ = photos.pairs(tmp_path / "b", 2, (280, 300), 4)
    images = [read_image(path) for path in list_images(gt)]
    assert [image.shape for image in images] == [(280, 300, 3)] * 2
    assert not np.array_equal(images[0], images[1])
    for image, path, repeated in zip(images, list_images(lq), list_images(again), strict=True):
        assert np.array_equal(read_image(path), bicubic_lq(image, 4))
        assert np.array_equal(image, read_image(repeated))


def test_sub_images_are_basicsrs(measures, tmp_path) -> None:
    data_path, photos = measures
    gt, lq = data_path.sub_images(photos.pairs(tmp_path, 1, (520, 960), 4), tmp_path, take=1)
    images = [read_image(path) for path in list_images(gt)]
    assert [image.shape for image in images] == [(480, 480, 3)] * 6
    whole = read_image(tmp_path / "gt_520x960" / "0000.png")
    assert np.array_equal(images[4], whole[40:520, 240:720])
    small = [read_image(path) for path in list_images(lq)]
    assert np.array_equal(small[4], read_image(tmp_path / "lq_520x960_x4" / "0000.png")[10:130, 60:180])
    # DIV2K: 5 rows of 8.
    assert len(data_path.starts(1356, 480, 240)) == 5 and len(data_path.starts(2040, 480, 240)) == 8
