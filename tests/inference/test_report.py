"""`mtkd test` writes a page of what it measured, without running a network twice and without losing a number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.cli import main
from mtkd.data.images import write_image
from mtkd.data.paired import PairedImages
from mtkd.inference.baselines import Bicubic
from mtkd.inference.compare import compare
from mtkd.inference.report import Shots, spread
from mtkd.runtime.pixels import to_image, to_tensor
from tests.helpers import photo
from tests.report.test_page import Read
from tests.runs import make_images

NET = {"num_feat": 4, "num_block": 1, "upscale": 2}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(Path("photos"))
    for name in ("one", "other"):
        facts = {"arch": {"type": "EDSR", "args": NET}, "scale": 2}
        zoo.write_safetensors(Path(f"{name}.safetensors"), EDSR(**NET).state_dict(), facts)


def page_of(name: str) -> Read:
    return Read(Path("results", name, "report.html").read_text(encoding="utf-8"))


def test_networks_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "one.safetensors", "other.safetensors", "--with", "bicubic", "--data", "photos"]) == 0
    assert "To look at: results/comparison_x2/report.html" in capsys.readouterr().out
    data = page_of("comparison_x2").data
    saved = json.loads(Path("results/comparison_x2/metrics.json").read_text())["results"]
    assert [row["name"] for row in data["rows"]] == [row["network"] for row in saved] == ["bicubic", "one", "other"]
    assert [row["kind"] for row in data["rows"]] == ["baseline", "student", "student"]
    for row, known in zip(data["rows"], saved, strict=True):
        assert row["cells"][0][0]["mean"] == pytest.approx(known["psnr"], rel=1e-5)
    (one,) = [one for one in data["comparisons"] if one["metric"] == 0]
    assert (one["row"], one["baseline"], one["seeds"], one["images"]) == ("other", "one", 1, 4)
    assert len(data["pictures"]) == 4
    images = PairedImages(dataroot_gt="photos", scale=2)
    assert [picture["image"] for picture in data["pictures"]] == images.names
    assert [layer["name"] for layer in data["pictures"][0]["layers"]] == ["ground truth", "bicubic", "one", "other"]
    assert "Each row was trained once" in page_of("comparison_x2").text


def test_one_network_and_no_page() -> None:
    assert main(["test", "one.safetensors", "--data", "photos", "--no_page"]) == 0
    assert not list(Path("results").rglob("*.html")) and Path("results/one/metrics.csv").is_file()
    assert main(["test", "one.safetensors", "--data", "photos"]) == 0
    page = page_of("one_2")
    assert page.data["comparisons"] == [] and "Nothing is compared here" in page.text


def test_an_option_file(tmp_path: Path) -> None:
    test = {
        "name": "by_file",
        "scale": 2,
        "datasets": {"test_1": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": "photos"}},
        "network_g": {"type": "EDSR", **NET},
        "path": {"pretrain_network_g": "one.safetensors"},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}, "save_img": True},
    }
    Path("test.yml").write_text(json.dumps(test))
    assert main(["test", "-opt", "test.yml"]) == 0
    page = page_of("by_file")
    assert [row["name"] for row in page.data["rows"]] == ["by_file"] and len(page.data["pictures"]) == 4
    assert "pretrain_network_g: one.safetensors" in page.text
    assert len(list(Path("results/by_file/visualization/v").iterdir())) == 4


def test_a_page_that_fails_loses_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Shots, "pictures", lambda *given: 1 / 0)
    rows = compare(["one.safetensors"], data=[Path("photos")], page=True)
    assert len(rows) == 1 and Path("results/one/metrics.csv").is_file()
    said = capsys.readouterr().out
    assert "report.html is not: ZeroDivisionError" in said and "Per image: results/one/metrics.csv" in said
    assert not Path("results/one/report.html").exists()


def test_pictures_are_chosen_before_the_numbers_from_all_sets_in_turn() -> None:
    for number in range(9):
        write_image(Path(f"many/{number}.png"), photo("rocket", (24, 24 + 4 * number)))
    sets = {"many": PairedImages(dataroot_gt="many", scale=2), "photos": PairedImages(dataroot_gt="photos", scale=2)}
    shots = Shots(sets, 3)
    assert {dataset: list(names.values()) for dataset, names in shots.chosen.items()} == {"many": [2, 6], "photos": [2]}
    assert sum(len(names) for names in Shots(sets, 99).chosen.values()) == 13
    image = np.zeros((56, 52, 3), np.uint8)
    save = shots.keeper("photos", "net")
    for name in sets["photos"].names:
        save(name, image + 7)
    sizes = {dataset: {name: one[at].gt.shape for at, name in enumerate(one.names)} for dataset, one in sets.items()}
    assert sizes["photos"][sets["photos"].names[2]] == (56, 52, 3)
    (picture,) = [one for one in shots.pictures(2, ["net", "other"]) if one.dataset == "photos"]
    assert list(picture.answers) == [("side by side", "net")] and shots.answers["photos", "net"].keys() == {
        picture.image
    }
    pair = sets["photos"][2]
    assert np.array_equal(picture.gt, pair.gt) and picture.image == pair.name
    assert np.array_equal(picture.bicubic, to_image(Bicubic(2)(to_tensor(pair.lq))))


def test_places_are_spread_evenly() -> None:
    for length in range(1, 30):
        for count in range(length + 1):
            places = spread(length, count)
            assert len(set(places)) == count and all(0 <= place < length for place in places)
            gaps = np.diff([-1, *places, length]) if count else [0]
            assert max(gaps[1:-1], default=0) - min(gaps[1:-1], default=0) <= 1
