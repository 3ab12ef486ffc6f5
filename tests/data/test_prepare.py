"""`datasets/prepare.py`: it checks the layout of the usual sets and makes what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.paired import PairedImages
from mtkd.data.resize import bicubic_lq
from tests.helpers import photo, shared_data


@pytest.fixture(scope="module")
def prepare():
    path = Path(__file__).parents[2] / "datasets" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def hr(tmp_path):
    write_image(tmp_path / "HR" / "cat.png", photo("chelsea", (25, 38)))
    write_image(tmp_path / "HR" / "cup.jpg", photo("coffee", (30, 24)))
    return tmp_path / "HR"


def test_lr_folders_are_made_and_pass_the_check(prepare, hr, tmp_path, capsys) -> None:
    assert prepare(["lr", str(hr), str(tmp_path / "LR"), "--scale", "2", "3"]) == 0
    assert [p.name for p in list_images(tmp_path / "LR/X3")] == ["catx3.png", "cupx3.png"]
    assert np.array_equal(read_image(tmp_path / "LR/X2/catx2.png"), bicubic_lq(photo("chelsea", (25, 38)), 2))
    check = ["check", str(hr), "--lq", str(tmp_path / "LR/X3"), "--scale", "3", "--filename_tmpl", "{}x3"]
    assert prepare([*check, "--bicubic"]) == 0
    assert "2 pairs are sound" in capsys.readouterr().out
    assert prepare([*check, "--gt_size", "27"]) == 1
    assert "2 problems" in capsys.readouterr().err


def test_lr_that_is_not_matlabs_bicubic_is_found(prepare, hr, tmp_path, capsys) -> None:
    write_image(tmp_path / "LR" / "cat.png", photo("chelsea", (25, 38))[:24:2, ::2])
    write_image(tmp_path / "LR" / "cup.png", bicubic_lq(read_image(hr / "cup.jpg"), 2))
    check = ["check", str(hr), "--lq", str(tmp_path / "LR"), "--scale", "2"]
    assert prepare(check) == 0
    assert prepare([*check, "--bicubic"]) == 1
    error = capsys.readouterr().err
    assert "cat: lq differs" in error and "cup" not in error


def test_meta_names_images_that_are_large_enough(prepare, hr, tmp_path) -> None:
    assert prepare(["meta", str(hr), str(tmp_path / "meta.txt"), "--min_size", "25"]) == 0
    assert (tmp_path / "meta.txt").read_text() == "cat.png (25,38,3)\n"
    assert prepare(["meta", str(hr), str(tmp_path / "none.txt"), "--min_size", "99"]) == 1
    assert not (tmp_path / "none.txt").exists()


def test_sub_images_cover_the_image_and_drop_the_ending(prepare, tmp_path) -> None:
    image = photo("chelsea", (25, 38))
    write_image(tmp_path / "in" / "catx2.png", image)
    cut = ["sub", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "16", "--step", "8", "--strip", "x2"]
    assert prepare(cut) == 0
    places = [(top, left) for top in (0, 8, 9) for left in (0, 8, 16, 22)]
    assert [p.name for p in list_images(tmp_path / "out")] == [f"cat_s{i:03d}.png" for i in range(1, 13)]
    for path, (top, left) in zip(list_images(tmp_path / "out"), places, strict=True):
        assert np.array_equal(read_image(path), image[top : top + 16, left : left + 16])


@pytest.mark.skipif(shared_data() is None, reason="benchmark images are not here")
def test_the_standard_set5_passes_the_bicubic_check(prepare, capsys) -> None:
    root = shared_data() / "test/Set5"
    check = ["check", str(root / "HR"), "--lq", str(root / "LR_bicubic/X4"), "--scale", "4"]
    assert prepare([*check, "--filename_tmpl", "{}x4", "--bicubic"]) == 0
    assert "5 pairs are sound" in capsys.readouterr().out


def test_a_meta_file_can_be_read_back_whatever_the_names_hold(prepare, tmp_path) -> None:
    names = ["a.png", "img (1).png", "my  photo (3,4,3) x.png", "été 2.PNG"]
    for name in names:
        write_image(tmp_path / "HR" / name, photo("chelsea", (20, 24)))
    assert prepare(["meta", str(tmp_path / "HR"), str(tmp_path / "meta.txt")]) == 0
    pairs = PairedImages(dataroot_gt=tmp_path / "HR", scale=2, meta_info_file=tmp_path / "meta.txt")
    assert sorted(path.name for path in pairs.gt_paths) == sorted(names)


def test_images_whose_results_would_have_one_name_are_refused(prepare, tmp_path, capsys) -> None:
    for name in ("a.png", "a.bmp"):
        write_image(tmp_path / "HR" / name, photo("chelsea", (20, 24)))
    assert prepare(["lr", str(tmp_path / "HR"), str(tmp_path / "LR"), "--scale", "2"]) == 1
    assert "would give files of one name" in capsys.readouterr().err and not (tmp_path / "LR").exists()
