from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers import photo
from PIL import Image

from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image, read_size, write_image


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".PNG"])
def test_an_image_survives_writing_and_reading(tmp_path, suffix):
    image = photo("chelsea", (31, 47))
    path = tmp_path / "new" / f"a{suffix}"
    write_image(path, image)
    assert np.array_equal(read_image(path), image)
    assert read_size(path) == (31, 47)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "a temporary file stayed behind"


def test_reading_agrees_with_pillow_about_channel_order(tmp_path):
    Image.fromarray(photo("coffee", (20, 20))).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), photo("coffee", (20, 20)))


def test_grey_becomes_three_channels_and_alpha_is_dropped(tmp_path):
    rgb = photo("coffee", (20, 30))
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    alpha = np.dstack([rgb, np.full((20, 30), 7, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "alpha.png"), rgb)


def test_the_header_size_respects_the_orientation_of_a_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo("coffee", (20, 30))).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (30, 20, 3)
    assert read_size(tmp_path / "turned.jpg") == (30, 20)


def test_sixteen_bits_are_refused_by_name(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 8, 3), np.uint16))
    with pytest.raises(MtkdError, match="deep.png has 16 bits"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, damage, suffix):
    path = tmp_path / f"bad{suffix}"
    Image.fromarray(photo("coffee", (64, 64))).save(path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(MtkdError, match=f"bad{suffix}"):
        read_image(path)
    if damage != "truncated":
        with pytest.raises(MtkdError, match=f"bad{suffix}"):
            read_size(path)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_only_eight_bit_images_are_written(tmp_path, array):
    with pytest.raises(MtkdError, match="uint8 of shape"):
        write_image(tmp_path / "a.png", array)
    assert list(tmp_path.iterdir()) == []


def test_listing_sorts_by_name_and_keeps_images_only(tmp_path):
    for name in ["b.png", "a10.jpg", "a2.PNG", ".hidden.png", "notes.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a10.jpg", "a2.PNG", "b.png"]
    with pytest.raises(MtkdError, match="holds no image"):
        list_images(tmp_path / "sub")
    with pytest.raises(MtkdError, match="is not a folder"):
        list_images(tmp_path / "absent")
