"""The validation part, the crop and the pieces, for albums of every size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.paired import PairedImages
from mtkd.distilling.parts import Parts, divide, limit, write_parts
from mtkd.distilling.photos import Photo, Photos, find_photos
from tests.distilling.album import GOOD, cut, make_album


def album_of(*sizes: tuple[int, int]) -> Photos:
    """Photographs of these sizes (height, width), which are nowhere."""
    return Photos(Path("nowhere"), [Photo(f"{i:04d}.png", *size) for i, size in enumerate(sizes)])


def names(parts: Parts, part: str) -> list[str]:
    return [piece.photo.name for piece in getattr(parts, part)]


@pytest.mark.parametrize(("count", "aside"), [(5, 1), (19, 1), (20, 2), (57, 5), (100, 10), (3000, 10)])
def test_a_tenth_is_set_aside_at_most_ten_spread_evenly_and_the_same_each_time(count: int, aside: int) -> None:
    parts = divide(album_of(*[(200, 300)] * count), scale=4, crop_lq=24)
    assert len(parts.validation) == aside and len(parts.train) == count - aside
    assert not set(names(parts, "train")) & set(names(parts, "validation"))
    places = [int(name[:4]) for name in names(parts, "validation")]
    gaps = np.diff([-places[0], *places, 2 * count - places[-1]])
    assert max(gaps) <= count / aside + 1
    again = divide(album_of(*[(200, 300)] * count), scale=4, crop_lq=24)
    assert names(again, "validation") == names(parts, "validation")
    assert not parts.is_cut and parts.remarks == []


def test_of_few_photographs_a_quarter_of_each_is_set_aside() -> None:
    parts = divide(album_of((200, 300), (401, 200)), scale=4, crop_lq=24)
    wide, tall = zip(parts.train, parts.validation, strict=True)
    assert [(p.left, p.width, p.height) for p in wide] == [(0, 228, 200), (228, 72, 200)]
    assert [(p.top, p.height, p.width) for p in tall] == [(0, 301, 200), (301, 100, 200)]
    assert "2 photographs are too few to set some aside: a quarter of 2 is kept" in parts.remarks[0]


@pytest.mark.parametrize("kept_answers", [False, True])
def test_one_photograph_too_small_to_cut_measures_itself_and_says_so(kept_answers: bool) -> None:
    size = (300, 300) if kept_answers else (100, 100)
    parts = divide(album_of(size), scale=4, crop_lq=24, cut=not kept_answers)
    assert parts.train == parts.validation and not parts.is_cut
    assert "scores are those of photographs that it learns from" in parts.remarks[0]


def test_crops_shrink_where_many_are_small_and_the_few_small_ones_are_left_out() -> None:
    photos = album_of(*[(400, 400)] * 20, (90, 400))
    parts = divide(photos, scale=4, crop_lq=24)
    assert parts.crop == 96 and photos.remarks() == [
        "left out: 1 smaller than the crop, 96 pixels a side (0020.png, 400x90)"
    ]
    photos = album_of(*[(400, 400)] * 10, *[(70, 80)] * 10, (40, 400))
    parts = divide(photos, scale=4, crop_lq=24)
    assert parts.crop == 64 and "crops of 16 lq pixels a side in place of 24" in parts.remarks[0]
    assert photos.remarks() == ["left out: 1 smaller than 48 pixels a side (0020.png, 400x40)"]


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(MtkdError, match="All photographs .* are smaller than 48 pixels a side, 12 of lq at scale 4"):
        divide(album_of((40, 500), (47, 48)), scale=4, crop_lq=24)
    with pytest.raises(MtkdError, match="--validation 6: only 6 of the 6"):
        divide(album_of(*[(200, 200)] * 6), scale=4, crop_lq=24, validation=6)
    with pytest.raises(MtkdError, match="smaller than 48"):
        divide(album_of((200, 200)), scale=4, crop_lq=24, validation=album_of((47, 200)))


def test_photographs_without_gt_are_lq_themselves() -> None:
    parts = divide(album_of(*[(30, 60)] * 9, (60, 60)), scale=4, crop_lq=24, unlabelled=True, validation=1)
    assert parts.crop == 96 and names(parts, "validation") == ["0009.png"]
    assert parts.lq_pixels == 9 * 30 * 60


@pytest.mark.parametrize("unlabelled", [False, True])
def test_large_photographs_are_cut_to_what_the_minutes_allow(unlabelled: bool) -> None:
    parts = divide(album_of(*[(3000, 4000)] * 50), scale=4, crop_lq=24, unlabelled=unlabelled)
    limit(parts, minutes=10, seconds_per_pixel=5e-4)
    assert len(parts.train) == 45 and 0.8 * 600 < 5e-4 * parts.lq_pixels <= 600
    (size,) = {(piece.height, piece.width) for piece in parts.train}
    assert size[0] == size[1] and size[0] % 4 == 0
    assert {(p.top, p.left) for p in parts.train} == {((3000 - size[0]) // 2, (4000 - size[0]) // 2)}
    assert parts.remarks[-1].startswith("45 whole photographs would take the teachers ")
    assert parts.remarks[-1].endswith(f"the middle {size[0]}x{size[0]} of each is taken (--whole takes all)")


def test_fast_teachers_are_bounded_by_the_pixels_that_a_training_can_use() -> None:
    parts = divide(album_of(*[(3000, 4000)] * 50), scale=4, crop_lq=24)
    limit(parts, minutes=10, seconds_per_pixel=1e-9)
    assert 0.8 * 200e6 < sum(piece.pixels for piece in parts.train) <= 200e6
    assert "45 whole photographs are more pixels than that training can use" in parts.remarks[-1]


def test_where_even_small_pieces_are_too_many_photographs_are_left_out_evenly() -> None:
    parts = divide(album_of(*[(3000, 4000)] * 500), scale=4, crop_lq=24)
    limit(parts, minutes=0.1, seconds_per_pixel=5e-4)
    assert 1 <= len(parts.train) < 490 and {piece.height for piece in parts.train} == {192}
    assert 5e-4 * parts.lq_pixels <= 6 and f"of {len(parts.train)} of them is taken" in parts.remarks[-1]


def test_what_fits_is_left_whole() -> None:
    parts = divide(album_of(*[(300, 400)] * 50), scale=4, crop_lq=24)
    limit(parts, minutes=10, seconds_per_pixel=1e-4)
    assert not parts.is_cut and parts.remarks == []


def test_whole_parts_are_lists_that_name_the_files_where_they_lie(tmp_path: Path) -> None:
    photos = find_photos(make_album(tmp_path / "my album"))
    parts = divide(photos, scale=2, crop_lq=24)
    places = write_parts(parts, tmp_path / "out")
    assert not (tmp_path / "out" / "photos").exists()
    sets = {part: PairedImages(scale=2, **place) for part, place in places.items()}
    found = [path.relative_to(tmp_path / "my album").as_posix() for s in sets.values() for path in s.gt_paths]
    assert sorted(found) == sorted(GOOD) and len(sets["validation"]) == 1
    assert "2 that cannot be decoded" in " ".join(parts.remarks)


def test_pieces_are_copies_of_those_pixels(tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / "in" / f"{number}.png", cut(number, 100, 120 + 40 * number))
    parts = divide(find_photos(tmp_path / "in"), scale=2, crop_lq=24)
    (tmp_path / "out" / "photos" / "train").mkdir(parents=True)
    (tmp_path / "out" / "photos" / "train" / "of a killed start.png").write_bytes(b"")
    places = write_parts(parts, tmp_path / "out")
    whole = read_image(tmp_path / "in" / "1.png")
    written = {part: list_images(place["dataroot_gt"]) for part, place in places.items()}
    assert [len(found) for found in written.values()] == [2, 2]
    both = [read_image(found[1]) for found in written.values()]
    assert np.array_equal(np.concatenate(both, axis=1), whole) and both[1].shape[1] == 40
