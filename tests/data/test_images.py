"""Reading and writing images: formats, orientation, damaged and hostile files."""

from __future__ import annotations

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_header, read_size
from mtkd.data.images import list_images, read_image, write_image
from tests.helpers import photo


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".PNG"])
def test_an_image_survives_writing_and_reading(tmp_path, suffix) -> None:
    image = photo("chelsea", (31, 47))
    path = tmp_path / "new" / f"a{suffix}"
    write_image(path, image)
    assert np.array_equal(read_image(path), image)
    assert read_size(path) == (31, 47)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "a temporary file stayed behind"


def test_reading_agrees_with_pillow_about_channel_order(tmp_path) -> None:
    Image.fromarray(photo("coffee", (20, 20))).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), photo("coffee", (20, 20)))


def test_grey_becomes_three_channels_and_alpha_is_dropped(tmp_path) -> None:
    rgb = photo("coffee", (20, 30))
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    alpha = np.dstack([rgb, np.full((20, 30), 7, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "alpha.png"), rgb)


@pytest.mark.parametrize("suffix", [".png", ".late.png", ".tif", ".jpg", ".webp", ".bmp"])
def test_the_orientation_tag_is_one_rule_for_size_and_pixels(tmp_path, suffix) -> None:
    upright = Image.fromarray(photo("coffee", (20, 30)))
    for tag in (None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99):
        path, exif = tmp_path / f"turned{suffix}", Image.Exif()
        if tag is not None:
            exif[0x0112] = tag
        late = suffix == ".late.png"
        options = {"lossless": True} if suffix == ".webp" else {}
        upright.save(path, **options | ({} if late else {"exif": exif}))
        if late:
            path.write_bytes(with_chunk(path.read_bytes(), b"eXIf", exif.tobytes()[6:], before=b"IEND"))
        pixels = read_image(path)
        assert read_size(path) == pixels.shape[:2], tag
        with Image.open(path) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.int16)
        assert wanted.shape == pixels.shape and np.abs(wanted - pixels).max() <= 2, tag


def with_chunk(png: bytes, kind: bytes, data: bytes, *, before: bytes) -> bytes:
    at = png.index(before) - 4
    return png[:at] + struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) + png[at:]


def test_an_image_beyond_pillows_limit_has_a_size_and_one_beyond_opencvs_is_said_to_be(tmp_path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    assert read_size(tmp_path / "large.png") == (10_000, 20_000)
    Image.new("1", (4, 4)).save(tmp_path / "largest.png")
    png = (tmp_path / "largest.png").read_bytes()
    header = struct.pack(">II", 40_000, 40_000) + png[24:29]
    png = png[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + png[33:]
    (tmp_path / "largest.png").write_bytes(png)
    with pytest.raises(MtkdError, match="40000x40000 pixels, and OpenCV decodes 1,073,741,824 at most"):
        read_image(tmp_path / "largest.png")
    assert Image.MAX_IMAGE_PIXELS is not None


def test_what_is_no_regular_file_is_left_out_of_folders_and_never_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "d.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    write_image(tmp_path / "good.png", photo("coffee", (8, 8)))
    assert [p.name for p in list_images(tmp_path)] == ["gone.png", "good.png"]
    for name in ("pipe.png", "d.png"):
        for read in (read_image, read_size):
            with pytest.raises(MtkdError, match=f"{name} is not an image file"):
                read(tmp_path / name)


@pytest.mark.parametrize("folder", ["~nobody_of_this_name/images", "x" * 300, "nul\0"])
def test_a_folder_that_no_system_call_takes_is_an_error_that_names_it(folder) -> None:
    with pytest.raises(MtkdError, match="is not a folder"):
        list_images(folder)


def test_sixteen_bits_are_refused_by_name(tmp_path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 8, 3), np.uint16))
    with pytest.raises(MtkdError, match="deep.png has 16 bits"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, damage, suffix) -> None:
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


@pytest.mark.parametrize("compression", ["tiff_lzw", "raw"])
def test_a_tiff_whose_pixels_cannot_be_unpacked_is_refused(tmp_path, compression) -> None:
    path = tmp_path / "bad.tif"
    Image.fromarray(photo("coffee", (40, 40))).save(path, compression=compression)
    assert read_image(path).shape == (40, 40, 3)
    with Image.open(path) as image:
        start = image.tag_v2[273][0]
    data = bytearray(path.read_bytes())
    data[start + 200 : start + 230] = bytes(30)
    path.write_bytes(data)
    if compression == "raw":
        assert read_image(path).shape == (40, 40, 3)  # has no checksum
    else:
        with pytest.raises(MtkdError, match="bad.tif cannot be decoded: it is damaged"):
            read_image(path)


@pytest.mark.parametrize("first", [False, True])
def test_an_animated_png_is_its_first_picture(tmp_path, first) -> None:
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (9, 7, 3), np.uint8)) for k in range(3)]
    path = tmp_path / "a.png"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], default_image=first)
    assert (read_image(path) == np.asarray(pictures[0])).all()
    assert read_header(path).frames > 1


def test_a_png_that_announces_an_animation_and_has_none_is_its_image(tmp_path) -> None:
    path, image = tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    write_image(path, image)
    data, body = path.read_bytes(), b"acTL" + bytes((0, 0, 0, 2, 0, 0, 0, 0))
    path.write_bytes(data[:33] + struct.pack(">I", 8) + body + struct.pack(">I", zlib.crc32(body)) + data[33:])
    assert (read_image(path) == image).all()


def test_a_png_is_held_to_the_checksums_of_all_its_parts(tmp_path) -> None:
    path, image = tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    write_image(path, image)
    data, body = path.read_bytes(), b"tEXtAuthor\0nobody"
    part = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + part + data[33:] + b"after the end anything may stand")
    assert (read_image(path) == image).all()
    path.write_bytes(data[:33] + part[:-1] + bytes([part[-1] ^ 1]) + data[33:])
    with pytest.raises(MtkdError, match="a.png cannot be decoded: it is damaged"):
        read_image(path)


def test_a_bitmap_whose_header_is_damaged_is_refused(tmp_path) -> None:
    path = tmp_path / "a.bmp"
    write_image(path, np.zeros((9, 7, 3), np.uint8))
    data = bytearray(path.read_bytes())
    data[17] = 0x20
    path.write_bytes(data)
    with pytest.raises(MtkdError, match="a.bmp cannot be decoded: it is damaged"):
        read_image(path)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_only_eight_bit_images_are_written(tmp_path, array) -> None:
    with pytest.raises(MtkdError, match="uint8 of shape"):
        write_image(tmp_path / "a.png", array)
    assert list(tmp_path.iterdir()) == []


def test_listing_sorts_by_name_and_keeps_images_only(tmp_path) -> None:
    for name in ["b.png", "a10.jpg", "a2.PNG", ".hidden.png", "notes.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a10.jpg", "a2.PNG", "b.png"]
    with pytest.raises(MtkdError, match="holds no image"):
        list_images(tmp_path / "sub")
    with pytest.raises(MtkdError, match="is not a folder"):
        list_images(tmp_path / "absent")
