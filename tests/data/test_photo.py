"""Transparency, 16 bits, colour profiles and grey, through files."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, features
from scipy import ndimage

from mtkd.contracts import MtkdError
from mtkd.data.photo import Photo, check_photo, encode_photo, read_photo, without_hidden_colours, write_photo
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
def test_a_colour_profile_is_kept_and_said_to_be_lost_in_a_bmp(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(rgba()[..., :3]).save(tmp_path / f"in{suffix}", icc_profile=srgb())
    read = read_photo(tmp_path / f"in{suffix}")
    assert read.profile == srgb()
    out = tmp_path / f"out{suffix}"
    assert write_photo(out, read) == ()
    with Image.open(out) as image:
        assert image.info["icc_profile"] == srgb()
        difference = np.asarray(image).astype(int) - read.pixels
        assert np.abs(difference).max() <= (20 if suffix == ".jpg" else 0)
    assert cv2.imread(str(out)) is not None
    assert write_photo(tmp_path / "out.bmp", read) == ("the colour profile, which .bmp does not keep: write a .png",)
    deep = Photo(read.pixels.astype(np.uint16) * 257, profile=srgb())
    lost = write_photo(out, deep)
    assert [line.partition(",")[0] for line in lost] == {
        ".png": [], ".tif": ["the colour profile"], ".jpg": ["16 bits"], ".webp": ["16 bits"]
    }[suffix]  # fmt: skip


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


@pytest.mark.parametrize("name", ["moving.webp", "moving.gif", "moving.png", "moving.apng"])
def test_an_animation_is_refused_by_name(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(rgba()[..., :3]), Image.fromarray(255 - rgba()[..., :3])]
    frames[0].save(tmp_path / name, "PNG" if "png" in name else None, save_all=True, append_images=frames[1:])
    with pytest.raises(MtkdError, match=f"{name} is animated: it has 2 pictures.*ffmpeg"):
        read_photo(tmp_path / name)
    with pytest.raises(MtkdError, match=f"{name} is animated"):
        check_photo(tmp_path / name)


@pytest.mark.parametrize("tag", [1, 6])
def test_formats_beyond_those_of_data_sets_are_read_upright(tmp_path: Path, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    colours = Image.fromarray(rgba()[..., :3])
    few = colours.quantize(16)
    few.save(tmp_path / "still.gif")
    assert np.array_equal(read_photo(tmp_path / "still.gif").pixels, np.asarray(few.convert("RGB")))
    few.save(tmp_path / "holes.gif", transparency=int(np.asarray(few)[0, 0]))
    holes = read_photo(tmp_path / "holes.gif")
    assert holes.alpha is not None and np.array_equal(holes.alpha == 0, np.asarray(few) == np.asarray(few)[0, 0])
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(rgba()).save(tmp_path / "photo.avif", exif=exif, quality=100, subsampling="4:4:4")
    read = read_photo(tmp_path / "photo.avif")
    wanted = np.rot90(rgba(), -1) if tag == 6 else rgba()
    assert read.alpha is not None and read.lost == () and read.pixels.shape == wanted[..., :3].shape
    assert np.abs(np.dstack([read.pixels, read.alpha]).astype(int) - wanted).mean() < 3


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_inks_become_srgb_and_it_is_said(tmp_path: Path, suffix: str) -> None:
    # Half of the cyan ink, without a profile: red is what is left.
    Image.new("CMYK", (12, 8), (128, 0, 0, 0)).save(tmp_path / f"print{suffix}")
    read = read_photo(tmp_path / f"print{suffix}")
    assert read.lost == ("its CMYK colours, which become sRGB",) and read.profile is None
    assert np.abs(read.pixels.astype(int) - (127, 255, 255)).max() <= 2


def test_a_package_that_a_format_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(MtkdError, match="phone.heic is HEIC.*pip install pillow-heif.*JPEG"):
        read_photo(tmp_path / "phone.heic")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_colours_are_those_of_the_nearest_pixel_that_is_seen(dtype: type) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (17, 23, 3)).astype(dtype)
    alpha = (generator.random((17, 23)) > 0.8).astype(dtype) * 200
    given = Photo(pixels, alpha)
    found = without_hidden_colours(given)
    assert given.pixels is pixels and found.alpha is alpha
    # The distance to what is seen, by scipy: a pixel of that very distance has the colour.
    distance = ndimage.distance_transform_edt(alpha == 0)
    rows, columns = np.nonzero(alpha)
    for row, column in np.ndindex(alpha.shape):
        away = np.hypot(rows - row, columns - column)
        near = pixels[rows, columns][away <= distance[row, column] * 1.1 + 1e-9]
        assert (near == found.pixels[row, column]).all(axis=1).any(), (row, column)
    assert np.array_equal(found.pixels[alpha > 0], pixels[alpha > 0])
    for nothing in (Photo(pixels), Photo(pixels, np.zeros_like(alpha)), Photo(pixels, np.full_like(alpha, 9))):
        assert without_hidden_colours(nothing).pixels is pixels


def test_quality_makes_a_file_smaller(tmp_path: Path) -> None:
    given = Photo(photo("coffee", (120, 160)))
    for suffix in (".jpg", ".webp"):
        sizes = [len(encode_photo(tmp_path / f"a{suffix}", given, quality=quality)[0]) for quality in (20, 90, None)]
        assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(MtkdError, match="wide.webp cannot be encoded.*Write a .png"):
        write_photo(tmp_path / "wide.webp", Photo(np.zeros((1, 17000, 3), np.uint8)))


def write(path: Path) -> Path:
    Image.fromarray(rgba()[..., :3]).save(path)
    return path


def test_floating_point_is_refused_by_name(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "float.tif"), np.zeros((8, 8, 3), np.float32))
    with pytest.raises(MtkdError, match="float.tif has float32 pixels. Convert it to 8 or 16 bits"):
        read_photo(tmp_path / "float.tif")
    for mode in ("F", "I"):
        Image.new(mode, (8, 8)).save(tmp_path / "grey.tif")
        with pytest.raises(
            MtkdError, match="grey.tif has (float32 pixels|int32 pixels|32 bits for a channel). Convert"
        ):
            read_photo(tmp_path / "grey.tif")
