"""Transparency, 16 bits, colour profiles and grey, through files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from mtkd.contracts import MtkdError
from mtkd.data.photo import Photo, read_photo, write_photo
from tests.helpers import photo

ALPHA = np.linspace(0, 255, 20 * 30).astype(np.uint8).reshape(20, 30)


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def rgba() -> np.ndarray:
    return np.dstack([photo("coffee", (20, 30)), ALPHA])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("tag", [1, 6])
def test_transparency_is_read_upright_and_written_back(tmp_path: Path, suffix: str, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    Image.fromarray(rgba()).save(tmp_path / f"in{suffix}", exif=exif, **options)
    read = read_photo(tmp_path / f"in{suffix}")
    wanted = np.rot90(rgba(), -1) if tag == 6 else rgba()
    assert read.alpha is not None and read.lost == ()
    assert np.array_equal(np.dstack([read.pixels, read.alpha]), wanted)
    assert write_photo(tmp_path / f"out{suffix}", read) == ()
    again = read_photo(tmp_path / f"out{suffix}")
    assert again.alpha is not None and np.array_equal(again.alpha, read.alpha)
    # WebP forgets the colours of pixels that nobody sees.
    seen = again.alpha > 0 if suffix == ".webp" else slice(None)
    assert np.array_equal(again.pixels[seen], wanted[..., :3][seen])


def test_transparent_colours_of_a_palette_are_a_channel(tmp_path: Path) -> None:
    Image.fromarray(rgba()[..., :3]).quantize(16).save(tmp_path / "p.png", transparency=3)
    read = read_photo(tmp_path / "p.png")
    assert read.alpha is not None and set(np.unique(read.alpha)) == {0, 255}
    Image.fromarray(rgba()[..., 0]).save(tmp_path / "l.png", transparency=5)
    assert read_photo(tmp_path / "l.png").lost == ("its transparent colour",)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bits_are_kept(tmp_path: Path, suffix: str, alpha: bool) -> None:
    deep = rgba().astype(np.uint16) * 257 + 3
    given = Photo(deep[..., :3], np.ascontiguousarray(deep[..., 3]) if alpha else None)
    assert write_photo(tmp_path / f"deep{suffix}", given) == ()
    read = read_photo(tmp_path / f"deep{suffix}")
    assert read.pixels.dtype == np.uint16 and np.array_equal(read.pixels, deep[..., :3])
    assert (read.alpha is not None) == alpha
    assert read.alpha is None or np.array_equal(read.alpha, deep[..., 3])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_colour_profile_is_kept_in_a_png_and_said_to_be_lost_elsewhere(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(rgba()[..., :3]).save(tmp_path / f"in{suffix}", icc_profile=srgb())
    read = read_photo(tmp_path / f"in{suffix}")
    assert read.profile == srgb()
    assert write_photo(tmp_path / "out.png", read) == ()
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["icc_profile"] == srgb()
        assert np.array_equal(np.asarray(image), read.pixels)
    assert cv2.imread(str(tmp_path / "out.png")) is not None
    assert write_photo(tmp_path / "out.jpg", read) == ("the colour profile, which .jpg does not keep: write a .png",)


def test_a_profile_of_other_colours_is_not_put_on_rgb_pixels(tmp_path: Path) -> None:
    cmyk = bytearray(srgb())
    cmyk[16:20] = b"CMYK"
    Image.fromarray(rgba()[..., :3]).save(tmp_path / "in.png", icc_profile=bytes(cmyk))
    read = read_photo(tmp_path / "in.png")
    assert read.profile is None and read.lost == ("its colour profile, which is for CMYK pixels",)


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    deep = rgba().astype(np.uint16) * 257
    lost = write_photo(tmp_path / "out.bmp", Photo(deep[..., :3], np.ascontiguousarray(deep[..., 3]), srgb()))
    assert [line.partition(",")[0] for line in lost] == ["transparency", "16 bits", "the colour profile"]
    assert np.array_equal(read_photo(tmp_path / "out.bmp").pixels, rgba()[..., :3])


def test_grey_and_further_pictures_are_known(tmp_path: Path) -> None:
    grey = Image.fromarray(rgba()[..., 0])
    grey.save(tmp_path / "grey.png")
    assert read_photo(tmp_path / "grey.png").grey
    assert not read_photo(write(tmp_path / "colour.png")).grey
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[grey, grey])
    assert read_photo(tmp_path / "pages.tif").lost == ("2 of its 3 pictures: the first is enlarged",)
    frames = [Image.fromarray(rgba()[..., :3]), Image.fromarray(255 - rgba()[..., :3])]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    assert "1 of its 2 pictures" in read_photo(tmp_path / "moving.webp").lost[0]


def write(path: Path) -> Path:
    Image.fromarray(rgba()[..., :3]).save(path)
    return path


def test_floating_point_is_refused_by_name(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "float.tif"), np.zeros((8, 8, 3), np.float32))
    with pytest.raises(MtkdError, match="float.tif has float32 pixels"):
        read_photo(tmp_path / "float.tif")
