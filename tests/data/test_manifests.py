"""The manifests that the package ships: whole, true to the images, and of sets that do not mix."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtkd.contracts import MtkdError
from mtkd.data import manifests
from mtkd.data.images import write_image
from mtkd.data.known import SETS, known_set
from tests.helpers import photo, shared_data

FOLDER = Path(str(manifests.__file__)).parent
DEMO = Path(__file__).parents[2] / "datasets/demo/test"
COUNTS = {
    "DIV2K": 900, "Flickr2K": 2650, "BSDS500": 399, "General100": 100, "T91": 91, "Set5": 5, "Set14": 14, "BSD100": 100,
    "Urban100": 100, "Manga109": 109, "Kodak24": 24,
}  # fmt: skip
IMAGES = {
    "Set5": "test/Set5/HR", "Set14": "test/Set14/HR", "BSD100": "test/B100/HR", "Urban100": "test/Urban100/HR",
    "General100": "train/General100", "T91": "train/T91", "BSDS500_train": "train/BSDS500_train",
    "BSDS500_test": "train/BSDS500_test",
}  # fmt: skip
SHARED = shared_data()


def hash_by_pillow(path: Path) -> str:
    """SHA-256 of the pixels, without our decoder and hash."""
    with Image.open(path) as image:
        return hashlib.sha256(np.array(image.convert("RGB")).tobytes()).hexdigest()


def test_every_set_has_as_many_images_as_it_is_known_for() -> None:
    assert {name: sum(part.manifest().count for part in known.parts) for name, known in SETS.items()} == COUNTS


def test_every_manifest_belongs_to_a_set() -> None:
    used = {part.manifest.args[0] for known in SETS.values() for part in known.parts if part.manifest().has_pixels}
    assert used == {file.stem for file in FOLDER.glob("*.csv")}


def test_what_is_not_known_is_not_made_up() -> None:
    without = {name for name, known in SETS.items() if not all(part.manifest().has_pixels for part in known.parts)}
    assert without == {"DIV2K", "Flickr2K", "Manga109"}
    train, valid = (part.manifest() for part in SETS["DIV2K"].parts)
    assert list(train.forms)[::799] == ["0001", "0800"] and list(valid.forms)[::99] == ["0801", "0900"]
    assert list(SETS["Flickr2K"].parts[0].manifest().forms)[::2649] == ["000001", "002650"]
    assert not any([*train.forms.values(), *SETS["Manga109"].parts[0].manifest().forms.values()])


def test_no_image_to_train_on_is_one_to_test_on() -> None:
    def pixels(*names: str) -> set[str]:
        parts = [part for name in names for part in SETS[name].parts]
        return {form.sha256 for part in parts for form in part.manifest().by_form}

    train, test = pixels("BSDS500", "General100", "T91"), pixels("Set5", "Set14", "BSD100", "Urban100", "Kodak24")
    assert not train & test
    assert "302003" not in SETS["BSDS500"].parts[0].manifest().forms


def test_cut_forms_stand_below_the_whole_one_and_are_smaller() -> None:
    for file in FOLDER.glob("*.csv"):
        for forms in manifests.shipped(file.stem).forms.values():
            assert all(form.width <= forms[0].width and form.height <= forms[0].height for form in forms)


def test_the_images_of_the_demo_have_the_pixels_of_the_manifest() -> None:
    known = manifests.shipped("Kodak24").forms
    files = sorted(DEMO.glob("*.png"))
    assert len(files) == 5
    for file in files:
        assert [form.sha256 for form in known[file.stem]] == [hash_by_pillow(file)]


@pytest.mark.skipif(SHARED is None, reason="the images are not here")
@pytest.mark.parametrize("name", IMAGES)
def test_images_decoded_by_another_program_have_the_pixels_of_the_manifest(name: str) -> None:
    """JPEG too: all 499 of them decode alike in OpenCV, Pillow and torchvision."""
    known = manifests.shipped(name).forms
    files = sorted((SHARED / IMAGES[name]).iterdir())
    assert {file.stem for file in files} == set(known)
    for file in files[:: max(len(files) // 10, 1)]:
        assert known[file.stem][0].sha256 == hash_by_pillow(file)


@pytest.mark.skipif(SHARED is None, reason="the images are not here")
def test_cut_forms_are_the_image_cut_at_the_bottom_and_the_right() -> None:
    found = 0
    for file in sorted((SHARED / "test/Set14/HR").iterdir()):
        with Image.open(file) as image:
            for width, height, sha256 in manifests.shipped("Set14").forms[file.stem]:
                cut = np.array(image.convert("RGB").crop((0, 0, width, height)))
                assert hashlib.sha256(cut.tobytes()).hexdigest() == sha256
                found += (width, height) != image.size
    assert found == 18


def test_a_made_manifest_reads_back_and_knows_an_image_that_is_there_twice(tmp_path: Path) -> None:
    for name, size in {"a.png": (24, 31), "b.webp": (24, 31), "c.png": (20, 20)}.items():
        write_image(tmp_path / name, photo("chelsea", size))
    manifest = manifests.parse(manifests.make(tmp_path, cuts=(2, 3, 5)), "made")
    assert manifest.count == 3 and manifest.has_pixels
    assert [form[:2] for form in manifest.forms["a"]] == [(31, 24), (30, 24), (30, 20)]
    assert sorted(manifest.by_form[manifest.forms["a"][0]]) == ["a", "b"]
    assert manifest.forms["c"][0].sha256 == hash_by_pillow(tmp_path / "c.png")


@pytest.mark.parametrize(
    "text",
    ["", "name,width\n", "name,width,height,sha256\na,1,2\n", f"name,width,height,sha256\na,-1,2,{'0' * 64}\n",
     f"name,width,height,sha256\n,1,2,{'0' * 64}\n", f"name,width,height,sha256\na,1,2,{'g' * 64}\n"],
)  # fmt: skip
def test_a_file_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(MtkdError, match="my.csv"):
        manifests.parse(text, "my.csv")


def test_two_images_of_one_name_make_no_manifest(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp"):
        write_image(tmp_path / name, photo("chelsea", (20, 24)))
    with pytest.raises(MtkdError, match="several images called a"):
        manifests.make(tmp_path)


def test_sets_are_found_by_other_spellings() -> None:
    assert known_set("div2k").name == "DIV2K" and known_set("B100").name == "BSD100"
    with pytest.raises(MtkdError, match="Did you mean Urban100"):
        known_set("urbann100")
