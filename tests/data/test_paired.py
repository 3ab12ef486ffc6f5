"""Pairs of lq and gt by name, and every problem of a folder at once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from mtkd.data.paired import PairedImages
from mtkd.data.resize import bicubic_lq
from tests.helpers import photo


def write_pairs(root, sizes, scale=2, lq_name="{}x2.png", gt_name="{}.png"):
    """Folders gt and lq under `root`; image i is called i<i> and shows another part of a photo."""
    for i, (height, width) in enumerate(sizes):
        gt = np.ascontiguousarray(photo("coffee")[10 * i : 10 * i + height, 5 * i : 5 * i + width])
        write_image(root / "gt" / gt_name.format(f"i{i}"), gt)
        write_image(root / "lq" / lq_name.format(f"i{i}"), bicubic_lq(gt, scale))
    return {"dataroot_gt": root / "gt", "dataroot_lq": root / "lq", "scale": scale, "filename_tmpl": "{}x2"}


def test_pairs_are_found_by_name_and_gt_is_cut_to_the_lq(tmp_path) -> None:
    pairs = PairedImages(**write_pairs(tmp_path, [(21, 30), (16, 25)]))
    assert (len(pairs), pairs.names, pairs.sizes) == (2, ["i0", "i1"], [(20, 30), (16, 24)])
    for i, (height, width) in enumerate(pairs.sizes):
        whole = photo("coffee")[10 * i :, 5 * i :]
        assert pairs[i].name == f"i{i}"
        assert np.array_equal(pairs[i].gt, whole[:height, :width])
        assert np.array_equal(pairs[i].lq, bicubic_lq(whole[:height, :width], 2))
    assert [pair.name for pair in pairs] == ["i0", "i1"]


def test_lq_is_bicubic_without_a_folder_of_lq_images(tmp_path) -> None:
    options = write_pairs(tmp_path, [(21, 30)])
    made = PairedImages(dataroot_gt=options["dataroot_gt"], scale=2)
    assert np.array_equal(made[0].lq, PairedImages(**options)[0].lq)
    assert np.array_equal(made[0].gt, PairedImages(**options)[0].gt)


def test_lq_may_have_another_suffix_than_gt(tmp_path) -> None:
    options = write_pairs(tmp_path, [(20, 30)], gt_name="{}.webp")
    assert PairedImages(**options)[0].lq.shape == (10, 15, 3)


def test_a_meta_file_chooses_and_orders_images(tmp_path) -> None:
    options = write_pairs(tmp_path, [(20, 20)] * 3)
    meta = tmp_path / "meta.txt"
    meta.write_text("i2.png (20,20,3)\n\ni0.png (20,20,3)\n")
    assert PairedImages(**options, meta_info_file=meta).names == ["i2", "i0"]
    meta.write_text("i9.png (20,20,3)\n")
    with pytest.raises(MtkdError, match="i9.png: named in .*meta.txt, does not exist"):
        PairedImages(**options, meta_info_file=meta)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch) -> None:
    write_pairs(tmp_path, [(20, 20)])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(PairedImages(dataroot_gt="~/gt", dataroot_lq="~/lq", scale=2, filename_tmpl="{}x2")) == 1


def test_every_problem_is_listed_at_once(tmp_path) -> None:
    options = write_pairs(tmp_path, [(20, 20), (20, 20), (20, 20), (40, 40), (40, 40)])
    (tmp_path / "lq" / "i0x2.png").rename(tmp_path / "lq" / "stray.png")
    (tmp_path / "gt" / "i1.png").write_bytes(b"broken")
    write_image(tmp_path / "lq" / "i3x2.png", np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(MtkdError) as raised:
        PairedImages(**options, min_gt_size=32)
    text = str(raised.value)
    assert "5 problems" in text
    for part in [
        "i0.png: no lq image i0x2.png",
        "stray.png: no gt image has this lq",
        "i1.png cannot be opened",
        "i2.png: 20x20 (height x width) is smaller than the crop gt_size 32",
        "i3.png: gt is 40x40 (height x width), so lq must be 20x20, but",
    ]:
        assert part in text, part
    assert "i4" not in text


def test_a_long_list_of_problems_is_cut_with_a_count(tmp_path) -> None:
    options = write_pairs(tmp_path, [(8, 8)] * 30)
    with pytest.raises(MtkdError) as raised:
        PairedImages(**options, min_gt_size=16)
    lines = str(raised.value).splitlines()
    assert len(lines) == 22
    assert "30 problems" in lines[0]
    assert lines[-1].strip() == "and 10 more"


def test_ambiguous_names_are_problems(tmp_path) -> None:
    options = write_pairs(tmp_path, [(20, 20)])
    write_image(tmp_path / "gt" / "i0.bmp", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(MtkdError, match="same name as i0.bmp"):
        PairedImages(**options)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"filename_tmpl": "x4"}, "filename_tmpl"),
        ({"io_backend": {"type": "memcached"}}, "io_backend"),
        ({"io_backend": {"type": "lmdb"}}, "is not an lmdb"),
        ({"scale": 0}, "scale"),
        ({"dataroot_lq": "nowhere"}, "nowhere is not a folder"),
        ({"meta_info_file": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_wrong_options_are_named(tmp_path, wrong, message) -> None:
    with pytest.raises(MtkdError, match=message):
        PairedImages(**{**write_pairs(tmp_path, [(20, 20)]), **wrong})


def test_a_file_cut_short_after_the_check_is_an_error_that_names_it(tmp_path) -> None:
    pairs = PairedImages(**write_pairs(tmp_path, [(20, 20)]))
    data = (tmp_path / "gt" / "i0.png").read_bytes()
    (tmp_path / "gt" / "i0.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(MtkdError, match="i0.png cannot be decoded"):
        pairs[0]


def test_names_in_a_meta_file_may_hold_blanks_and_brackets_and_follow_a_byte_order_mark(tmp_path) -> None:
    names = ["a.png", "img (1).png", "b c.png"]
    for name in names:
        write_image(tmp_path / "gt" / name, photo("coffee", (20, 20)))
    meta = tmp_path / "meta.txt"
    for text in (
        "a.png (20,20,3)\nimg (1).png (20, 20, 3) 1\nb c.png (20,20)\n",
        "a.png\r\nimg (1).png\r\n\r\nb c.png\r\n",
        "a.png 20 20\nimg (1).png\nb c.png\n",
    ):
        meta.write_text(text, encoding="utf-8-sig", newline="")
        pairs = PairedImages(dataroot_gt=tmp_path / "gt", scale=2, meta_info_file=meta)
        assert [path.name for path in pairs.gt_paths] == names


def test_a_meta_file_that_is_no_list_of_names_is_refused(tmp_path, monkeypatch) -> None:
    write_pairs(tmp_path, [(20, 20)])
    meta = tmp_path / "meta.txt"
    options = {"dataroot_gt": tmp_path / "gt", "scale": 2, "meta_info_file": meta}
    meta.write_bytes(b"\xff\xfei\x000\x00")
    with pytest.raises(MtkdError, match="meta.txt cannot be read: .*utf-8"):
        PairedImages(**options)
    meta.write_text(f"{'x' * 300}.png\n")
    with pytest.raises(MtkdError, match="x.png: named in .*does not exist"):
        PairedImages(**options)
    meta.write_text(f"i0.png ({'9' * 5000},20,3)\n")
    assert len(PairedImages(**options)) == 1
    monkeypatch.setattr("mtkd.data.sources._LONGEST_META", 100)
    with pytest.raises(MtkdError, match="a list of names"):
        PairedImages(**options)


def test_without_lq_images_of_one_name_are_two_images(tmp_path) -> None:
    parts = {"a.png": 0, "a.bmp": 10, "b.png": 20, "A/1.png": 30, "B/1.png": 40}
    for name, top in parts.items():
        write_image(tmp_path / name, np.ascontiguousarray(photo("coffee")[top : top + 20, :30]))
    pairs = PairedImages(dataroot_gt=tmp_path, scale=2)
    assert pairs.names == ["a.bmp", "a.png", "b"]
    assert np.array_equal(pairs[1].gt, photo("coffee")[:20, :30])
    meta = tmp_path / "meta.txt"
    meta.write_text("A/1.png (20,30,3)\nB/1.png (20,30,3)\nA/1.png (20,30,3)\n")
    pairs = PairedImages(dataroot_gt=tmp_path, scale=2, meta_info_file=meta)
    assert pairs.names == ["A/1", "B/1"]
    assert np.array_equal(pairs[1].gt, photo("coffee")[40:60, :30])


@pytest.mark.parametrize("tags", [(3, None), (None, 3), (3, 3)])
def test_an_orientation_tag_on_one_image_of_a_pair_is_said(tmp_path, caplog, tags) -> None:
    options = write_pairs(tmp_path, [(20, 30)])
    for path, tag in zip((tmp_path / "gt/i0.png", tmp_path / "lq/i0x2.png"), tags, strict=True):
        if tag is not None:
            exif = Image.Exif()
            exif[0x0112] = tag
            Image.open(path).save(path, exif=exif)
    PairedImages(**options)
    assert ("1 of 1 gt images and their lq images have different orientation tags" in caplog.text) == (None in tags)
