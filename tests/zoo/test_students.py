"""The networks that come with the package: small, unchanged, found by name, and better than bicubic interpolation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtkd import zoo
from mtkd.archs.plain import PlainSR
from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image
from mtkd.data.resize import bicubic_lq, imresize
from mtkd.metrics.complexity import complexity
from mtkd.metrics.psnr import psnr
from mtkd.runtime.pixels import to_tensor
from mtkd.zoo import students

NAMES = list(students.index())
PHOTOGRAPHS = Path(__file__).parents[2] / "datasets" / "demo" / "test"


def test_there_is_one_of_every_scale_and_together_they_are_small() -> None:
    assert {"tiny_x2", "tiny_x3", "tiny_x4"} <= set(NAMES)
    assert sum(students.file_of(name).stat().st_size for name in NAMES) < 1_000_000
    assert {path.stem for path in students.FOLDER.iterdir() if not path.name.startswith("__")} == {*NAMES, "index"}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_found_by_its_name_without_a_download(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "none"))
    for spec in (name, f"zoo:{name}"):
        net = zoo.build(spec)
        assert isinstance(net, PlainSR) and net.scale == zoo.entry(name).scale and net.expand == 0
        assert zoo.resolve(spec) == students.file_of(name)
    assert not (tmp_path / "none").exists()
    (report,) = zoo.verify([name])
    assert report.ok


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_is_better_than_bicubic_interpolation_on_every_photograph(name: str) -> None:
    net = zoo.build(name)
    for path in list_images(PHOTOGRAPHS):
        gt = read_image(path)[:192, :192]
        lq = to_tensor(bicubic_lq(gt, net.scale))
        options = {"crop_border": net.scale, "test_y_channel": True}
        ours, cubic = (float(psnr(sr, to_tensor(gt), **options)) for sr in (net(lq), imresize(lq, net.scale)))
        assert ours > cubic + 0.2, path.name


@pytest.mark.parametrize("name", NAMES)
def test_its_card_tells_data_scores_licence_and_how_it_was_made(name: str) -> None:
    card = students.card_of(name).read_text(encoding="utf-8")
    for word in (name, "bicubic", "Set5", "Urban100", "BSDS500", "Licence", "commit", "mtkd bench"):
        assert word in card
    psnr_y, ssim_y = students.index()[name]["scores"]["Set5"]
    assert f"{psnr_y:.2f} / {ssim_y:.4f}" in card


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_the_scores_of_its_card(name: str) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}` |")]
    facts = students.index()[name]
    gmacs = complexity(zoo.build(name)).macs / 1e9
    scores = [f"{psnr_y:.2f}" for psnr_y, _ in facts["scores"].values()]
    assert row == f"| `{name}` | {facts['params']:,} | {gmacs:.2f} G | {' | '.join(scores)} |"


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {name: facts | {"sha256": "0" * 64} for name, facts in students.index().items()}
    monkeypatch.setattr(students, "index", lambda: changed)
    with pytest.raises(MtkdError, match="has changed since it was shipped"):
        zoo.build("tiny_x4")
    assert not zoo.verify(["tiny_x4"])[0].ok


def test_a_file_of_the_users_with_that_name_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    zoo.write_safetensors(Path("tiny_x4"), PlainSR(num_feat=4, num_conv=1).state_dict(), {})
    assert zoo.resolve("tiny_x4") == Path("tiny_x4")


def test_nothing_is_imported_over_it(tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch()
    with pytest.raises(MtkdError, match="comes with the package"):
        zoo.import_file(zoo.entry("tiny_x4"), tmp_path / "x.pth")
