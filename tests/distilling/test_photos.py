"""Photographs: what is found, and what is left out and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtkd.contracts import MtkdError
from mtkd.data.headers import read_size
from mtkd.data.images import write_image
from mtkd.distilling.photos import decode_all, find_photos
from tests.distilling.album import GOOD, cut, make_album, write_deep


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_album(tmp_path_factory.mktemp("album"))


def test_photographs_of_all_formats_are_found_in_sub_folders_and_the_rest_is_named(album: Path) -> None:
    photos = find_photos(album)
    assert [photo.name for photo in photos.good] == sorted([*GOOD, "broken.jpg", "deep.png", "trip 2/tiny.png"])
    assert [(photo.height, photo.width) for photo in photos.good] == [read_size(album / p.name) for p in photos.good]
    decode_all(photos)
    assert [photo.name for photo in photos.good] == sorted([*GOOD, "trip 2/tiny.png"])
    said = "\n".join(photos.remarks())
    assert "1 that cannot be opened (no image.png" in said
    assert "1 of a kind that is not read here; save them as JPEG or PNG (phone.heic)" in said
    assert "2 that cannot be decoded (broken.jpg" in said
    assert "notes.txt" not in said and "thumbnails" not in said


def test_a_single_photograph_is_an_album_of_one(album: Path) -> None:
    photos = find_photos(album / GOOD[0])
    assert (photos.root, [photo.name for photo in photos.good]) == (album, [GOOD[0]])


def test_folders_can_be_left_out(album: Path) -> None:
    names = [photo.name for photo in find_photos(album, without=[album / "trip 2"]).good]
    assert "trip 1/c.webp" in names and not [name for name in names if name.startswith("trip 2")]


def test_a_folder_without_a_usable_photograph_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="holds no photograph that can be used"):
        find_photos(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(MtkdError, match=r"(?s)1 of a kind that is not read here.*a\.heic"):
        find_photos(tmp_path)
    write_deep(tmp_path / "deep.png")
    with pytest.raises(MtkdError, match=r"(?s)None of the photographs.*16 bits"):
        decode_all(find_photos(tmp_path))


def test_what_a_distillation_has_made_is_no_photograph(tmp_path: Path) -> None:
    for name in ("mine.png", "distilled/x/photos/train/0.png", "distilled/x/student/visualization/1.png"):
        write_image(tmp_path / name, cut(0, 30, 30))
    (tmp_path / "distilled" / "x" / "distill.json").write_text("{}")
    assert [photo.name for photo in find_photos(tmp_path).good] == ["mine.png"]


def test_names_that_no_list_can_hold_are_left_out(tmp_path: Path) -> None:
    for name in ("good.png", "line\nbreak.png", os.fsdecode(b"not utf \xff.png")):
        try:
            write_image(tmp_path / name, cut(0, 30, 30))
        except MtkdError:
            pytest.skip("the file system takes no such name")
    photos = find_photos(tmp_path)
    assert [photo.name for photo in photos.good] == ["good.png"]
    assert "2 whose names hold a line break or are no UTF-8 text" in photos.remarks()[0]
