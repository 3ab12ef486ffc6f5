"""`mtkd data`: it lays out and checks the usual sets, and makes what is missing."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mtkd.cli import main
from mtkd.data import known
from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.known import KnownSet, Part
from mtkd.data.manifests import make, parse
from mtkd.data.paired import PairedImages
from mtkd.data.resize import bicubic_lq
from tests.helpers import photo, shared_data

DEMO = Path(__file__).parents[2] / "datasets/demo/test"
SHARED = shared_data()


@pytest.fixture
def prepare():
    return lambda arguments: main(["data", *arguments])


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
    assert prepare([*check, "--gt_size", "27"]) == 2
    assert "2 problems" in capsys.readouterr().err


def test_lr_that_is_not_matlabs_bicubic_is_found(prepare, hr, tmp_path, capsys) -> None:
    write_image(tmp_path / "LR" / "cat.png", photo("chelsea", (25, 38))[:24:2, ::2])
    write_image(tmp_path / "LR" / "cup.png", bicubic_lq(read_image(hr / "cup.jpg"), 2))
    check = ["check", str(hr), "--lq", str(tmp_path / "LR"), "--scale", "2"]
    assert prepare(check) == 0
    assert prepare([*check, "--bicubic"]) == 2
    error = capsys.readouterr().err
    assert "cat: lq differs" in error and "cup" not in error


def test_meta_names_images_that_are_large_enough(prepare, hr, tmp_path) -> None:
    assert prepare(["meta", str(hr), str(tmp_path / "meta.txt"), "--min_size", "25"]) == 0
    assert (tmp_path / "meta.txt").read_text() == "cat.png (25,38,3)\n"
    assert prepare(["meta", str(hr), str(tmp_path / "none.txt"), "--min_size", "99"]) == 2
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
    assert prepare(["lr", str(tmp_path / "HR"), str(tmp_path / "LR"), "--scale", "2"]) == 2
    assert "would give files of one name" in capsys.readouterr().err and not (tmp_path / "LR").exists()


def test_numbers_that_make_no_sense_are_refused(prepare, tmp_path, capsys) -> None:
    for line in (
        ["sub", "a", "b", "--step", "0"],
        ["lr", "a", "b", "--scale", "2", "--workers", "0"],
        ["lr", "a", "b"],
    ):
        with pytest.raises(SystemExit) as end:
            prepare(line)
        assert end.value.code == 2
    assert "must be 1 or more" in capsys.readouterr().err


@pytest.fixture
def two(tmp_path, monkeypatch):
    """The set Two of the images a and b, which `mtkd data` knows, and the folder that they are in."""
    write_image(tmp_path / "mine/a.png", photo("chelsea", (25, 38)))
    write_image(tmp_path / "mine/b.png", photo("coffee", (30, 24)))
    manifest = parse(make(tmp_path / "mine"), "made up")
    made_up = KnownSet("Two", (Part("HR", "LR_bicubic", lambda: manifest),), "test", "none", "nowhere")
    monkeypatch.setattr(known, "SETS", {"Two": made_up})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def test_a_set_is_listed_laid_out_and_checked(prepare, two, tmp_path, capsys) -> None:
    with tarfile.open("download.tgz", "w:gz") as archive:
        archive.add(two, "./some/where")
    assert prepare(["list"]) == 0
    assert "datasets/Two/HR: not here (2 images)" in capsys.readouterr().out
    assert prepare(["lay", "two", "--from", "download.tgz", "--scale", "2"]) == 0
    assert np.array_equal(read_image("datasets/Two/HR/a.png"), photo("chelsea", (25, 38)))
    assert np.array_equal(read_image("datasets/Two/LR_bicubic/X2/bx2.png"), bicubic_lq(photo("coffee", (30, 24)), 2))
    assert Path("datasets/Two/meta_info_HR.txt").read_text() == "a.png (25,38,3)\nb.png (30,24,3)\n"
    assert prepare(["list"]) == 0
    assert "datasets/Two/HR: complete; lq x2" in capsys.readouterr().out
    assert prepare(["check", "Two", "--bicubic"]) == 0
    assert "2 lq images, MATLAB's bicubic, bit for bit" in capsys.readouterr().out
    assert prepare(["check", "Two", "--scale", "3"]) == 2
    assert "X3: 2 of 2 lq images are missing: ax3.png, bx3.png" in capsys.readouterr().err


def test_what_is_wrong_is_listed_and_checked(prepare, two, capsys) -> None:
    write_image("datasets/Two/HR/a.png", photo("chelsea", (25, 38)) // 2)
    write_image("datasets/Two/HR/c.png", photo("chelsea", (25, 38)))
    assert prepare(["list"]) == 0
    assert "1 of 2 images are missing: b; 1 that are not of the set, such as c.png" in capsys.readouterr().out
    assert prepare(["check", "Two"]) == 2
    error = capsys.readouterr().err
    assert "a.png holds other pixels than the published image" in error and "c.png is not an image of Two" in error
    write_image("datasets/Two/HR/a.png", photo("chelsea", (24, 38)))
    assert prepare(["check", "Two"]) == 2
    assert "has 38x24 pixels (width x height), and the published image 38x25" in capsys.readouterr().err
    assert prepare(["lay", "Two", "--from", str(two)]) == 2
    assert "are in the way; remove or rename them (2 problems)" in capsys.readouterr().err
    assert not Path("datasets/Two/HR/b.png").exists()


def test_links_lead_to_the_files_where_they_are(prepare, two, capsys) -> None:
    assert prepare(["lay", "Two", "--from", "mine", "--link", "--scale"]) == 0
    assert Path("datasets/Two/HR/a.png").is_symlink() and Path("datasets/Two/HR/a.png").samefile(two / "a.png")
    assert not Path("datasets/Two/LR_bicubic").exists() and prepare(["check", "Two"]) == 0
    assert (two / "a.png").is_file() and not (two / "a.png").is_symlink()


def test_a_manifest_is_printed(prepare, two, capsys) -> None:
    assert prepare(["manifest", "mine", "--filename_tmpl", "my_{}", "--cut", "2"]) == 0
    rows = [line.split(",")[:3] for line in capsys.readouterr().out.splitlines()]
    assert rows == [["name", "width", "height"], ["my_a", "38", "25"], ["my_a", "38", "24"], ["my_b", "24", "30"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["lay", "Twoo", "--from", "mine"], "Did you mean Two?"),
        (["check", "mine"], "No image set is known as 'mine'"),
        (["check", "mine", "--gt_size", "8"], "give --lq and --scale too"),
        (["check", "mine", "--lq", "mine"], "one folder of gt images and one --scale"),
        (["lay", "Two", "--from", "nowhere"], "nowhere does not exist"),
        (["lay", "Two", "--from", "mine/a.png"], "neither a zip nor a tar"),
        (["lay", "Two", "--from", "packed.zip", "--link"], "--link makes links to files"),
    ],
)
def test_what_is_asked_wrongly_is_said(prepare, two, line, said, capsys) -> None:
    shutil.make_archive("packed", "zip", two)
    assert prepare(line) == 2
    assert said in capsys.readouterr().err and not Path("datasets").exists()


def test_the_demo_images_are_five_of_kodak24(prepare, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(["lay", "kodak24", "--from", str(DEMO)]) == 2
    assert "19 of 24 images are missing: kodim01, kodim02, kodim03, kodim04, kodim06" in capsys.readouterr().err
    assert [path.name for path in list_images("datasets/Kodak24/HR")] == [path.name for path in list_images(DEMO)]


@pytest.mark.skipif(SHARED is None, reason="benchmark images are not here")
def test_set5_is_laid_out_with_the_standard_lq_images(prepare, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(["lay", "Set5", "--from", str(SHARED)]) == 0
    for scale in (2, 3, 4):
        standard = list_images(SHARED / f"test/Set5/LR_bicubic/X{scale}")
        assert len(standard) == 5
        for path in standard:
            laid = tmp_path / f"datasets/Set5/LR_bicubic/X{scale}" / path.name
            assert np.array_equal(read_image(laid), read_image(path))
    assert prepare(["check", "Set5", "--bicubic"]) == 0
